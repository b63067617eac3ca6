"""Train with a reward of your own: `python examples/reward_of_your_own.py [ITERATIONS [BATCH]]`."""

import sys
from dataclasses import replace

import numpy as np

from afterflow import RECIPES, execute


def dark(images: np.ndarray, records: list[dict]) -> np.ndarray:
    """Score how dark an image is: (B, H, W, 3) → (B,)."""
    return 255 - images.mean((1, 2, 3))


def main(iterations: int = 20, batch: int = 4) -> None:
    """Train for dark images, and print the mean reward of each iteration, without evaluations in between."""
    run = RECIPES["demo"]()
    algorithm = replace(run.algorithm, weights={dark: 1.0}, group=8)
    run = run.with_options(
        algorithm=algorithm,
        name="dark",
        iterations=iterations,
        batch=batch,
        held_out=None,
        eval_every=0,
        eval_rewards=(),
        sample_every=0,
    )
    result = execute(run)
    print(result.metrics["reward"])
    print(f"The LoRA is in {result.lora}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
