"""When two methods have been compared often enough: a rule that is fixed before anyone looks.

    python bench/sequential.py

A pair is looked at after 3 seeds of each, and after 6 if the first look did not decide.  A look decides where the
interval of the difference lies on one side of 0, or on both and within MARGIN.  The first look's interval has
98 %, the second's 97 %: by Bonferroni, a pair's verdict is wrong with a probability of at most .05.

The command tries the rule on pairs that are made up, whose true differences are known, and prints how often each
verdict is given.  Their noise is as large as that of stored trainings.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from afterflow.evaluation.differences import difference, seed_noise
from afterflow.experiment.intervals import Estimate

LOOKS = {3: 0.02, 6: 0.03}
"""Number of seeds → the chance of an error that its look may take."""
MARGIN = 0.05
"""Variants whose difference is smaller are called alike.  It is what 6 seeds tell of most pairs (power.py)."""
DIFFERENT_PROMPTS = (8, 6, 5, 20, 24, 40, 40)
"""Number of different prompts of each tag in the suite of 280."""
PROMPT_SD, IMAGE_SD = 0.1, 0.085
"""Standard deviations of what is made up, of one prompt: those that power.py finds for most pairs."""
AHEAD, BEHIND, ALIKE, UNDECIDED = "ahead", "behind", "alike", "undecided"


def verdict(apart: Estimate, margin: float = MARGIN) -> str:
    """Return what the interval of a difference decides."""
    if apart.low is None or apart.high is None:
        return UNDECIDED
    if apart.low > 0 or apart.high < 0:
        return AHEAD if apart.low > 0 else BEHIND
    return ALIKE if -margin < apart.low and apart.high < margin else UNDECIDED


def look(first: np.ndarray, second: np.ndarray, strata: Sequence[np.ndarray], alpha: float) -> Estimate:
    """Return the difference of figures (S, P) of two methods with the interval of one look."""
    return difference(first, second, strata, seed_noise([first, second], strata), 1 - alpha)


def decide(
    first: np.ndarray, second: np.ndarray, strata: Sequence[np.ndarray], looks: Mapping[int, float] = LOOKS
) -> tuple[str, int, Estimate | None]:
    """Return the verdict on two methods, the seeds it took, and the last interval.

    Args:
        first: Figures (S, P) of the first method, by seed and prompt.
        second: Those of the second, on the same prompts.
        strata: Row numbers of the prompts of each tag.
        looks: Number of seeds → the chance of an error.  Looks for which seeds are missing are not taken.
    """
    decision, seeds, apart = UNDECIDED, 0, None
    for count, alpha in sorted(looks.items()):
        if min(len(first), len(second)) < count:
            break
        seeds, apart = count, look(first[:count], second[:count], strata, alpha)
        decision = verdict(apart)
        if decision != UNDECIDED:
            break
    return decision, seeds, apart


def simulate(true: float, seed_sd: float, prompt_sd: float, pairs: int, rng: np.random.Generator) -> Counter[str]:
    """Return how often each verdict is given of pairs with a known difference.

    Args:
        true: By how much the first method is above the second.
        seed_sd: Standard deviation of a training's score by its seed.
        prompt_sd: Standard deviation of the difference of one prompt.
        pairs: Number of pairs.
        rng: Source of what is made up.
    """
    prompts, most = sum(DIFFERENT_PROMPTS), max(LOOKS)
    strata = np.split(np.arange(prompts), np.cumsum(DIFFERENT_PROMPTS)[:-1])
    decisions: Counter[str] = Counter()
    for _ in range(pairs):
        shared = rng.normal(0, prompt_sd, prompts)
        figures = [
            offset + rng.normal(0, seed_sd, (most, 1)) + rng.normal(0, IMAGE_SD, (most, prompts))
            for offset in (true, 0.0)
        ]
        decisions[decide(figures[0] + shared, figures[1], strata)[0]] += 1
    return decisions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| true difference | seed's SD | " + " | ".join((AHEAD, BEHIND, ALIKE, UNDECIDED)) + " |")
    print("|---|---|---|---|---|---|")
    for seed_sd in (0.01, 0.02, 0.03):
        for true in (0.0, 0.015, 0.03, 0.06, 0.1):
            decisions = simulate(true, seed_sd, PROMPT_SD, options.pairs, rng)
            shares = (f"{decisions[name] / options.pairs:.3f}" for name in (AHEAD, BEHIND, ALIKE, UNDECIDED))
            print(f"| {true:g} | {seed_sd:g} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
