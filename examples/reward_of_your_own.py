"""Train with a reward of your own: `python examples/reward_of_your_own.py [ITERATIONS [BATCH]]`."""

import sys
from dataclasses import replace

import numpy as np

from afterflow import RECIPES, execute, reward


@reward("dark", low=0, high=255)
def dark(images: np.ndarray, records: list[dict]) -> np.ndarray:
    """Score how dark an image is: (B, H, W, 3) → (B,)."""
    return 255 - images.mean((1, 2, 3))


def main(iterations: int = 20, batch: int = 4) -> None:
    """Train for dark images, and print the mean reward of each iteration."""
    run = RECIPES["demo"]()
    algorithm = replace(run.algorithm, weights={"reward_of_your_own:dark": 1.0}, group=8)
    run = run.with_options(algorithm=algorithm, name="dark", iterations=iterations, batch=batch, sample_every=0)
    folder = execute(run, "demo")
    print((folder / "metrics.jsonl").read_text())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
