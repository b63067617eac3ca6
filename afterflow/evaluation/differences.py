"""Differences between two methods that were judged on the same prompts, each trained with several seeds.

Two things vary by chance: which prompts a suite has, and the seed of a training.  An interval over prompts alone says
nothing of another seed, and one of two means taken as independent forgets that both have the same prompts.  Here the
variance of a difference is that of crossed random effects: of prompts, plus that of seeds, less what images add to both
(Cornfield and Tukey 1956, doi:10.1214/aoms/1177728067).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from ..experiment.intervals import Estimate, mean_of_means
from ..experiment.serialization import to_json
from .report import averaged_tags, rows_by_tag
from .shapes_suite import Judged, by_prompt, prompts_of_suite

CONFIDENCE = 0.95
SHOWN = ("strict", "closed", "fidelity", "diversity")
"""Figures of the shapes suite whose differences are reported."""


@dataclass(frozen=True)
class SeedNoise:
    """How much trainings of one method differ by their seed, pooled over two methods or more."""

    variance: float
    """Variance of the overall figure of one training."""
    degrees: int
    """Its degrees of freedom: trainings less methods; 0 where no method has two."""
    image: float
    """The part of that variance which the suite's images add: it is smaller with more prompts."""


PROMPTS_ALONE = SeedNoise(0.0, 1, 0.0)
"""No noise of seeds, for an interval over prompts alone."""


def seed_noise(methods: Iterable[np.ndarray], strata: Sequence[np.ndarray]) -> SeedNoise:
    """Return the noise of seeds of methods whose figures are (S, P), S trainings on P prompts; strata as a suite's."""
    total, image, degrees = 0.0, 0.0, 0
    for figures in methods:
        count = len(figures)
        means = mean_of_means(figures.T, strata)
        total += float(((means - means.mean()) ** 2).sum())
        image += (count - 1) * image_variance(figures, strata) if count > 1 else 0.0
        degrees += count - 1
    return SeedNoise(total / degrees, degrees, image / degrees) if degrees else SeedNoise(math.nan, 0, math.nan)


def image_variance(figures: np.ndarray, strata: Sequence[np.ndarray]) -> float:
    """Return the variance of one training's overall figure by its images alone, of figures (S, P) with S > 1."""
    seeds, variance = len(figures), 0.0
    for rows in strata:
        part = figures[:, rows]
        rest = part - part.mean(0) - part.mean(1, keepdims=True) + part.mean()
        squares = (rest**2).sum() / max(1, (seeds - 1) * (len(rows) - 1))
        variance += squares / len(rows) / len(strata) ** 2
    return float(variance)


def difference(
    first: np.ndarray,
    second: np.ndarray,
    strata: Sequence[np.ndarray],
    noise: SeedNoise,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Return by how much the first method is above the second, with the interval that other prompts and seeds leave.

    There is no interval where no method has two seeds, or a stratum has one prompt.

    Args:
        first: Figures (S, P) of the first method: S trainings on P prompts.
        second: Figures of the second on the same prompts, of as many trainings or of others.
        strata: Row numbers of the prompts of each tag; the overall figure is the mean of the tags' means.
        noise: What seeds do, from these methods or from more of their kind.
        confidence: Probability that the interval holds the true difference.
    """
    shares = 1 / len(first) + 1 / len(second)
    return crossed_interval(first.mean(0) - second.mean(0), shares, strata, noise, confidence)


def gain_over_base(
    figures: np.ndarray, base: np.ndarray, strata: Sequence[np.ndarray], confidence: float = CONFIDENCE
) -> Estimate:
    """Return by how much a method, (S, P), is above its base, (P,), which has no seed of training."""
    noise = seed_noise([figures], strata)
    return crossed_interval(figures.mean(0) - base, 1 / len(figures), strata, noise, confidence)


def crossed_interval(
    apart: np.ndarray, shares: float, strata: Sequence[np.ndarray], noise: SeedNoise, confidence: float
) -> Estimate:
    """Return the mean of the differences of prompts with its interval.

    Args:
        apart: The difference of each prompt, (P,), averaged over trainings.
        shares: Share of the variance of one training's seed that the mean has.
        strata: Row numbers of the prompts of each tag.
        noise: What seeds do.
        confidence: Probability that the interval holds the true difference.
    """
    value = float(mean_of_means(apart[:, None], strata)[0])
    if not noise.degrees or min(len(rows) for rows in strata) < 2:
        return Estimate(value)
    seeds = noise.variance * shares
    prompts = sum(float(apart[rows].var(ddof=1)) / len(rows) for rows in strata) / len(strata) ** 2
    # Images add to both, so they are taken off once; what remains is never less than either alone.
    variance = max(seeds + prompts - noise.image * shares, seeds, prompts)
    if variance == 0:
        return Estimate(value, value, value)
    degrees = variance**2 / (seeds**2 / noise.degrees + prompts**2 / sum(len(rows) - 1 for rows in strata))
    half = float(stats.t.ppf(0.5 + confidence / 2, degrees)) * math.sqrt(variance)
    return Estimate(value, value - half, value + half)


def differences_of_methods(
    methods: Mapping[str, Sequence[Judged]], records: Sequence[dict], split: str
) -> list[dict[str, Any]]:
    """Return the differences of every two methods as JSON: by how much `first` is above `second`, figure by figure.

    `of_seeds` says whether intervals are for other seeds too, as they are where one of the two has a second seed; else
    they are for other prompts alone.

    Args:
        methods: Name of a method → what its trainings drew, judged on the same prompts.  The noise of seeds is that of
            the two methods: some are ten times as noisy as others.
        records: Records of those prompts.
        split: Split of the suite, which decides the tags of the overall figure.
    """
    prompts = prompts_of_suite(records)
    rows = rows_by_tag(prompts)
    strata = [rows[tag] for tag in averaged_tags(split, rows)]
    figures = {
        name: {
            figure: np.stack([by_prompt({"": one.figures[figure]}, records, prompts)[""] for one in judged])
            for figure in SHOWN
            if figure in judged[0].figures
        }
        for name, judged in methods.items()
    }
    several = {name: len(judged) > 1 for name, judged in methods.items()}
    noise = lambda a, b, figure: (
        seed_noise([figures[a][figure], figures[b][figure]], strata) if several[a] or several[b] else PROMPTS_ALONE
    )
    return [
        {"first": a, "second": b, "of_seeds": several[a] or several[b]}
        | {
            figure: to_json(difference(figures[a][figure], figures[b][figure], strata, noise(a, b, figure)))
            for figure in SHOWN
            if figure in figures[a] and figure in figures[b]
        }
        for a, b in combinations(figures, 2)
    ]
