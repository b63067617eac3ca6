"""Figures and names as a page shows them: three digits, no zero before the point, the sign of a minus; short names."""

import math

from ..experiment.intervals import Estimate, without_zero
from ..system.escapes import one_line

LONGEST_NAME = 40
"""Number of letters of a name in a sentence or a legend, at most."""


def number_text(value: float, sign: str = "", like: float | None = None) -> str:
    """Return a number with three digits, .512, 4.51, 31.9 or 604, with as many decimals as `like` would have."""
    if not math.isfinite(value):
        return "none"
    size = abs(value if like is None else like)
    digits = next((digits for bound, digits in ((1, 3), (10, 2), (100, 1)) if size < bound), 0)
    # Adding 0 turns a -0 that rounding left into a 0.
    return without_zero(format(round(value, digits) + 0.0, f"{sign}.{digits}f")).replace("-", "\N{MINUS SIGN}")


def interval_text(estimate: Estimate, sign: str = "") -> str:
    """Return the interval of an estimate, [.471, .553]; nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (number_text(end, sign, estimate.value) for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def figure_text(estimate: Estimate | None, sign: str = "") -> str:
    """Return an estimate and its interval, .512 [.471, .553]; nothing where there is none."""
    if estimate is None:
        return ""
    return f"{number_text(estimate.value, sign)} {interval_text(estimate, sign)}".strip()


def short_name(name: str) -> str:
    """Return a name for a sentence, on one line and not too long."""
    name = one_line(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
