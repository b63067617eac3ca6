"""What a suite of prompts measured: scores with intervals, for one model or for a tuned one beside its base.

    score(tag) = mean over its prompts of the mean over a prompt's images
    overall    = unweighted mean of score(tag), as GenEval has it, over those of its six tags that the split can hold
                 out: a lone object has no fact to hold back, so `single_object` stands apart in test; so does `text`

Intervals are percentiles of a bootstrap that draws prompts anew within each tag.  Both models get the same draws: a
delta is then an interval of the difference, not a difference of intervals.  A tag of n prompts is drawn n - 1 times
(Rao and Wu 1988): tags with few facts would otherwise look surer than they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..experiment.intervals import Estimate, estimates, short, written

SIX = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
VERDICTS = ("official", "strict", "closed", "partial", "fidelity")
"""Figures of one image; `diversity` is one of a prompt's images together."""


@dataclass(frozen=True)
class Settings:
    """The suite `shapes`."""

    split: Literal["train", "test", "ood"] = "test"
    """test: at least one held-out fact in each prompt; ood: one step outside of the kinds that training shows."""
    prompts: int = 350
    """Shared evenly among the tags; a tag that has fewer facts draws them again, and counts each once."""
    images: int = 4
    """Per prompt."""
    steps: int = 20
    """ODE steps."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is without."""
    seed: int = 0
    """Of prompts and starting noise, so that two models can be compared picture by picture."""
    draws: int = 10_000
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        for name in ("prompts", "images", "steps", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")


@dataclass(frozen=True)
class Comparison:
    tuned: Estimate
    base: Estimate | None = None
    delta: Estimate | None = None
    """tuned - base."""


@dataclass(frozen=True)
class Judged:
    """What the pictures of P prompts are worth."""

    figures: Mapping[str, np.ndarray]
    """Each (P,): the mean over a prompt's images."""
    strict: np.ndarray
    """(P, K) bool: which images passed."""
    frechet: float
    """Distance of all images to as many renders of the same prompts."""


@dataclass(frozen=True)
class Report:
    suite: Settings
    model: str
    against: str | None
    prompts: Mapping[str, int]
    """Tag → how many different ones were evaluated."""
    overall: Mapping[str, Comparison]
    """Metric → mean of the tag means, over the tags that `averaged` names."""
    six: Comparison
    """strict over all of SIX that were evaluated, held out or not: GenEval's overall score."""
    tags: Mapping[str, Mapping[str, Comparison]]
    """Tag → metric → its score."""
    frechet: Comparison
    """Without intervals: images drawn twice pull the distance up, so a bootstrap of it is biased."""
    truth: Mapping[str, float]
    """What renders of the same prompts get from other renders: Fréchet distance, diversity."""
    taught: Mapping[str, Comparison] = field(default_factory=dict)
    """Tag → strict of this model beside the teacher of that tag as `base`; AVERAGE is the mean of them."""


AVERAGE = "average"


def compare(
    tuned: Judged, base: Judged | None, strata: Sequence[np.ndarray], draws: int, rng: np.random.Generator
) -> dict[str, Comparison]:
    """Every metric over the prompts of the strata."""
    names = list(tuned.figures)
    a = np.stack([tuned.figures[name] for name in names], 1)
    if base is None:
        return {name: Comparison(one) for name, one in zip(names, estimates(a, strata, draws, rng))}
    b = np.stack([base.figures[name] for name in names], 1)
    found = estimates(np.concatenate([a, b, a - b], 1), strata, draws, rng)
    F = len(names)
    return {name: Comparison(*found[i::F]) for i, name in enumerate(names)}


def report(
    suite: Settings,
    records: Sequence[dict],
    tuned: Judged,
    base: Judged | None,
    truth: Mapping[str, float],
    model: str,
    against: str | None,
) -> Report:
    """Judged pictures of the same P records → scores, deltas and intervals."""
    prompts = list({record["prompt"]: record for record in records}.values())
    tuned = by_prompt(tuned, records, prompts)
    base = None if base is None else by_prompt(base, records, prompts)
    tags = list(dict.fromkeys(record["tag"] for record in prompts))
    of = {tag: np.array([i for i, record in enumerate(prompts) if record["tag"] == tag]) for tag in tags}
    rng = np.random.default_rng(suite.seed)
    over = lambda names: compare(tuned, base, [of[tag] for tag in names], suite.draws, rng)
    frechet = Comparison(Estimate(tuned.frechet))
    if base is not None:
        frechet = Comparison(frechet.tuned, Estimate(base.frechet), Estimate(tuned.frechet - base.frechet))
    return Report(
        suite,
        model,
        against,
        {tag: len(of[tag]) for tag in tags},
        over(averaged(suite.split, tags)),
        over([tag for tag in tags if tag in SIX])["strict"],
        {tag: over([tag]) for tag in tags},
        frechet,
        truth,
    )


def beside_teachers(
    suite: Settings, records: Sequence[dict], strict: np.ndarray, of_teachers: np.ndarray
) -> dict[str, Comparison]:
    """strict (P,) of a student, and of the teacher of each record's tag, NaN where it has none → `Report.taught`."""
    rows = np.flatnonzero(~np.isnan(of_teachers)).tolist()
    mine = [records[i] for i in rows]
    tags, rng = list(dict.fromkeys(record["tag"] for record in mine)), np.random.default_rng(suite.seed)
    student, teacher = (Judged({"strict": each[rows]}, np.empty(0), 0.0) for each in (strict, of_teachers))
    prompts = list({record["prompt"]: record for record in mine}.values())
    student, teacher = (by_prompt(each, mine, prompts) for each in (student, teacher))
    of = {tag: np.array([i for i, record in enumerate(prompts) if record["tag"] == tag]) for tag in tags}
    over = lambda names: compare(student, teacher, [of[tag] for tag in names], suite.draws, rng)["strict"]
    return {tag: over([tag]) for tag in tags} | {AVERAGE: over(tags)}


def averaged(split: str, tags: Sequence[str]) -> list[str]:
    """The tags whose mean is the overall score: GenEval's, but in test not the one that cannot be held out."""
    six = [tag for tag in tags if tag in SIX]
    return [tag for tag in six if split != "test" or tag != "single_object"] or six


def by_prompt(judged: Judged, records: Sequence[dict], prompts: Sequence[dict]) -> Judged:
    """Figures of P records → of the U prompts among them: a prompt that was drawn again is still one prompt."""
    place = {record["prompt"]: i for i, record in enumerate(prompts)}
    index = np.array([place[record["prompt"]] for record in records])
    mean = lambda figure: np.bincount(index, figure, len(prompts)) / np.bincount(index, minlength=len(prompts))
    return replace(judged, figures={name: mean(figure) for name, figure in judged.figures.items()})


def render(found: Report) -> Group:
    """For a terminal of 80 columns: overall by metric, then tag by tag."""
    parts = [*headline(found), overall_table(found), footnote(found), "", tag_table(found), tag_footnote(found)]
    if found.taught:
        parts += [
            taught_table(found),
            "Teachers draw the prompts of their own tags; *: above the teacher by more than the 95 % interval.",
        ]
    return Group(*(Text(part) if isinstance(part, str) else part for part in parts))


def headline(found: Report) -> list[str]:
    count = len(averaged(found.suite.split, list(found.prompts)))
    names = [f"tuned  {found.model}", f"base   {found.against}"] if found.against is not None else [found.model]
    return [f"shapes, {found.suite.split} split: mean over {count} of GenEval's 6 tags", *names]


def overall_table(found: Report) -> Table:
    paired = found.against is not None
    table = Table(box=box.SIMPLE)
    table.add_column("")
    for column in ("base", "tuned", "delta") if paired else ("score",):
        table.add_column(column, justify="right")
    for metric, each in [*found.overall.items(), ("Fréchet", found.frechet), ("strict, all 6", found.six)]:
        cells = (each.base, each.tuned, each.delta) if paired else (each.tuned,)
        table.add_row(metric, *(written(cell, "+" if cell is each.delta else "") for cell in cells))
    return table


def tag_table(found: Report) -> Table:
    metrics = [name for name in VERDICTS if name in found.overall]
    table = Table(box=box.SIMPLE)
    table.add_column("base→tuned" if found.against is not None else "")
    for column in ("prompts", *metrics):
        table.add_column(column, justify="right")
    for tag in sorted(found.tags, key=(*SIX, "text").index):
        cells = [brief(found.tags[tag][metric]) for metric in metrics]
        table.add_row(tag + "*" * (tag == "single_object"), str(found.prompts[tag]), *cells)
    return table


def taught_table(found: Report) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("strict")
    for column in ("teacher", "student", "delta"):
        table.add_column(column, justify="right")
    for tag, each in found.taught.items():
        sure = each.delta is not None and each.delta.low is not None and each.delta.low > 0
        cells = (written(each.base), written(each.tuned), written(each.delta, "+") + "*" * sure)
        table.add_row(tag, *cells)
    return table


def footnote(found: Report) -> str:
    truth = ", ".join(f"{name} {value:.3g}" for name, value in found.truth.items())
    return (
        f"{found.suite.images} images a prompt. In brackets: 95 % of {found.suite.draws} bootstrap draws of the "
        f"prompts within each tag. Fréchet: lower is better. Fresh renders of the same prompts get {truth}."
    )


def tag_footnote(found: Report) -> str:
    notes = ["text is not part of the mean over tags."] if "text" in found.tags else []
    if "single_object" in found.tags:
        notes.append("* A lone object has no fact that could be held out, so the test mean leaves it out.")
    return " ".join(notes)


def brief(each: Comparison) -> str:
    """.51, or .43 → .51"""
    two = lambda value: short(f"{value:.2f}")
    return two(each.tuned.value) if each.base is None else f"{two(each.base.value)}→{two(each.tuned.value)}"
