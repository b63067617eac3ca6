"""The report of first_stage.py: gains in few and many steps, and the exposure bias, as a plot and a table of the docs.

Reads bench/results/first_stage and nothing else; a method without a result is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from first_stage import DRAWN_STEPS, MEASURED, REFERENCE, RESULTS, SHARES, SUITE
from matplotlib.figure import Figure
from trainings import replace_part, results_of, store, strata_of

from afterflow.evaluation.differences import difference, gain_over_base, seed_noise
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
    "soar": "SOAR, two points, λ = .5",
    "soar_paper": "SOAR, six points, λ = 1",
}
COLORS = {"base": "#5b6470", "sft": "#0b57b0", "sft_matched": "#7fb0e0", "soar": "#b3560a", "soar_paper": "#e0a060"}


def write_report() -> None:
    """Write bench/results/first_stage.json, the plot and the table of the page; print the table."""
    report = make_report()
    store(RESULT, report)
    draw(report)
    replace_part(PAGE, BEGIN, END, table(report))
    print(table(report))


def make_report() -> dict[str, Any]:
    """Gains over pretraining alone, differences of SOAR from both kinds of SFT, and the exposure bias, as JSON."""
    strata = strata_of(SUITE)[2]
    entries, differences = [], []
    for share in (*SHARES, REFERENCE):
        stored = {name: results for name in NAMES if (results := results_of(RESULTS, f"{share}_{name}"))}
        every = {name: {steps: figures(results, steps) for steps in DRAWN_STEPS} for name, results in stored.items()}
        for name, results in stored.items():
            entries.append(
                {"share": share, "name": name, "seeds": len(results), "bias": mean_bias(results)}
                | {f"strict_{steps}": level(every[name][steps], strata) for steps in DRAWN_STEPS}
                | {f"gain_{steps}": gain(every, name, steps, strata) for steps in DRAWN_STEPS}
                | {"seconds": [one["seconds"] for one in results if "seconds" in one]}
            )
        differences += [
            {"share": share, "first": first, "second": second}
            | {f"strict_{steps}": apart(every[first][steps], every[second][steps], strata) for steps in DRAWN_STEPS}
            for first in ("soar", "soar_paper")
            for second in ("sft", "sft_matched")
            if {first, second} <= every.keys()
        ]
    work = "python bench/first_stage.py"
    command = f"{work} pretrain && {work} train --seeds 0 1 2 && {work} report"
    return {"measured": MEASURED, "methods": entries, "differences": differences, "command": command}


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
    """The exposure bias at each time, averaged over seeds."""
    return [
        {key: float(np.mean([one[key] for one in ones])) for key in ones[0]}
        for ones in zip(*(result["bias"] for result in results), strict=True)
    ]


def table(report: Mapping[str, Any]) -> str:
    """The table of the page, with the plot above it."""
    (few, many), last = DRAWN_STEPS, report["methods"][0]["bias"][-1]["time"]
    head = (
        f"![Exposure bias](curves/{PLOT.name})\n\n"
        f"| pretraining | then | strict, {few} steps | strict, {many} steps | "
        f"error at t = {last:.2f}, own path / line | predicted noise, own path / line |\n|---|---|---|---|---|---|\n"
    )
    return head + "".join(rows_of(report)) + "\n"


def rows_of(report: Mapping[str, Any]) -> Iterator[str]:
    for entry in report["methods"]:
        last = entry["bias"][-1]
        cells = ["to its end" if entry["share"] == REFERENCE else f"{entry['share']} %", NAMES[entry["name"]]]
        for steps in DRAWN_STEPS:
            gained = entry[f"gain_{steps}"]
            level = f"{entry[f'strict_{steps}']:.3f}"
            cells.append(level if gained is None else estimate_text(Estimate(**gained), "+"))
        cells += [f"{last['own'] / last['line']:.2f}", f"{last['own_noise'] / last['line_noise']:.3f}"]
        yield f"| {' | '.join(cells)} |\n"


RATIOS = {
    "error of the picture, own path / line": ("own", "line"),
    "predicted noise, own path / line": ("own_noise", "line_noise"),
}
"""Axis of the plot → the two figures whose ratio it shows."""


def draw(report: Mapping[str, Any]) -> None:
    """Draw both ratios along the path, for each share of pretraining, beside those of the reference."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots(len(RATIOS), len(SHARES), sharex=True, sharey="row", squeeze=False)
    for row, (label, (own, line)) in zip(axes, RATIOS.items()):
        for axis, share in zip(row, SHARES):
            for entry in (entry for entry in report["methods"] if entry["share"] in (share, REFERENCE)):
                points = [point for point in entry["bias"] if own in point]
                style = {"color": "black", "linestyle": ":", "label": "trained to its end"}
                if entry["share"] != REFERENCE:
                    style = {"color": COLORS[entry["name"]], "label": NAMES[entry["name"]]}
                axis.plot([point["time"] for point in points], [point[own] / point[line] for point in points], **style)
        row[0].set_ylabel(label)
    for axis, share in zip(axes[0], SHARES):
        axis.set_title(f"after {share} % of pretraining")
    for axis in axes[-1]:
        axis.set_xlabel("time t, from noise to picture")
    axes[0][0].invert_xaxis()  # shared by all
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.savefig(PLOT, dpi=100)
