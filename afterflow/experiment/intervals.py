"""Estimates with bootstrap intervals, and how they are written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..train.repeated_prompts import sums_by_prompt


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float | None = None
    """Lower end of the interval; None where there is none."""
    high: float | None = None
    """Upper end of the interval."""


def mean_of_means(values: np.ndarray, strata: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of the strata's means, of figures (P, F) → (F,); a stratum holds the prompts of a tag."""
    return np.mean([values[stratum].mean(0) for stratum in strata], 0)


def bootstrap(
    values: np.ndarray, strata: Sequence[np.ndarray], draws: int, rng: np.random.Generator, prompts: np.ndarray
) -> np.ndarray:
    """Return means of means of figures (P, F) → (draws, F), with the prompts of each stratum resampled.

    Args:
        values: The figures.
        strata: Row numbers of each tag.
        draws: Number of resamples.
        rng: Their source.
        prompts: (P,) which prompt is each row's; the rows of one are drawn together.
    """
    total = np.zeros((draws, values.shape[1]))
    for stratum in strata:
        sums, rows = sums_by_prompt(values[stratum], prompts[stratum])
        n = len(sums)
        # How often each prompt is drawn is all that a mean needs to know.
        times = rng.multinomial(n - 1, np.full(n, 1 / n), draws)
        total += times @ sums / (times @ rows)[:, None]
    return total / len(strata)


def estimates(
    values: np.ndarray,
    strata: Sequence[np.ndarray],
    draws: int,
    rng: np.random.Generator,
    prompts: np.ndarray | None = None,
) -> list[Estimate]:
    """Return F means of means of figures (P, F) with 95 % intervals; none where a tag has only one prompt.

    Args:
        values: The figures.
        strata: Row numbers of each tag.
        draws: Number of bootstrap resamples.
        rng: Source of the resamples.
        prompts: (P,) which prompt is each row's; without it every row has its own.
    """
    prompts = np.arange(len(values)) if prompts is None else prompts
    value = mean_of_means(values, strata).tolist()
    if min(len(set(prompts[stratum].tolist())) for stratum in strata) < 2:
        return [Estimate(v) for v in value]
    low, high = np.percentile(bootstrap(values, strata, draws, rng, prompts), [2.5, 97.5], axis=0).tolist()
    return [Estimate(*numbers) for numbers in zip(value, low, high)]


def estimate_text(estimate: Estimate | None, sign: str = "") -> str:
    """Return an estimate as text: .512 [.471, .553], or 31.9 [31.5, 32.4]."""
    if estimate is None:
        return ""
    digits = 3 if abs(estimate.value) < 10 else 1
    # Adding 0 turns a -0 that rounding left into a 0.
    number = lambda value: without_zero(format(round(value, digits) + 0.0, f"{sign}.{digits}f"))
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def without_zero(number: str) -> str:
    """Return a number without the zero before its point: .51, -.51, +.51."""
    return re.sub(r"^([+-]?)0\.", r"\1.", number)
