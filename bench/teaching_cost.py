"""What a step of SOAR and of Flow-OPD costs beside its forward and backward passes, and how many those are.

    python bench/teaching_cost.py --json -

Iterations are real ones (rollout, labels, losses, optimizer, EMA) on the shipped pipeline with LoRAs.  `predicted` is
from counted passes and from the seconds of bare ones, measured in the same rounds:

    SFT    fb            SOAR with N points    (1 + N) fb + f: the base prediction serves the roll-out
    OPD    T f in the rollout, (T - 1) of f per teacher (2 under guidance) and of f for the anchor, (T - 1) fb

f is a forward pass, fb one with its backward pass.  `rows` are evaluations per image, counted at the network.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from overhead import carried_out, clocked

from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.provenance import git_commit, hardware
from afterflow.models.adapters import LoRA, attach, frozen, without_adapters
from afterflow.models.generate import encode_records
from afterflow.models.pipeline import no_progress_bars
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import guided, in_chunks, in_context
from afterflow.sampling.conditioning import Pairs
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.explore import ExploreOptions, Explorer, supervised

TAGS = ("colors", "counting")
GUIDANCE = 2.5
OPD = FlowOPD(group=4)
STEPS = OPD.steps
# Passes per image: (without gradient, with).
METHODS = {
    "sft": (SFT(), (0, 1)),
    "sft_3_draws": (SFT(num_noises=3), (0, 3)),
    "soar_2_points": (SOAR(points=2, correction=0.2), (1, 3)),
    "soar_6_points": (SOAR(), (1, 7)),
    # Half of the prompts have a teacher under guidance, which takes two rows.
    "flow_opd": (OPD, (STEPS + 1.5 * (STEPS - 1) + (STEPS - 1), STEPS - 1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    no_progress_bars()
    line = json.dumps(measure(options))
    if options.json != "-":
        Path(options.json).write_text(line + "\n")
    print(line)


def measure(options: argparse.Namespace) -> dict:
    model = SD3(options.model).load()
    parameters = attach(model, LoRA())
    counter = Counter(model)
    prompts = encode_records(model, ShapesPrompts(count=64, tags=TAGS).records(0))
    with tempfile.TemporaryDirectory() as folder:
        model.save_lora(Path(folder))
        models = velocities(options, model, counter, folder)
    images = options.prompts * OPD.group
    runs = {
        name: iterations(options, algorithm, model, parameters, models, prompts, images)
        for name, (algorithm, _) in METHODS.items()
    }
    for each in runs.values():
        next(each)
    seconds, rows, forward, both = {name: [] for name in METHODS}, {}, [], []
    for _ in range(options.rounds):
        for name, each in runs.items():
            counter.rows = 0
            seconds[name].append(clocked(lambda each=each: next(each)))
            rows[name] = counter.rows / images
        f, fb = bare(options, model, prompts, images)
        forward.append(f), both.append(fb)
    found = {}
    for name, (_, (free, taught)) in METHODS.items():
        predicted = free * statistics.median(forward) + taught * statistics.median(both)
        measured = statistics.median(seconds[name])
        found[name] = {
            "rows": rows[name],
            "rows_expected": free + taught,
            "seconds": round(measured, 4),
            "predicted": round(predicted, 4),
            "ratio": round(measured / predicted, 4),
        }
    about = {"images": images, "chunk": options.chunk, "rounds": options.rounds, "threads": options.threads}
    made = {"command": " ".join(["python", *sys.argv]), "git_commit": git_commit(), "hardware": hardware()}
    return {"methods": found, **about, "torch": torch.__version__, **made}


class Counter:
    """The network's velocity, and how many rows it was asked for."""

    def __init__(self, model) -> None:
        self.velocity, self.rows = model.velocity(model.module), 0

    def __call__(self, x, t, cond):
        self.rows += len(x)
        return self.velocity(x, t, cond)


def velocities(options, model, counter: Counter, folder: str) -> Models:
    """The policy, two teachers of which one is guided, and the base as anchor, all counted."""
    drawing = lambda scale, context: in_context(in_chunks(guided(counter, scale), options.chunk), context)
    plain, strong = (frozen(model, folder, name)[1] for name in ("plain", "strong"))
    return Models(
        in_chunks(counter, options.chunk),
        teachers={"colors": drawing(1.0, plain), "counting": drawing(GUIDANCE, strong)},
        anchor=drawing(1.0, without_adapters(model, LoRA())[1]),
    )


def iterations(options, algorithm, model, parameters, models, prompts, images):
    """The real ones; of explored prompts as many have one teacher as the other."""
    clock = Clock()
    if not isinstance(algorithm, FlowOPD):
        pairs = Pairs(torch.randn(images, *model.latent_shape), prompts[torch.arange(images) % len(prompts)])
        batch = lambda step: pairs
        source = supervised(algorithm, batch, range(1000), seed=0, chunk=options.chunk, processes=Processes())
        return carried_out(algorithm, models, parameters, source, clock)
    of_tag = [[i for i, record in enumerate(prompts.records()) if record["tag"] == tag] for tag in TAGS]
    chosen = prompts[torch.tensor([i for rows in of_tag for i in rows[: options.prompts // 2]])]
    score, exploring = lambda *images: Scores({}), ExploreOptions(0, model.latent_shape, options.chunk)
    explorer = Explorer(algorithm, models, lambda step: chosen, score, exploring, Processes(), clock)
    return carried_out(algorithm, models, parameters, explorer.iterations(range(1000)), clock)


def bare(options, model, prompts, images) -> tuple[float, float]:
    """Seconds of forward passes without, and of forward and backward passes with gradients, for so many images."""
    velocity = model.velocity(model.module)
    x, t = torch.randn(options.chunk, *model.latent_shape), torch.rand(options.chunk)
    cond = prompts[torch.arange(options.chunk) % len(prompts)]
    times = max(1, images // options.chunk)

    def forwards():
        with torch.no_grad():
            for _ in range(4 * times):
                velocity(x, t, cond)

    def both():
        for _ in range(4 * times):
            velocity(x, t, cond).sum().backward()
        model.module.zero_grad()

    return clocked(forwards) / 4, clocked(both) / 4


if __name__ == "__main__":
    main()
