"""Means over prompts and their standard errors, where rows that repeat a prompt are not independent of each other."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np


def repeated_rows(prompts: Sequence[Hashable]) -> dict[str, int]:
    """Return row → first row of its prompt, of the rows that repeat a prompt; rows are text, as JSON has keys."""
    first: dict[Hashable, int] = {}
    rows = [first.setdefault(prompt, row) for row, prompt in enumerate(prompts)]
    return {str(row): of_prompt for row, of_prompt in enumerate(rows) if row != of_prompt}


def prompts_of_rows(rows: int, repeated: Mapping[str, int]) -> np.ndarray:
    """Return the first row of each row's prompt, (rows,), from what `repeated_rows` returned."""
    prompts = np.arange(rows)
    for row, of_prompt in repeated.items():
        prompts[int(row)] = of_prompt
    return prompts


def sums_by_prompt(values: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sums (U, F) of figures (P, F) over the rows of each of U different prompts, and their numbers of rows."""
    different, index = np.unique(prompts, return_inverse=True)
    sums = np.zeros((len(different), *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums, np.bincount(index, minlength=len(different))


def mean_and_error(values: np.ndarray, prompts: np.ndarray) -> tuple[float, float]:
    """Return the mean over rows (P,) and its standard error over different prompts; NaN where there is but one.

    With U prompts and n rows the error is sqrt(U / (U - 1) * sum over prompts of (sum of deviations)²) / n, which is
    the usual one where no prompt is repeated.
    """
    mean = float(values.mean())
    deviations, _ = sums_by_prompt(values - mean, prompts)
    U = len(deviations)
    if U < 2:
        return mean, float("nan")
    return mean, float(np.sqrt((deviations**2).sum() * U / (U - 1)) / len(values))
