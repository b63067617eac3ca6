"""docs/algorithms/curves: how each method of bench/results/family learnt, the others in grey.

    python bench/curves.py

One picture for each page: strict on held-out prompts against minutes of training, a line for each seed.
"""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULT = Path(__file__).parent / "results" / "family" / "comparison.json"
OUT = Path(__file__).parents[1] / "docs" / "algorithms" / "curves"
PAGES = {
    "ddpo": {"shapes_ddpo": "#1f77b4"},
    "flow_grpo": {
        "shapes_flow_grpo_full": "#1f77b4",
        "shapes_flow_grpo_cps": "#ff7f0e",
        "shapes_flow_grpo_guard": "#2ca02c",
    },
    "dance_grpo": {"shapes_dance_grpo": "#1f77b4"},
    "mix_grpo": {"shapes_mix_grpo": "#1f77b4"},
    "branch_grpo": {"shapes_branch_grpo": "#1f77b4"},
    "pref_grpo": {"shapes_pref_grpo": "#1f77b4"},
}
"""Page → the methods it is about, with their colours."""


def draw(axis: Axes, methods: list[dict], shown: dict[str, str]) -> None:
    """The methods shown over all the others."""
    for method in sorted(methods, key=lambda method: method["name"] in shown):
        color = shown.get(method["name"])
        for i, run in enumerate(method["runs"]):
            minutes = [point["seconds"] / 60 for point in run["curve"]]
            strict = [point["eval/shapes_strict"] for point in run["curve"]]
            style = {"color": color or "#d8d8dc", "linewidth": 2 if color else 1}
            axis.plot(minutes, strict, label=method["name"] if color and i == 0 else None, **style)
    axis.set(xlabel="minutes of training, one core", ylabel="strict, held-out prompts")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", fontsize=8, frameon=False)


def main() -> None:
    methods = json.loads(RESULT.read_text())["methods"]
    OUT.mkdir(exist_ok=True)
    for page, shown in PAGES.items():
        figure = Figure(figsize=(6, 3), layout="constrained")
        draw(figure.subplots(), methods, shown)
        figure.savefig(OUT / f"{page}.png", dpi=100)
        print(OUT / f"{page}.png")


if __name__ == "__main__":
    main()
