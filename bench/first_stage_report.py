"""The report of first_stage.py: gains in few and many steps, and the exposure bias, as a plot and a table of the docs.

Reads bench/results/first_stage and nothing else; a method without a result is left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from first_stage import DRAWN_STEPS, RESULTS, SHARES, SIDES, STARTS, SUITE
from matplotlib.figure import Figure

from afterflow.evaluation.differences import difference, gain_over_base, seed_noise
from afterflow.evaluation.report import averaged_tags, rows_by_tag
from afterflow.evaluation.shapes_suite import prompts_of_suite, suite_prompts
from afterflow.experiment.intervals import Estimate, estimate_text
from afterflow.experiment.serialization import to_json

RESULT = RESULTS.parent / "first_stage.json"
DOCS = Path(__file__).parents[1] / "docs" / "algorithms"
PLOT, PAGE = DOCS / "curves" / "exposure_bias.png", DOCS / "soar.md"
BEGIN, END = "<!-- python bench/first_stage.py report -->\n", "<!-- end of the report -->\n"
NAMES = {
    "base": "pretraining alone",
    "sft": "SFT",
    "sft_matched": "SFT on three times the states",
    "soar": "SOAR, two points",
    "soar_paper": "SOAR as published",
}
COLORS = {"base": "#5b6470", "sft": "#0b57b0", "sft_matched": "#7fb0e0", "soar": "#b3560a", "soar_paper": "#e0a060"}
SHOWN_START = STARTS[-1]
"""Start of the paths of which the table tells the bias: from later times the picture is not yet decided."""


def write_report() -> None:
    """Write bench/results/first_stage.json, the plot and the table of the page; print the table."""
    report = make_report()
    RESULT.write_text(json.dumps(report) + "\n")
    draw(report)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table(report) + END + rest.split(END)[1], encoding="utf-8")
    print(table(report))


def make_report() -> dict[str, Any]:
    """Gains over pretraining alone, differences of the methods and the exposure bias, as JSON."""
    prompts = prompts_of_suite(suite_prompts(SUITE, SIDES))
    rows = rows_by_tag(prompts)
    strata = [rows[tag] for tag in averaged_tags(SUITE.split, rows)]
    entries, differences = [], []
    for share in SHARES:
        stored = {name: results_of(share, name) for name in NAMES}
        stored = {name: results for name, results in stored.items() if results}
        every = {name: {steps: figures(results, steps) for steps in DRAWN_STEPS} for name, results in stored.items()}
        for name, results in stored.items():
            entries.append(
                {"share": share, "name": name, "seeds": len(results), "bias": mean_bias(results)}
                | {f"strict_{steps}": level(every[name][steps], strata) for steps in DRAWN_STEPS}
                | {f"gain_{steps}": gain(every, name, steps, strata) for steps in DRAWN_STEPS}
                | {"seconds": [one["seconds"] for one in results if "seconds" in one]}
            )
        differences += [
            {"share": share, "first": "soar", "second": name}
            | {f"strict_{steps}": apart(every["soar"][steps], every[name][steps], strata) for steps in DRAWN_STEPS}
            for name in ("sft", "sft_matched")
            if {"soar", name} <= every.keys()
        ]
    command = " && ".join(
        f"python bench/first_stage.py {work}" for work in ("pretrain", "train --seeds 0 1 2", "report")
    )
    return {"suite": to_json(SUITE), "methods": entries, "differences": differences, "command": command}


def results_of(share: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"{share}_{name}_[0-9].json"))]


def figures(results: Sequence[dict[str, Any]], steps: int) -> np.ndarray:
    return np.array([one["drawn"][str(steps)]["strict"] for one in results])


def level(scores: np.ndarray, strata: Sequence[np.ndarray]) -> float:
    return float(np.mean([scores[:, part].mean() for part in strata]))


def gain(every: Mapping[str, Any], name: str, steps: int, strata: Sequence[np.ndarray]) -> dict[str, Any] | None:
    if name == "base":
        return None
    return to_json(gain_over_base(every[name][steps], every["base"][steps][0], strata))


def apart(first: np.ndarray, second: np.ndarray, strata: Sequence[np.ndarray]) -> dict[str, Any]:
    return to_json(difference(first, second, strata, seed_noise([first, second], strata)))


def mean_bias(results: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The errors along the paths, averaged over seeds."""
    return [
        {key: float(np.mean([one[key] for one in ones])) for key in ("start", "time", "line", "own")}
        for ones in zip(*(result["bias"] for result in results))
    ]


def path_from(bias: Sequence[Mapping[str, float]], start: float) -> list[Mapping[str, float]]:
    """The points of the path whose start is nearest."""
    nearest = min({point["start"] for point in bias}, key=lambda time: abs(time - start))
    return [point for point in bias if point["start"] == nearest]


def table(report: Mapping[str, Any]) -> str:
    """The table of the page, with the plot above it."""
    few, many = DRAWN_STEPS
    head = (
        f"![Exposure bias](curves/{PLOT.name})\n\n"
        f"| pretraining | then | strict, {few} steps | strict, {many} steps | error on the line | on its own path | "
        "ratio |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(rows_of(report)) + "\n"


def rows_of(report: Mapping[str, Any]) -> Iterator[str]:
    for entry in report["methods"]:
        last = path_from(entry["bias"], SHOWN_START)[-1]
        cells = [f"{entry['share']} %", NAMES[entry["name"]]]
        for steps in DRAWN_STEPS:
            found = entry[f"gain_{steps}"]
            cells.append(f"{entry[f'strict_{steps}']:.3f}" if found is None else estimate_text(Estimate(**found), "+"))
        cells += [f"{last['line']:.4f}", f"{last['own']:.4f}", f"{last['own'] / last['line']:.2f}"]
        yield f"| {' | '.join(cells)} |\n"


def draw(report: Mapping[str, Any]) -> None:
    """Draw the ratio of both errors along the path, for each share of pretraining."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axis, share in zip(figure.subplots(1, len(SHARES), sharey=True), SHARES):
        for entry in (entry for entry in report["methods"] if entry["share"] == share):
            path = path_from(entry["bias"], SHOWN_START)
            ratios = [point["own"] / point["line"] for point in path]
            axis.plot(
                [point["time"] for point in path], ratios, color=COLORS[entry["name"]], label=NAMES[entry["name"]]
            )
        axis.axhline(1, color="#d8d8dc", zorder=0)
        axis.invert_xaxis()
        axis.set(title=f"after {share} % of pretraining", xlabel="time t, from noise to picture")
    figure.axes[0].set_ylabel("error on its own path / on the line")
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(PLOT, dpi=100)
