"""What a comparison says, in sentences: who is best, by how much, after how long, and whether it is real.

A difference is real where its 95 % interval does not hold 0.  Of two methods it is the interval of the difference
over the same prompts; where they have no prompts in common, their intervals over the base are held side by side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..experiment.intervals import Estimate
from ..experiment.run_folder import duration
from .figure_text import figure_text, short_name
from .gain_chart import HEADLINE, Series

HIDDEN = ("fidelity", "diversity")
"""Metrics that hardly a recipe trains: where one falls while strict rises, a reward may have been hacked."""
MOST_LISTED = 3
"""Number of methods that a sentence names, at most."""
SIMILAR = 1.1
"""Ratio of two times of training up to which they count as equal."""


def conclusion(data: Mapping[str, Any], ranked: Sequence[Series]) -> list[str]:
    """Return the sentences about a comparison, of methods in the order of their gains."""
    best, *others = ranked
    sentences = [about_best(best, alone=not others)]
    if others:
        sentences += about_others(data, best, others)
    methods = {method["name"]: method for method in data["methods"]}
    sentences += about_hidden(methods[best.name])
    return sentences + about_seeds(ranked)


def is_above(value: Estimate) -> bool:
    """Return whether a whole interval is above 0, in the digits that are shown."""
    return value.low is not None and round(value.low, 3) > 0


def is_below(value: Estimate) -> bool:
    """Return whether a whole interval is below 0, in the digits that are shown."""
    return value.high is not None and round(value.high, 3) < 0


def about_best(best: Series, alone: bool) -> str:
    """Say how far the best method is above the base."""
    name, gain = short_name(best.name), figure_text(best.gain, "+")
    after = f"after {duration(best.seconds)} of training"
    if best.gain.low is None:
        why = "a tag has one prompt alone, so there is no interval"
        return f"{name}: {gain} in {HEADLINE} over the base {after}; {why}."
    if is_above(best.gain):
        return f"{f'{name} gains' if alone else f'Best: {name},'} {gain} in {HEADLINE} over the base {after}."
    if is_below(best.gain):
        return f"{name} is worse than the base: {gain} in {HEADLINE} {after}."
    if alone:
        return f"{name} and the base cannot be told apart: {gain} in {HEADLINE} {after}."
    return f"No method can be told apart from the base; the highest is {name}, {gain} in {HEADLINE} {after}."


def about_others(data: Mapping[str, Any], best: Series, others: Sequence[Series]) -> list[str]:
    """Say which methods the best one cannot be told apart from, and which it is ahead of."""
    leads = {series.name: lead(data, best.name, series.name) for series in others}
    ahead = {name: difference for name, difference in leads.items() if difference is not None}
    behind = [series for series in others if series.name in ahead and is_above(ahead[series.name])]
    equal = [series for series in others if series.name in ahead and series not in behind]
    sentences = []
    if equal:
        sentences.append(f"It cannot be told apart from {names(best, equal, ahead)}.")
    if behind:
        sentences.append(f"It is ahead of {names(best, behind, ahead)}.")
    return sentences + [unpaired(best, series) for series in others if series.name not in ahead][:MOST_LISTED]


def lead(data: Mapping[str, Any], one: str, other: str, figure: str = HEADLINE) -> Estimate | None:
    """Return how far one method is ahead of another over the same prompts; None where that is not known."""
    for pair in (pair for pair in data.get("differences", []) if figure in pair):
        difference = Estimate(**pair[figure])
        if (pair["first"], pair["second"]) == (one, other):
            return difference
        if (pair["first"], pair["second"]) == (other, one):
            return reversed_difference(difference)
    return None


def reversed_difference(difference: Estimate) -> Estimate:
    """Return the difference the other way round."""
    negative = lambda value: None if value is None else -value
    return Estimate(-difference.value, negative(difference.high), negative(difference.low))


def unpaired(best: Series, other: Series) -> str:
    """Say whether the intervals over the base of two methods overlap that have no prompts in common."""
    if best.gain.low is None or other.gain.high is None:
        return f"Its difference from {short_name(other.name)} has no interval."
    overlaps = "overlaps" if best.gain.low <= other.gain.high else "does not overlap"
    return f"Its interval {overlaps} that of {short_name(other.name)}, {figure_text(other.gain, '+')}."


def names(best: Series, series: Sequence[Series], ahead: Mapping[str, Estimate]) -> str:
    """Return the names of methods, of many the first ones and how many more there are.

    The first has with it how far the best method is ahead of it, and after how long where that is not the same.
    """
    listed = [short_name(of_method.name) for of_method in series[:MOST_LISTED]]
    listed[0] += f" (difference {figure_text(ahead[series[0].name], '+')}{times(best, series[0])})"
    if len(series) > MOST_LISTED:
        listed = [*listed[:-1], f"{len(series) - MOST_LISTED + 1} more"]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def times(one: Series, other: Series) -> str:
    """Return after how long each was trained, where that is not the same."""
    short, long = sorted((one.seconds, other.seconds))
    return "" if long <= SIMILAR * short else f", after {duration(one.seconds)} against {duration(other.seconds)}"


def about_hidden(method: Mapping[str, Any]) -> list[str]:
    """Say whether what the best method was not trained on has fallen."""
    overall, hidden = method["report"]["overall"], [name for name in HIDDEN if name not in method.get("trained", ())]
    changes = {metric: Estimate(**overall[metric]["delta"]) for metric in hidden if overall.get(metric)}
    fallen = [f"{metric} changes by {figure_text(value, '+')}" for metric, value in changes.items() if is_below(value)]
    if fallen:
        return [f"Its {' and its '.join(fallen)}: look at its pictures below."]
    return [f"Its {' and '.join(changes)} {'do' if len(changes) > 1 else 'does'} not fall."] if changes else []


def about_seeds(ranked: Sequence[Series]) -> list[str]:
    """Say where runs are too few to know what another seed would do, or fewer than those of other methods."""
    most = max(len(series.seeds) for series in ranked)
    fewer = [series for series in ranked if len(series.seeds) < most]
    if most == 1:
        return ["One seed each: another seed may change this." if len(ranked) > 1 else "One seed: another may differ."]
    if fewer:
        few = [f"{short_name(series.name)} {len(series.seeds)}" for series in fewer[:MOST_LISTED]]
        more = " and so on" if len(fewer) > MOST_LISTED else ""
        return [f"Seeds are not as many for all: {', '.join(few)}{more}, others {most}."]
    return []
