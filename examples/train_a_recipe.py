"""Train a recipe with a few changes: `python examples/train_a_recipe.py [ITERATIONS [BATCH]]`."""

import sys

from afterflow import RECIPES, execute


def main(iterations: int = 45, batch: int = 8) -> None:
    """Post-train the shipped pipeline by Flow-GRPO, `batch` prompts an iteration, without evaluations in between."""
    run = RECIPES["shapes_flow_grpo"]().with_options(
        name="my_flow_grpo",
        iterations=iterations,
        batch=batch,
        learning_rate=2e-3,
        held_out=None,
        eval_every=0,
        eval_rewards=(),
    )
    result = execute(run, "shapes_flow_grpo")
    print(f"The LoRA is in {result.lora}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
