"""How long an iteration takes on more processes: simulated from stage times of one, and sizes of messages.

    python bench/scaling.py --json bench/results/scaling.json
    python bench/scaling.py --metrics runs/NAME/metrics.jsonl --prompts 48 --trained 18.8e6

The stage times are those of one process: measured (--metrics: seconds of a prompt's rollout, decoding and reward, and
of its update), or, without, those of Flow-GRPO on Stable Diffusion 3.5 Medium from its counted FLOPs at an assumed
share of a GPU's peak, which nobody has measured here.  Each process has an equal share of the prompts; a group whose
rewards are all equal is not trained, so that updates take as long as whoever has most.  Messages: scores as JSON twice
an update, and the gradients of the LoRA in fp64, by a ring over the slowest link.  2000 iterations are simulated.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from harness import make_parser, write_json
from real_size import config_of

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.experiment.network_counts import count_passes
from afterflow.models.adapters import LoRA, attach

DRAWS = 2000
PER_NODE = 8


@dataclass(frozen=True)
class Stages:
    """Of one process."""

    source: str
    explored: float
    """Seconds of a prompt's rollout, decoding and rewards."""
    updated: float
    """Seconds of a prompt's update, where its group is trained."""
    tied: float
    """Share of the groups that are not."""
    images: int
    """Of a prompt."""
    trained: float
    """Numbers in the gradient."""


@dataclass(frozen=True)
class Links:
    """Bytes a second and seconds of a message, between GPUs of a machine and between machines."""

    inside: tuple[float, float] = (200e9, 20e-6)
    between: tuple[float, float] = (25e9, 40e-6)


def measured(file: Path, prompts: int, trained: float, images: int) -> Stages:
    """Medians over a run's iterations, the first left out."""
    lines = [json.loads(line) for line in file.read_text().splitlines()][1:]
    of_stage = lambda *names: median(sum(line.get(f"seconds/{name}", 0.0) for name in names) for line in lines)
    tied = float(np.mean([line.get("zero_std_groups", 0.0) for line in lines]))
    update = of_stage("update") / prompts / max(1e-9, 1 - tied)
    return Stages(str(file), of_stage("rollout", "decode", "reward") / prompts, update, tied, images, trained)


def counted(mfu: float, peak: float, reward: float) -> Stages:
    """Flow-GRPO of 24 images and 10 steps at 512 px under guidance, on SD3.5 Medium."""
    algorithm, rows = FlowGRPO({"reward": 1.0}), 16
    with tempfile.TemporaryDirectory() as folder:
        model = config_of("sd35_medium", 512, Path(folder)).load("meta")
        parameters = attach(model, LoRA())
        _, forward, backward = count_passes(model, rows)
    forward, backward = (flops / rows / (mfu * peak) for flops in (forward, backward))
    images, trained = algorithm.group, sum(p.numel() for p in parameters.values())
    rollout = 2 * images * algorithm.steps * forward + images * reward
    update = 2 * images * (algorithm.steps - 1) * (2 * forward + backward)  # the reference takes a forward pass too
    about = f"FLOPs counted, at an assumed {mfu:.0%} of {peak / 1e12:.0f} TFLOP/s and {reward:g} s an image for rewards"
    return Stages(about, rollout, update, 0.2, images, trained)


def iteration(stages: Stages, links: Links, gpus: int, prompts: int, rng: np.random.Generator) -> dict[str, float]:
    """Mean seconds of an iteration and where they go."""
    shares = [len(part) for part in np.array_split(np.arange(prompts), gpus)]
    trained = np.stack([rng.binomial(share, 1 - stages.tied, DRAWS) for share in shares], 1)
    speed, wait = links.inside if gpus <= PER_NODE else links.between
    scores = 30.0 * prompts * stages.images  # bytes: a number and its name's share, from all to all
    gathers = 2 * (scores / speed + gpus * wait)
    ring = 2 * (gpus - 1) / gpus * 8 * stages.trained / speed + 2 * (gpus - 1) * wait if gpus > 1 else 0.0
    explored, updated = max(shares) * stages.explored, trained.max(1).mean() * stages.updated
    total = explored + updated + gathers + ring
    even = prompts * (stages.explored + (1 - stages.tied) * stages.updated) / gpus
    return {
        "seconds": total,
        "explore": explored,
        "update": updated,
        "messages": gathers + ring,
        "efficiency": even / total,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--metrics", type=Path, help="of a run in one process")
    parser.add_argument("--prompts", type=int, default=192, help="of an iteration")
    parser.add_argument("--images", type=int, default=24, help="of a prompt")
    parser.add_argument("--trained", type=float, default=18.8e6, help="numbers that are trained")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument("--peak", type=float, default=989e12)
    parser.add_argument("--reward", type=float, default=0.02, help="seconds of an image")
    options = parser.parse_args()
    if options.metrics is None:
        stages = counted(options.mfu, options.peak, options.reward)
    else:
        stages = measured(options.metrics, options.prompts, options.trained, options.images)
    links, rng = Links(), np.random.default_rng(0)
    wanted = [gpus for gpus in options.gpus if gpus <= options.prompts]
    results = {gpus: iteration(stages, links, gpus, options.prompts, rng) for gpus in wanted}
    print(
        f"{'GPUs':>5} {'seconds':>9} {'explore':>9} {'update':>9} {'messages':>9} {'efficiency':>10}", file=sys.stderr
    )
    for gpus, result in results.items():
        row = " ".join(f"{result[name]:>9.2f}" for name in ("seconds", "explore", "update"))
        print(f"{gpus:>5} {row} {result['messages']:>9.4f} {result['efficiency']:>9.0%}", file=sys.stderr)
    command = " ".join(["python", *sys.argv])
    about = {"prompts": options.prompts, "stages": asdict(stages), "links": asdict(links), "command": command}
    write_json(about | {"simulated": results}, options.json, indent=1, show=options.json == "-")


if __name__ == "__main__":
    main()
