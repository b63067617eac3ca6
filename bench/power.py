"""How many seeds decide a difference of .03, or of .05, between two methods, from the trainings that are stored.

    python bench/power.py --json bench/results/power.json

Of every two methods of methods.py it takes apart what varies: the seed of a training, how the two differ from prompt to
prompt, and the images of a prompt.  From these follow the 95 % interval of so many seeds and prompts, and the smallest
number of seeds whose interval is no wider than that on each side.

The test split of the shapes world has few different prompts, five of counting for instance, which a larger suite
repeats.  So figures of four times as many say what more of them would do, not what a longer suite does.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from counted import SUITE, suite_records
from harness import make_parser, provenance, write_json
from methods import METHODS, TRAININGS
from scipy import stats

from afterflow.evaluation.comparison import judged_from_json
from afterflow.evaluation.differences import seed_noise
from afterflow.evaluation.report import averaged_tags, rows_by_tag
from afterflow.evaluation.shapes_suite import by_prompt, prompts_of_suite
from afterflow.experiment.intervals import mean_of_means

DIFFERENCES, MOST_SEEDS = (0.03, 0.05), 200
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
    """Take apart what varies in figures (S, P) of two methods."""
    noise = seed_noise([first, second], strata)
    apart = first.mean(0) - second.mean(0)
    by_prompts = sum(float(apart[rows].var(ddof=1)) / len(rows) for rows in strata) / len(strata) ** 2
    images = noise.image * (1 / len(first) + 1 / len(second))
    return Parts(max(0.0, noise.variance - noise.image), max(0.0, by_prompts - images), noise.image)


def half_width(of: Parts, seeds: int, suites: float) -> float:
    """Return half of the 95 % interval of a difference with so many seeds of each and so many times the prompts."""
    variance = (of.seeds + of.images / suites) * 2 / seeds + of.prompts / suites
    return float(stats.t.ppf(0.975, 2 * (seeds - 1))) * math.sqrt(variance)


def seeds_needed(of: Parts, suites: float, apart: float) -> int | None:
    """Return the smallest number of seeds that decides a difference, from 2 on; None where no number does."""
    return next((seeds for seeds in range(2, MOST_SEEDS + 1) if half_width(of, seeds, suites) <= apart), None)


def main() -> None:
    options = make_parser(__doc__).parse_args()
    records = suite_records()
    prompts = prompts_of_suite(records)
    rows = rows_by_tag(prompts)
    strata = [rows[tag] for tag in averaged_tags(SUITE.split, rows)]
    figures = {}
    for name in METHODS:
        judged = [judged_from_json(one["judged"]) for one in TRAININGS.results(name)]
        if len(judged) > 1:
            figures[name] = np.stack([by_prompt({"": j.figures["strict"]}, records, prompts)[""] for j in judged])
    pairs = []
    for a, b in combinations(figures, 2):
        of = parts(figures[a], figures[b], strata)
        apart = float(mean_of_means((figures[a].mean(0) - figures[b].mean(0))[:, None], strata)[0])
        needed = {
            f"seeds_for_{wanted:g}_with_{suites * len(prompts)}_prompts": seeds_needed(of, suites, wanted)
            for wanted in DIFFERENCES
            for suites in SUITES
        }
        deviations = {f"{name}_sd": round(math.sqrt(value), 4) for name, value in of._asdict().items()}
        pairs.append({"first": a, "second": b, "apart": round(apart, 4)} | deviations | needed)
    summary = {
        key: [sum(pair[key] is not None and pair[key] <= most for pair in pairs) for most in (3, 6, 12)]
        for key in pairs[0]
        if key.startswith("seeds_for")
    }
    result = {"pairs": pairs, "decided_by_3_6_12_seeds": summary} | provenance()
    write_json(result, options.json, indent=1, show=False)
    print(summary, "of", len(pairs), "pairs")


if __name__ == "__main__":
    main()
