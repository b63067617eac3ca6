"""What a step of SOAR and of Flow-OPD costs beside its forward and backward passes, and how many those are.

    python bench/teaching_cost.py --json -

Iterations are real ones (rollout, labels, losses, optimizer, EMA) on the shipped pipeline with LoRAs.  `predicted` is
from counted passes and from the seconds of bare ones, measured in the same rounds:

    SFT    fb            SOAR with N points    (1 + N) fb + f: the base prediction serves the roll-out
    OPD    T f in the rollout, (T - 1) of f per teacher (2 under guidance) and of f for the anchor, (T - 1) fb

f is a forward pass, fb one with its backward pass.  `rows` are evaluations per image, counted at the network.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from harness import make_parser, provenance, seconds_of, write_json
from timing import bare_forward, explored_iterations, pass_seconds, setting, timing_options, trained_iterations

from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.data.prompts import ShapesPrompts
from afterflow.models.adapters import LoRA, attach, frozen, without_adapters
from afterflow.models.generate import encode_records
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import guided, in_chunks, in_context
from afterflow.sampling.conditioning import Pairs
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.explore import supervised

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
    options = timing_options(make_parser(__doc__), rounds=5, prompts=16, chunk=32)
    write_json(measure(options), options.json)


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
    for run in runs.values():
        next(run)
    seconds, rows, forward, both = {name: [] for name in METHODS}, {}, [], []
    for _ in range(options.rounds):
        for name, run in runs.items():
            counter.rows = 0
            seconds[name].append(seconds_of(lambda run=run: next(run)))
            rows[name] = counter.rows / images
        count = max(1, images // options.chunk)
        velocity = model.velocity(model.module)
        f, fb = pass_seconds(bare_forward(options, model, velocity, prompts), model.module, 4 * count)
        forward.append(f / 4), both.append(fb / 4)
    results = {}
    for name, (_, (free, taught)) in METHODS.items():
        predicted = free * statistics.median(forward) + taught * statistics.median(both)
        measured = statistics.median(seconds[name])
        results[name] = {
            "rows": rows[name],
            "rows_expected": free + taught,
            "seconds": round(measured, 4),
            "predicted": round(predicted, 4),
            "ratio": round(measured / predicted, 4),
        }
    return {"methods": results, "images": images, **setting(options), **provenance()}


class Counter:
    """The network's velocity, which counts the rows that it computes."""

    def __init__(self, model) -> None:
        self.velocity, self.rows = model.velocity(model.module), 0

    def __call__(self, x, t, cond):
        self.rows += len(x)
        return self.velocity(x, t, cond)


def velocities(options, model, counter: Counter, folder: str) -> Models:
    """Return the policy, two teachers of which one is guided, and the base as anchor, all counted."""
    drawing = lambda scale, context: in_context(in_chunks(guided(counter, scale), options.chunk), context)
    plain, strong = (frozen(model, folder, name)[1] for name in ("plain", "strong"))
    return Models(
        in_chunks(counter, options.chunk),
        teachers={"colors": drawing(1.0, plain), "counting": drawing(GUIDANCE, strong)},
        anchor=drawing(1.0, without_adapters(model, LoRA())[1]),
    )


def iterations(options, algorithm, model, parameters, models, prompts, images):
    """Yield real iterations; as many explored prompts have one teacher as the other."""
    if not isinstance(algorithm, FlowOPD):
        pairs = Pairs(torch.randn(images, *model.latent_shape), prompts[torch.arange(images) % len(prompts)])
        batch = lambda step: pairs
        source = supervised(algorithm, batch, range(1000), seed=0, chunk=options.chunk, processes=Processes())
        return trained_iterations(algorithm, models, parameters, source, Clock())
    of_tag = [[i for i, record in enumerate(prompts.records()) if record["tag"] == tag] for tag in TAGS]
    chosen = prompts[torch.tensor([i for rows in of_tag for i in rows[: options.prompts // 2]])]
    score = lambda *images: Scores({})
    return explored_iterations(options, algorithm, model, parameters, models, lambda step: chosen, score)


if __name__ == "__main__":
    main()
