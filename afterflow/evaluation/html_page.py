"""One page about several runs: what they say in sentences, a chart, tables, pictures; no network needed to read it."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..experiment.intervals import Estimate
from ..experiment.run_folder import duration
from ..system.atomic_files import make_folder, replacing, write_text_atomically
from ..system.escapes import one_line
from ..system.page_style import policy_digest, with_palette
from .conclusion import conclusion, is_below, lead, reversed_difference
from .figure_text import figure_text, interval_text, number_text
from .gain_chart import (
    HEADLINE,
    MOST_BANDS,
    Chart,
    Series,
    chart_figure,
    gain_chart,
    gain_series,
    measure_chart,
)

TEMPLATES = Path(__file__).parent / "templates"
METRICS = ("strict", "closed", "partial", "fidelity", "diversity")


def write_page(folder: Path, data: Mapping[str, Any], title: str, command: str) -> Path:
    """Write index.html, which holds everything it shows, and comparison.png beside it; return the page's path."""
    make_folder(folder)
    ranked = gain_series(data["methods"])
    with replacing(folder / "comparison.png") as partial:
        chart_figure(ranked, title).savefig(partial, dpi=110, format="png")
    template = environment().get_template("comparison.html.j2")
    text = template.render(title=one_line(title), command=one_line(command), **content(data, ranked))
    write_text_atomically(folder / "index.html", text)
    return folder / "index.html"


def environment() -> jinja2.Environment:
    """Return what renders the templates: every text is escaped, and figures are written alike."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "one_line": one_line,
        "duration": duration,
        "number": lambda figure, sign="": number_text(Estimate(**figure).value, sign),
        "interval": lambda figure, sign="": interval_text(Estimate(**figure), sign),
        "fell": lambda figure: is_below(Estimate(**figure)),
        "evaluations": evaluations_text,
    }
    return made


def content(data: Mapping[str, Any], ranked: Sequence[Series]) -> dict[str, Any]:
    """Return what the template shows of a comparison."""
    chart, style = gain_chart(ranked), page_style(len(ranked))
    best, methods = ranked[0].name, [shown(method) for method in data["methods"]]
    leads = {series.name: lead(data, best, series.name) for series in ranked}
    return {
        "suite": data["suite"],
        "methods": methods,
        "by_name": {method["name"]: method for method in methods},
        "metrics": list(METRICS),
        "sentences": conclusion(data, ranked),
        "ranked": ranked,
        "chart": chart,
        "chart_words": chart_words(ranked),
        "base": base_words(data["methods"]),
        "leads": {name: vars(reversed_difference(ahead)) for name, ahead in leads.items() if ahead is not None},
        "prompts": data["suite"]["prompts"],
        "has_seeds": any(len(series.seeds) > 1 for series in ranked),
        "unmeasured": any(not series.points for series in ranked),
        "most_bands": MOST_BANDS,
        "measures": measures(data["methods"], ranked),
        "style": style,
        "style_digest": policy_digest(style),
    }


def page_style(methods: int) -> str:
    """Return the style of the page: a row of the ranking that is pointed at dims what the chart draws of others."""
    dims = "".join(
        f".first:has(.row{i}:hover, .row{i} :focus-visible) [data-series]:not([data-series='{i}']) {{ opacity: .1; }}\n"
        for i in range(methods)
    )
    return with_palette(TEMPLATES / "comparison.css") + dims


def shown(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a method with its pictures in it."""
    first = Path(method["runs"][0]["folder"])
    pictures = {name: first / f"{name}.png" for name in ("before_after", "tree")}
    return {**method, **{name: embedded(file.read_bytes()) for name, file in pictures.items() if file.is_file()}}


def embedded(png: bytes) -> str:
    """Return a picture as a URL that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def chart_words(ranked: Sequence[Series]) -> str:
    """Say in words what the chart of gains shows."""
    gains = [f"{one_line(s.name)} {figure_text(s.gain, '+')} after {duration(s.seconds)}" for s in ranked]
    return f"Gain in {HEADLINE} over the base: " + "; ".join(gains)


def base_words(methods: Sequence[Mapping[str, Any]]) -> str:
    """Name the base, with its score where it is the same of all methods."""
    scores = {number_text(method["report"]["overall"][HEADLINE]["base"]["value"]) for method in methods}
    return f"base {scores.pop()}" if len(scores) == 1 else "base"


def evaluations_text(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return how many velocity evaluations each run took until its last measurement, where it was measured."""
    counts = [run["curve"][-1]["evaluations"] for run in runs if run["curve"]]
    return ", ".join(f"{count:,.0f}".replace(",", " ") for count in counts)


def measures(methods: Sequence[Mapping[str, Any]], ranked: Sequence[Series]) -> list[tuple[str, Chart, str]]:
    """Return name, chart and words of everything that was measured on held-out prompts while methods trained."""
    names = sorted({name for method in methods for point in method.get("curve", []) for name in point["means"]})
    charts = [(name, measure_chart(methods, ranked, name)) for name in names]
    return [(name, chart, measure_words(name, chart)) for name, chart in charts]


def measure_words(name: str, chart: Chart) -> str:
    """Say in words how a measure went, from the first measurement to the last."""
    ends = [
        f"{one_line(s.name)} {number_text(s.points[0][1].value)} to {number_text(s.points[-1][1].value)}"
        for s in chart.series
    ]
    return f"{name} on held-out prompts: " + "; ".join(ends)
