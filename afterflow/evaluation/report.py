"""The figures of an evaluation, with intervals, for one model or for a tuned one beside its base; and their tables.

    score(tag) = mean over its prompts of the mean over a prompt's images
    overall    = unweighted mean of score(tag), as GenEval has it

Intervals are percentiles of a bootstrap that draws prompts anew within each tag.  Both models get the same draws: a
delta is then an interval of the difference, not a difference of intervals.  A tag of n prompts is drawn n - 1 times
(Rao and Wu 1988): tags with few prompts would otherwise look more certain than they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..data.prompt_lists import check_tag
from ..experiment.intervals import Estimate, estimate_text, estimates, without_zero
from ..system.checks import check_at_least_one

GENEVAL_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
VERDICTS = ("official", "strict", "closed", "partial", "fidelity")
"""Figures of one image of the shapes world.  `diversity` is a figure of all images of a prompt."""


@dataclass(frozen=True)
class ShapesSettings:
    """The prompts of the suite `shapes`, and how its images are drawn."""

    split: Literal["train", "test", "ood"] = "test"
    """Split of the prompts.  A prompt of test has at least one held-out fact.  ood is one step beyond training."""
    prompts: int = 350
    """Number of prompts, shared evenly among the tags.  A tag with fewer facts repeats them and counts each once."""
    images: int = 4
    """Number of images of each prompt."""
    steps: int = 20
    """Number of ODE steps."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is without guidance."""
    seed: int = 0
    """Seed of the prompts and of the starting noise, so that two models can be compared image by image."""
    draws: int = 10_000
    """Number of bootstrap resamples."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "prompts", "images", "steps", "draws")


@dataclass(frozen=True)
class Comparison:
    """A figure of a model, beside its base's where there is a base."""

    tuned: Estimate
    base: Estimate | None = None
    delta: Estimate | None = None
    """The difference tuned - base."""


@dataclass(frozen=True)
class Report:
    """What an evaluation measured."""

    suite: ShapesSettings | str
    model: str
    against: str | None
    images: int
    """Number of images of each prompt."""
    draws: int
    """Number of bootstrap resamples."""
    prompts: Mapping[str, int]
    """Tag → number of different prompts that were evaluated."""
    overall: Mapping[str, Comparison]
    """Metric → mean of the tag means.  Of the suite `shapes` only the tags of `averaged_tags` count."""
    tags: Mapping[str, Mapping[str, Comparison]]
    """Tag → metric → score."""
    six: Comparison | None = None
    """Mean of strict over all evaluated GENEVAL_TAGS, held out or not: GenEval's overall score."""
    frechet: Comparison | None = None
    """Fréchet distance to renders, without intervals: a bootstrap repeats images, which biases the distance."""
    truth: Mapping[str, float] = field(default_factory=dict)
    """Fréchet distance and diversity of fresh renders of the same prompts."""
    taught: Mapping[str, Comparison] = field(default_factory=dict)
    """Tag → strict of this model, with the teacher of that tag as `base`.  AVERAGE is their mean."""
    invalid: Mapping[str, int] = field(default_factory=dict)
    """Reward → number of images without a score, of both models together."""
    blind: tuple[str, ...] = ()
    """A sentence for each reward that saw nothing in any image."""
    distances: Mapping[str, float] = field(default_factory=dict)
    """Name → distance to other images by features of CLIP."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Set of pictures on disk → the format of its files, such as PNG."""


AVERAGE = "average"
TEACHERS_NOTE = "Teachers draw the prompts of their own tags; *: above the teacher by more than the 95 % interval."


def rows_by_tag(records: Sequence[dict]) -> dict[str, np.ndarray]:
    """Return tag → row numbers of its records, tags in the order in which they first occur.

    InputError for a record whose tag is a list or an object, as a folder of pictures from elsewhere may hold one.
    """
    for record in records:
        check_tag(record, f"prompt {record['prompt']!r}")
    tags = dict.fromkeys(record["tag"] for record in records)
    return {tag: np.array([i for i, record in enumerate(records) if record["tag"] == tag]) for tag in tags}


def compare_figures(
    tuned: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray] | None,
    strata: Sequence[np.ndarray],
    draws: int,
    rng: np.random.Generator,
    prompts: np.ndarray | None = None,
) -> dict[str, Comparison]:
    """Compare every metric over the prompts of the strata.

    Args:
        tuned: Metric → figures (P,) of the prompts.
        base: The same of the model to compare with.
        strata: Row numbers of the prompts of each tag.
        draws: Number of bootstrap resamples.
        rng: Source of the resamples.
        prompts: (P,) which prompt is each row's, where rows repeat a prompt.
    """
    a = np.stack(list(tuned.values()), 1)
    if base is None:
        return {name: Comparison(figure) for name, figure in zip(tuned, estimates(a, strata, draws, rng, prompts))}
    b = np.stack([base[name] for name in tuned], 1)
    figures = estimates(np.concatenate([a, b, a - b], 1), strata, draws, rng, prompts)
    return {name: Comparison(*figures[i :: len(tuned)]) for i, name in enumerate(tuned)}


def averaged_tags(split: str, tags: Iterable[str]) -> list[str]:
    """Return the tags whose mean is the overall score: GenEval's, without the one that test cannot hold out."""
    six = [tag for tag in tags if tag in GENEVAL_TAGS]
    return [tag for tag in six if split != "test" or tag != "single_object"] or six


def render_report(report: Report) -> Group:
    """Lay a report out for a terminal of 80 columns: overall by metric, then tag by tag."""
    from ..data.prompt_lists import DEFAULT_TAG

    shapes = isinstance(report.suite, ShapesSettings)
    parts = [headline(report), *model_lines(report), overall_table(report)]
    if shapes:
        parts += [shapes_note(report), "", tag_table(report), left_out_note(report)]
    else:
        parts += [tag_table(report)] if list(report.tags) != [DEFAULT_TAG] else []
        parts.append(
            f"{report.images} pictures a prompt. In brackets: 95 % of {report.draws} bootstrap draws of prompts."
        )
        parts += [f"{name} could not score {count} pictures." for name, count in report.invalid.items() if count]
        parts += [f"{name}: its mean is without {tags}, where it scored nothing." for name, tags in unscored(report)]
        parts += [f"{sentence}." for sentence in report.blind]
        parts += [f"{name} {value:.4g}" for name, value in report.distances.items()]
        parts += format_notes(report.formats)
    if report.taught:
        rows = ([tag, *teacher_cells(comparison)] for tag, comparison in report.taught.items())
        parts.append(figure_table("strict", ("teacher", "student", "delta"), rows))
        parts.append(TEACHERS_NOTE)
    return Group(*(Text(part) if isinstance(part, str) else part for part in parts))


def unscored(report: Report) -> list[tuple[str, str]]:
    """Return every metric that has no score in some tag, with those tags."""
    tags = {name: [tag for tag, figures in report.tags.items() if name not in figures] for name in report.overall}
    return [(name, ", ".join(missing)) for name, missing in tags.items() if missing]


def headline(report: Report) -> str:
    """Write the suite and the number of tags in the mean."""
    if not isinstance(report.suite, ShapesSettings):
        return f"{report.suite}: mean over {len(report.tags)} tags"
    count = len(averaged_tags(report.suite.split, report.prompts))
    return f"shapes, {report.suite.split} split: mean over {count} of GenEval's 6 tags"


def model_lines(report: Report) -> list[str]:
    """Name the model, and its base where there is one."""
    return [report.model] if report.against is None else [f"tuned  {report.model}", f"base   {report.against}"]


def figure_table(corner: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Make a table of figures, aligned to the right, whose first column holds the names of the rows."""
    table = Table(box=box.SIMPLE)
    table.add_column(corner, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def overall_table(report: Report) -> Table:
    """Make the table of the means over tags, a row for each metric."""
    extra = {"Fréchet": report.frechet, "strict, all 6": report.six}
    figures = [*report.overall.items(), *((name, figure) for name, figure in extra.items() if figure is not None)]
    columns = ("score",) if report.against is None else ("base", "tuned", "delta")
    return figure_table("", columns, ([name, *comparison_cells(figure)] for name, figure in figures))


def comparison_cells(figure: Comparison) -> list[str]:
    """Write a figure as the cells of a row: the score, or base, tuned and delta."""
    if figure.base is None:
        return [estimate_text(figure.tuned)]
    return [estimate_text(figure.base), estimate_text(figure.tuned), estimate_text(figure.delta, "+")]


def teacher_cells(figure: Comparison) -> list[str]:
    """Write teacher, student and delta; a star where the student is above the teacher beyond the interval."""
    low = None if figure.delta is None else figure.delta.low
    *cells, delta = comparison_cells(figure)
    return [*cells, delta + "*" * (low is not None and low > 0)]


def tag_table(report: Report) -> Table:
    """Make the table of the tags: a row for each tag, a column for each metric of single images."""
    metrics, tags = list(report.overall), list(report.tags)
    if isinstance(report.suite, ShapesSettings):
        metrics = [name for name in VERDICTS if name in report.overall]
        tags = sorted(tags, key=(*GENEVAL_TAGS, "text").index)
    starred = "single_object" if isinstance(report.suite, ShapesSettings) else None
    rows = (
        [
            tag + "*" * (tag == starred),
            str(report.prompts[tag]),
            *(brief(report.tags[tag].get(name)) for name in metrics),
        ]
        for tag in tags
    )
    return figure_table("base→tuned" if report.against is not None else "", ("prompts", *metrics), rows)


def shapes_note(report: Report) -> str:
    """Explain the table of the suite `shapes`: intervals, Fréchet distance, and what true images get."""
    truth = ", ".join(f"{name} {value:.3g}" for name, value in report.truth.items())
    return (
        f"{report.images} images a prompt. In brackets: 95 % of {report.draws} bootstrap draws of the "
        f"prompts within each tag. Fréchet: lower is better. Fresh renders of the same prompts get {truth}."
    )


def format_notes(formats: Mapping[str, str]) -> list[str]:
    """Name the formats of the sets of pictures, and warn where they differ."""
    if not formats:
        return []
    notes = ["Files: " + ", ".join(f"{name} {kind}" for name, kind in formats.items()) + "."]
    if len(set(formats.values())) > 1:
        notes.append("Warning: what JPEG and the like lose is part of every difference; compare files of one format.")
    return notes


def left_out_note(report: Report) -> str:
    """Name the tags that are not part of the mean."""
    notes = ["text is not part of the mean over tags."] if "text" in report.tags else []
    if "single_object" in report.tags:
        notes.append("* A lone object has no fact that could be held out, so the test mean leaves it out.")
    return " ".join(notes)


def brief(figure: Comparison | None) -> str:
    """Write a figure with two digits: .51, or .43→.51 beside a base, or nothing where there is none."""
    if figure is None:
        return ""
    values = [figure.tuned] if figure.base is None else [figure.base, figure.tuned]
    return "→".join(without_zero(f"{estimate.value:.2f}") for estimate in values)
