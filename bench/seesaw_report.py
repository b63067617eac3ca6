"""The report of seesaw.py: what each way gained of both tasks, differences with intervals, a plot and a table.

Reads bench/results/seesaw and nothing else; a method without a result is left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from seesaw import METHODS, RESULTS, SIDES, STUDENT, SUITE, TEACHER, TOTAL, WIDE, total_seconds
from trainings import replace_part, results_of, store

from afterflow.evaluation.conclusion import lead
from afterflow.evaluation.differences import PROMPTS_ALONE, SeedNoise, crossed_interval, difference, seed_noise
from afterflow.evaluation.report import rows_by_tag
from afterflow.evaluation.shapes_suite import prompts_of_suite, suite_prompts
from afterflow.experiment.intervals import Estimate, estimate_text
from afterflow.experiment.serialization import to_json
from afterflow.recipes.seesaw import SEESAW_TASKS

RESULT = RESULTS.parent / "seesaw.json"
DOCS = Path(__file__).parents[1] / "docs" / "algorithms"
PLOT = DOCS / "curves" / "seesaw.png"
PAGE = DOCS / "flow_opd.md"
BEGIN, END = "<!-- python bench/seesaw.py report -->\n", "<!-- end of the report -->\n"
FIGURE_OF = {"composition": "strict", "style": "style"}
"""Task → the figure of a prompt that it is judged by."""
RECIPES_OF = {
    "rewards_50": "shapes_seesaw_rewards",
    "prompts_50": "shapes_seesaw_prompts",
    "opd": "shapes_seesaw_opd",
    "cascade": "shapes_seesaw_cascade",
}
"""Method → the recipe of the same run, but for its iterations and the number of prompts that are drawn from."""
Figures = dict[str, NDArray[np.floating]]
"""Figure → (S, P): S trainings on P prompts."""


def write_report() -> None:
    """Write bench/results/seesaw.json, the plot and the table of the page; print the table."""
    report = make_report()
    store(RESULT, report)
    draw(report)
    replace_part(PAGE, BEGIN, END, block(report))
    print(block(report))


def block(report: Mapping[str, Any]) -> str:
    """The part of the page that is made of the numbers."""
    return table(report) + "\n" + findings(report)


def make_report() -> dict[str, Any]:
    """The gains of every method over the base, and the differences of every two methods, as JSON."""
    prompts = prompts_of_suite(suite_prompts(SUITE, SIDES))
    rows = rows_by_tag(prompts)
    strata = {task: [rows[tag] for tag in tags] for task, tags in SEESAW_TASKS.items()}
    stored = {name: results_of(RESULTS, name) for name in METHODS}
    raw = {name: stacked([one["figures"] for one in results]) for name, results in stored.items() if results}
    base = stacked([json.loads((RESULTS / "base.json").read_text())["figures"]])
    every = {name: by_task(figures) for name, figures in raw.items()}
    of_base = by_task(base)
    if raw.keys() >= SEESAW_TASKS.keys():  # else there is nothing to stand between
        standings = {name: between(figures, every, strata) for name, figures in every.items()}
        every = {name: figures | {"both": standings[name]} for name, figures in every.items()}
        of_base["both"] = np.zeros_like(base["style"])
        strata["both"] = [*strata["composition"], *strata["style"]]
    text = rows["text"]
    return {
        "suite": to_json(SUITE),
        "tasks": {task: list(tags) for task, tags in SEESAW_TASKS.items()},
        "seconds": {"total": TOTAL, "teacher": TEACHER, "student": STUDENT},
        "base": {
            task: float(np.mean([of_base[task][0][part].mean() for part in strata[task]])) for task in SEESAW_TASKS
        },
        "methods": [
            entry(name, every[name], of_base, strata, stored[name])
            | {"text": float(raw[name]["strict"][:, text].mean())}
            for name in every
        ],
        "differences": list(differences(every, strata)),
        "command": "python bench/seesaw.py train --seeds 0 1 2 && python bench/seesaw.py report",
    }


def stacked(figures: Sequence[Mapping[str, Sequence[float]]]) -> Figures:
    return {name: np.array([one[name] for one in figures]) for name in figures[0]}


def by_task(figures: Figures) -> Figures:
    """The figure of each task, and fidelity."""
    return {task: figures[figure] for task, figure in FIGURE_OF.items()} | {"fidelity": figures["fidelity"]}


def between(
    figures: Figures, every: Mapping[str, Figures], strata: Mapping[str, Sequence[np.ndarray]]
) -> NDArray[np.floating]:
    """Where a method stands on each prompt between two specialists, (S, P): 0 is the other task's, and 1 its own.

    That is so in the mean over a task's prompts; the specialists' own levels are taken as known.
    """
    standing = np.zeros_like(figures["style"])
    for task, other in (("composition", "style"), ("style", "composition")):
        own, low = (every[name][task].mean(0) for name in (task, other))
        span = float(np.mean([(own - low)[part].mean() for part in strata[task]]))
        for part in strata[task]:
            standing[:, part] = (figures[task] - low)[:, part] / span
    return standing


def noise_of(figures: Sequence[np.ndarray], strata: Sequence[np.ndarray]) -> SeedNoise:
    """The noise of seeds of methods; that of prompts alone where none has a second seed."""
    return seed_noise(figures, strata) if any(len(one) > 1 for one in figures) else PROMPTS_ALONE


def entry(
    name: str, figures: Figures, base: Figures, strata: Mapping[str, Sequence[np.ndarray]], stored: Sequence[dict]
) -> dict[str, Any]:
    """One method: its gains over the base with intervals, and those of each seed."""
    gains: dict[str, Any] = {}
    for task, parts in strata.items():
        of_task = figures[task]
        apart = of_task - base[task][0]
        noise = noise_of([of_task], parts)
        gains[task] = to_json(crossed_interval(apart.mean(0), 1 / len(of_task), parts, noise, 0.95))
        gains.setdefault("seeds", {})[task] = [float(np.mean([one[part].mean() for part in parts])) for one in apart]
    return {
        "name": name,
        "recipe": RECIPES_OF.get(name),
        "says": METHODS[name].says,
        "seconds": total_seconds(name),
        "gains": gains,
        "fidelity": float(figures["fidelity"].mean()),
        "hardware": stored[0]["hardware"],
    }


def differences(every: Mapping[str, Figures], strata: Mapping[str, Sequence[np.ndarray]]) -> Iterator[dict[str, Any]]:
    """By how much the first of every two methods is above the second, in each task and in both."""
    for a, b in combinations(every, 2):
        first, second = every[a], every[b]
        apart = {
            task: to_json(difference(first[task], second[task], parts, noise_of([first[task], second[task]], parts)))
            for task, parts in strata.items()
        }
        yield {"first": a, "second": b, "of_seeds": max(len(first["style"]), len(second["style"])) > 1} | apart


def table(report: Mapping[str, Any]) -> str:
    """The table of the page, with the plot above it."""
    base = report["base"]
    lines = [
        f"![Gains in both tasks](curves/{PLOT.name})\n",
        f"The base model has {base['composition']:.3f} in composition and {base['style']:.3f} in style. Gains over it "
        "on held-out prompts:\n",
        "| way | seconds, teachers included | composition | style | both | text | fidelity |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in report["methods"]:
        cells = [estimate_text(Estimate(**method["gains"][task]), "+") for task in ("composition", "style")]
        both = estimate_text(Estimate(**method["gains"]["both"])) if "both" in method["gains"] else ""
        rest = f"{both} | {method['text']:.3f} | {method['fidelity']:.3f}"
        count = len(method["gains"]["seeds"]["style"])
        seeds = "" if count == 3 else f", {count} seed{'s' * (count > 1)}"
        lines.append(f"| {method['says']}{seeds} | {method['seconds']} | {' | '.join(cells)} | {rest} |")
    return "\n".join(lines) + "\n"


def findings(report: Mapping[str, Any]) -> str:
    """What the numbers say, as a list: the conflict, who is ahead of whom, and what rank and budget do."""
    gains = {method["name"]: method["gains"] for method in report["methods"]}
    lines = [*conflict_lines(gains), *rival_lines(report, gains), *budget_lines(gains)]
    return "".join(f"- {line}\n" for line in lines)


def conflict_lines(gains: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """How much the specialist of one task changes the other."""
    for task, other in (("style", "composition"), ("composition", "style")):
        if task in gains:
            lost, won = (text_of(Estimate(**gains[task][name])) for name in (other, task))
            yield f"The conflict: the specialist of {task} changes {other} by {lost}, and {task} by {won}."


def rival_lines(report: Mapping[str, Any], gains: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Whether Flow-OPD is ahead of what it competes with, in `both`."""
    mixed = [name for name in REWARDS if "both" in gains.get(name, {})]
    best = max(mixed, key=lambda name: gains[name]["both"]["value"], default="")
    for name, words in ((best, f"the best of the mixed rewards, `{best}`"), *RIVALS.items()):
        apart = lead(report, "opd", name, "both")
        if apart is not None:
            yield f"Flow-OPD is {standing(apart)} {words}: {text_of(apart)} in `both`."
    for name, words in WIDE_RIVALS.items():
        apart = lead(report, "wide_opd", name, "both")
        if apart is not None:
            yield f"At rank {WIDE} it is {standing(apart)} {words}: {text_of(apart)}."


def budget_lines(gains: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What a teacher reaches in its part of the seconds, and the student of that."""
    for task in SEESAW_TASKS:
        if {task, f"teacher_{task}", "opd"} <= gains.keys():
            whole, part, student = (gains[name][task]["value"] for name in (task, f"teacher_{task}", "opd"))
            yield (
                f"The budget: in {task} a teacher of {TEACHER} s gains {part:+.3f}, a specialist of {TOTAL} s "
                f"{whole:+.3f}, and the student {student:+.3f}."
            )


def standing(apart: Estimate) -> str:
    assert apart.low is not None and apart.high is not None
    return "ahead of" if apart.low > 0 else "behind" if apart.high < 0 else "neither clearly ahead of nor behind"


def text_of(estimate: Estimate) -> str:
    return estimate_text(estimate, "+")


REWARDS = ("rewards_25", "rewards_50", "rewards_75")
RIVALS = {
    "prompts_50": "mixed prompts at the same cost",
    "merge": "the merge that it starts from",
    "opd_free": "its variant from the base without an anchor",
    "cascade": "composition, then style",
    "cascade_back": "style, then composition",
}
WIDE_RIVALS = {"wide_rewards_50": "mixed rewards", "wide_prompts_50": "mixed prompts", "wide_merge": "its merge"}
CURVES = {
    "mixed rewards": ("composition", "rewards_25", "rewards_50", "rewards_75", "style"),
    "mixed prompts": ("composition", "prompts_25", "prompts_50", "prompts_75", "style"),
}
POINTS = ("teacher_composition", "teacher_style", "merge", "opd", "opd_free", "cascade", "cascade_back")
COLORS = ("#b3560a", "#0b57b0", "#5b6470", "#5b6470", "#9a2aa0", "#1a7a3c", "#7fbf7b", "#a3123f", "#e08aa0")


def draw(report: Mapping[str, Any]) -> None:
    """Draw the frontiers of the mixes and the other ways, with intervals."""
    gains = {method["name"]: method["gains"] for method in report["methods"]}
    says = {method["name"]: method["says"] for method in report["methods"]}
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    for (label, names), color in zip(CURVES.items(), COLORS):
        draw_points(axis, [gains[name] for name in names if name in gains], color, label, "o-")
    for name, color in zip(POINTS, COLORS[2:]):
        if name in gains:
            marker = {"teacher_composition": "<", "teacher_style": "^"}.get(name, "s")
            draw_points(axis, [gains[name]], color, says[name], marker)
    axis.axhline(0, color="#d8d8dc", zorder=0)
    axis.axvline(0, color="#d8d8dc", zorder=0)
    axis.set(xlabel="gain in composition (strict), held-out prompts", ylabel="gain in style, held-out prompts")
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(PLOT, dpi=100)


def draw_points(axis: Axes, gains: Sequence[Mapping[str, Any]], color: str, label: str, marker: str) -> None:
    """Draw methods with their intervals, joined where the marker has a line."""
    x, y = ([gain[task]["value"] for gain in gains] for task in ("composition", "style"))
    axis.plot(x, y, marker, color=color, label=label, markersize=5, linewidth=1.2)
    for gain in gains:
        of = {task: gain[task] for task in ("composition", "style")}
        line = {"color": color, "linewidth": 0.7, "alpha": 0.6}
        if of["composition"]["low"] is not None:
            axis.plot(*span(of["composition"]), [of["style"]["value"]] * 2, **line)
            axis.plot([of["composition"]["value"]] * 2, *span(of["style"]), **line)


def span(estimate: Mapping[str, float]) -> tuple[list[float]]:
    return ([estimate["low"], estimate["high"]],)
