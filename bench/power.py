"""How many seeds make the interval of a difference between two methods narrow, from the trainings that are stored.

    python bench/power.py --json bench/results/power.json

Three things vary when two methods of methods.py are compared: the seed of a training, how the two differ from prompt to
prompt, and the images of a prompt.  From their variances follows the 95 % interval of the difference for any number of
seeds and prompts.  The result has the smallest number of seeds whose interval is no wider than .03, or .05, on each
side.  A true difference as large as that is then told in half of the cases, and one of twice that size nearly always.

The test split of the shapes world has few different prompts, five of counting for instance, which a larger suite
repeats.  So figures of four times as many say what more of them would do, not what a longer suite does.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from counted import SUITE, figures_of
from harness import make_parser, provenance, write_json
from methods import METHODS, TRAININGS
from scipy import stats
from trainings import strata_of

from afterflow.evaluation.differences import seed_noise
from afterflow.experiment.intervals import mean_of_means

HALF_WIDTHS, MOST_SEEDS = (0.03, 0.05), 200
SUITES = (1, 4)
"""Numbers of different prompts for which seeds are counted, in suites."""


class Parts(NamedTuple):
    """Variances of an overall figure, or of a difference of two."""

    seeds: float
    """By the seed of one training, less what its images add."""
    prompts: float
    """Of a difference by which prompts a suite has."""
    images: float
    """Of one training's figure by its images."""


def parts(first: np.ndarray, second: np.ndarray, strata: Sequence[np.ndarray]) -> Parts:
    """Return the variances of what differs in figures (S, P) of two methods."""
    noise = seed_noise([first, second], strata)
    apart = first.mean(0) - second.mean(0)
    by_prompts = sum(float(apart[rows].var(ddof=1)) / len(rows) for rows in strata) / len(strata) ** 2
    images = noise.image * (1 / len(first) + 1 / len(second))
    return Parts(max(0.0, noise.variance - noise.image), max(0.0, by_prompts - images), noise.image)


def half_width(of: Parts, seeds: int, suites: float) -> float:
    """Return half of the 95 % interval of a difference with so many seeds of each and so many times the prompts."""
    variance = (of.seeds + of.images / suites) * 2 / seeds + of.prompts / suites
    return float(stats.t.ppf(0.975, 2 * (seeds - 1))) * math.sqrt(variance)


def seeds_needed(of: Parts, suites: float, most: float) -> int | None:
    """Return the smallest number of seeds whose interval reaches no further; None where no number's does."""
    return next((seeds for seeds in range(2, MOST_SEEDS + 1) if half_width(of, seeds, suites) <= most), None)


def main() -> None:
    options = make_parser(__doc__).parse_args()
    records, prompts, strata = strata_of(SUITE)
    stored = {name: TRAININGS.results(name) for name in METHODS}
    several = {name: results for name, results in stored.items() if len(results) > 1}
    figures = {name: figures_of(results, records, prompts, "strict") for name, results in several.items()}
    pairs = []
    for a, b in combinations(figures, 2):
        of = parts(figures[a], figures[b], strata)
        apart = float(mean_of_means((figures[a].mean(0) - figures[b].mean(0))[:, None], strata)[0])
        needed = {
            f"seeds_for_{wanted:g}_with_{suites * len(prompts)}_prompts": seeds_needed(of, suites, wanted)
            for wanted in HALF_WIDTHS
            for suites in SUITES
        }
        deviations = {f"{name}_sd": round(math.sqrt(value), 4) for name, value in of._asdict().items()}
        pairs.append({"first": a, "second": b, "apart": round(apart, 4)} | deviations | needed)
    summary = {
        key: [sum(pair[key] is not None and pair[key] <= most for pair in pairs) for most in (3, 6, 12)]
        for key in pairs[0]
        if key.startswith("seeds_for")
    }
    result = {"pairs": pairs, "within_with_3_6_12_seeds": summary} | provenance()
    write_json(result, options.json, indent=1, show=False)
    print(summary, "of", len(pairs), "pairs")


if __name__ == "__main__":
    main()
