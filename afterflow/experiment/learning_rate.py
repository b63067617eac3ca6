"""The learning rate of each iteration."""

import math
from collections.abc import Callable

from ..train.budget import Budget
from .config import Run


def learning_rate_schedule(run: Run, budget: Budget) -> Callable[[int], float]:
    """Return the rate of an iteration as a function; it falls as the budget of iterations or seconds is used up."""

    def rate(step: int) -> float:
        done = budget.fraction_done(step)
        fall = {"constant": 0.0, "cosine": 0.5 - 0.5 * math.cos(math.pi * done), "late": max(0.0, 5 * done - 4)}
        return (
            run.optimization.learning_rate
            * min(1.0, (step + 1) / (run.optimization.warmup + 1))
            * (1 - 0.9 * fall[run.optimization.lr_schedule])
        )

    return rate
