"""How much of a remote reward's time hides behind the rollout.

    python bench/overlap.py --json bench/results/overlap.json

An iteration's rollout of the tiny pipeline without a reward, with one that only waits (half as long as the rollout, in
proportion to the images it is given) after it, and with the same one beside it, in turns.
"""

import time
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from harness import make_parser, provenance, seconds_of, write_json

from afterflow.algorithms.base import Models, Scores, explores
from afterflow.models.generate import encode_records
from afterflow.models.pipeline import no_progress_bars
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks
from afterflow.recipes import RECIPES
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.explore import ExploreOptions, Explorer

PROMPTS, CHUNK = 16, 32


def waiting(per_image: float, leaves: torch.Tensor, records: list, draws: torch.Generator, clock: Clock) -> Scores:
    time.sleep(per_image * leaves.shape[0] * leaves.shape[1])
    return Scores({"reward": torch.rand(leaves.shape[:2])})


def measure(rounds: int) -> dict:
    torch.set_num_threads(1)
    no_progress_bars()
    recipe = RECIPES["shapes_flow_grpo"]()
    algorithm = replace(recipe.algorithm, weights={"reward": 1.0}, beta=0.0)
    assert explores(algorithm)
    model = SD3("tiny").load()
    cond = encode_records(model, recipe.data.records(0))[torch.arange(PROMPTS)]
    models = Models(in_chunks(model.velocity(model.module), CHUNK))

    def seconds(per_image: float, overlap: bool) -> float:
        score, options = partial(waiting, per_image), ExploreOptions(0, model.latent_shape, CHUNK, overlap=overlap)
        explorer = Explorer(algorithm, models, lambda step: cond, score, options, Processes(), Clock())
        return seconds_of(lambda: explorer.iteration(0))

    seconds(0.0, False)  # warms up
    rollout = median(seconds(0.0, False) for _ in range(3))
    per_image = 0.5 * rollout / (PROMPTS * algorithm.group)
    rows = [(seconds(0.0, False), seconds(per_image, False), seconds(per_image, True)) for _ in range(rounds)]
    hidden = [(after - beside) / (after - alone) for alone, after, beside in rows]
    columns = dict(zip(("rollout", "reward_after", "reward_beside"), map(median, zip(*rows))))
    parts = PROMPTS * algorithm.group // CHUNK
    result = {"seconds": columns, "hidden": median(hidden), "least": min(hidden), "most": max(hidden)}
    return result | {"parts": parts, "rounds": rounds} | provenance()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    write_json(measure(options.rounds), options.json)


if __name__ == "__main__":
    main()
