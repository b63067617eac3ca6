"""One page about several runs: a table, curves, pictures; no network needed to read it."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from ..experiment.intervals import Estimate, estimate_text
from ..system.atomic_files import make_folder, replacing, write_text_atomically
from ..system.escapes import plot_text

TEMPLATES = Path(__file__).parent / "templates"
METRICS = ("strict", "closed", "partial", "fidelity", "diversity")


def write_page(folder: Path, data: Mapping[str, Any], title: str, command: str) -> Path:
    """Write index.html, which holds everything it shows, and comparison.png beside it; return the page's path."""
    make_folder(folder)
    figure = curves(data["methods"])
    with replacing(folder / "comparison.png") as partial:
        figure.savefig(partial, dpi=110, format="png")
    loader = jinja2.FileSystemLoader(TEMPLATES)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template.filters["estimate"] = lambda figure, sign="": estimate_text(Estimate(**figure), sign)
    text = template.get_template("comparison.html.j2").render(
        title=title,
        command=command,
        suite=data["suite"],
        methods=[shown(method) for method in data["methods"]],
        metrics=METRICS,
        curves=embedded((folder / "comparison.png").read_bytes()),
    )
    write_text_atomically(folder / "index.html", text)
    return folder / "index.html"


def shown(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a method with its pictures in it."""
    first = Path(method["runs"][0]["folder"])
    pictures = {name: first / f"{name}.png" for name in ("before_after", "tree")}
    return {**method, **{name: embedded(file.read_bytes()) for name, file in pictures.items() if file.is_file()}}


def embedded(png: bytes) -> str:
    """Return a picture as a URL that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def curves(methods: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the held-out rewards of every run, against seconds of training and against velocity evaluations."""
    names = sorted(
        {name for m in methods for run in m["runs"] for point in run["curve"] for name in point if "/" in name}
    )
    axes_of = (("seconds", 60, "minutes of training"), ("evaluations", 1e6, "million velocity evaluations"))
    figure = Figure(figsize=(11, 3.4 * max(1, len(names))), layout="constrained")
    axes = figure.subplots(max(1, len(names)), 2, squeeze=False)
    colors = matplotlib.color_sequences["tab10"]
    for row, name in zip(axes, names):
        for axis, (x, unit, label) in zip(row, axes_of):
            for i, method in enumerate(methods):
                for j, run in enumerate(method["runs"]):
                    points = [(point[x] / unit, point[name]) for point in run["curve"] if name in point]
                    axis.plot(
                        *zip(*points),
                        color=colors[i % 10],
                        alpha=0.8,
                        label=plot_text(method["name"]) if j == 0 else None,
                    )
            axis.set(xlabel=label, title=plot_text(name.removeprefix("eval/")) + ", held-out prompts")
            axis.grid(alpha=0.3)
        row[0].legend(fontsize=8)
    return figure
