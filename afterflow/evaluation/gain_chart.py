"""The chart of a comparison: gains over the base against seconds of training, and where each method ended.

Left: the change of strict on held-out prompts while each method trained.  Right: its gain over the base on the prompts
of the page, with its interval and its runs.  Both have one axis, on which the base is 0.  Positions are shares of the
whole chart in percent, so that a page draws it in any width; `comparison.png` is drawn from the same series.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..experiment.intervals import Estimate, without_zero
from ..system.escapes import plot_text
from .figure_text import short_name

HEADLINE = "strict"
"""The metric by which methods are ranked."""
ON_THE_WAY = "shapes_strict"
"""The reward that measures it while a run trains."""
CURVE_COLORS = ("#0b57b0", "#b3560a", "#1a7a3c", "#9a2aa0", "#a3123f", "#5b6470")
"""The colours c0 to c5 of the palette on a light ground."""
DASHES = ("-", "--", ":")
"""Dashes of curves, by matplotlib's names, which are d0 to d2 of the page; the next ones follow when colours repeat."""
MOST_BANDS = 4
"""Number of methods, the best ones, whose curves have bands."""
UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}
"""Units of time, the longest first, in seconds."""
GAP = 4.0
"""Percent of the chart's width between its two parts."""


@dataclass(frozen=True)
class Series:
    """What is drawn of a method."""

    name: str
    rank: int
    """Its place by gain: 0 is the best."""
    points: Sequence[tuple[float, Estimate]]
    """Seconds of training and the value then."""
    seconds: float
    """Seconds of training of its runs, their mean."""
    gain: Estimate
    """Its gain over the base."""
    seeds: Sequence[float]
    """The gain of each run."""

    @property
    def color(self) -> int:
        """The number of its colour in the palette."""
        return self.rank % len(CURVE_COLORS)

    @property
    def dash(self) -> int:
        """The number of its dashes."""
        return self.rank // len(CURVE_COLORS) % len(DASHES)


def gain_series(methods: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Return the series of all methods of a comparison, the best first."""
    gain = lambda entry: Estimate(**entry[HEADLINE]["delta"])
    ranked = sorted(methods, key=lambda method: -gain(method["report"]["overall"]).value)
    return [
        Series(
            method["name"],
            rank,
            curve_points(method, "changes", ON_THE_WAY),
            mean(run["seconds_trained"] for run in method["runs"]),
            gain(method["report"]["overall"]),
            [gain(run["overall"]).value for run in method["runs"]],
        )
        for rank, method in enumerate(ranked)
    ]


def curve_points(method: Mapping[str, Any], kind: str, name: str) -> list[tuple[float, Estimate]]:
    """Return seconds and values of a method's curve, of one `kind`, "means" or "changes"; none of older comparisons."""
    points = method.get("curve", [])
    return [(point["seconds"], Estimate(**point[kind][name])) for point in points if name in point[kind]]


@dataclass(frozen=True)
class Axis:
    """An axis: the range of its values, and between which percents of the chart it lies."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]
    """Value and text of each tick."""

    def percent(self, value: float) -> float:
        """Return where a value is."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def marks(self) -> list[tuple[float, str]]:
        """Return where each tick is, and its text."""
        return [(self.percent(value), text) for value, text in self.ticks]


def value_axis(values: Iterable[float], sign: str = "", count: int = 9) -> Axis:
    """Return an upright axis that holds all values with some room, from the foot of the chart to its top."""
    values = list(values)
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - room, high + room
    ticks = nice_ticks(low, high, count)
    digits = decimals(ticks)
    texts = [without_zero(f"{tick:{sign}.{digits}f}").replace("-", "\N{MINUS SIGN}") if tick else "0" for tick in ticks]
    return Axis(low, high, 100, 0, list(zip(ticks, texts)))


def time_axis(seconds: Iterable[float], end: float, count: int = 4) -> tuple[Axis, str]:
    """Return an axis of seconds from 0 to the longest, and the unit of its ticks; it ends at `end` percent."""
    longest = max(seconds, default=1.0) or 1.0
    unit = next((name for name, size in UNITS.items() if longest > 2 * size), "seconds")
    size = UNITS[unit]
    ticks = nice_ticks(0, longest / size, count)
    digits = decimals(ticks)
    return Axis(0, longest * 1.02, 0, end, [(tick * size, f"{tick:.{digits}f}") for tick in ticks]), unit


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers within a range."""
    ticks = MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [round(float(tick), 10) for tick in ticks if low <= tick <= high * (1 + 1e-9)]


def decimals(ticks: Sequence[float]) -> int:
    """Return the number of decimals that tell ticks apart."""
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    return next((digits for digits in range(6) if abs(step * 10**digits - round(step * 10**digits)) < 1e-6), 6)


@dataclass(frozen=True)
class Chart:
    """A chart of methods, laid out in percent of its width and height."""

    series: Sequence[Series]
    x: Axis
    y: Axis
    unit: str
    """The unit of time of its ticks."""
    slots: Mapping[int, float]
    """Rank of a method → where its gain stands, at the right; none in a chart without gains."""

    @property
    def base(self) -> float:
        """Where the value 0 is, from the top."""
        return self.y.percent(0)

    def line(self, series: Series) -> str:
        """Return the path of a curve, in thousandths of the chart."""
        return "M" + "L".join(self._at(seconds, value.value) for seconds, value in series.points)

    def band(self, series: Series) -> str:
        """Return the path around a curve's intervals; empty where there are none."""
        ends = [(seconds, value.low, value.high) for seconds, value in series.points]
        known = [(seconds, low, high) for seconds, low, high in ends if low is not None and high is not None]
        if len(known) < 2 or series.rank >= MOST_BANDS:
            return ""
        upper = [self._at(seconds, high) for seconds, _, high in known]
        lower = [self._at(seconds, low) for seconds, low, _ in reversed(known)]
        return "M" + "L".join([*upper, *lower]) + "Z"

    def _at(self, seconds: float, value: float) -> str:
        return f"{10 * self.x.percent(seconds):.1f} {10 * self.y.percent(value):.1f}"


def gain_chart(series: Sequence[Series]) -> Chart:
    """Lay out the chart of gains: curves at the left, and at the right a slot for each method."""
    values = [0.0]
    for of_method in series:
        values += [end for _, value in of_method.points for end in interval_ends(value)]
        values += [*interval_ends(of_method.gain), *of_method.seeds]
    width = min(45.0, 8 + 4 * len(series))
    x, unit = time_axis([of_method.seconds for of_method in series], 100 - GAP - width)
    slots = {s.rank: round(100 - width + width * (s.rank + 0.5) / len(series), 2) for s in series}
    return Chart(series, x, value_axis(values, "+"), unit, slots)


def measure_chart(methods: Sequence[Mapping[str, Any]], ranked: Sequence[Series], name: str) -> Chart:
    """Lay out the means of one measure on held-out prompts against seconds of training."""
    by_name = {method["name"]: method for method in methods}
    curves = [(series, curve_points(by_name[series.name], "means", name)) for series in ranked]
    shown = [Series(s.name, s.rank, points, s.seconds, s.gain, ()) for s, points in curves if points]
    values = [end for series in shown for _, value in series.points for end in interval_ends(value)]
    x, unit = time_axis([seconds for series in shown for seconds, _ in series.points], 100)
    return Chart(shown, x, value_axis(values, count=5), unit, {})


def interval_ends(value: Estimate) -> list[float]:
    """Return a value and, where it has an interval, both its ends."""
    return [end for end in (value.low, value.value, value.high) if end is not None]


def chart_figure(series: Sequence[Series], title: str) -> Figure:
    """Draw the chart of gains with matplotlib, on a light ground, with the legend at the right."""
    chart = gain_chart(series)
    shares = [chart.x.end, 100 - GAP - chart.x.end]
    height = 4.2 + 0.18 * max(0, len(series) - 8)
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": shares})
    for of_method in series:
        draw_method(left, right, of_method, UNITS[chart.unit])
    for axis in (left, right):
        axis.axhline(0, color="#16191d", linewidth=1)
        axis.grid(axis="y", color="#c9ced6", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    left.set(xlabel=f"{chart.unit} of training", ylabel=f"gain in {HEADLINE} over the base", xlim=(0, None))
    places = range(len(series))
    right.set(xlabel="place", xticks=places, xticklabels=[i + 1 for i in places], xlim=(-0.6, len(series) - 0.4))
    left.set_title("on held-out prompts of each run", fontsize=9)
    right.set_title("at the end, on the prompts of the page", fontsize=9)
    figure.suptitle(plot_text(title), fontsize=11)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def draw_method(left: Any, right: Any, series: Series, unit: float) -> None:
    """Draw a method's curve with its band on the left axes, and its gain with its interval on the right ones."""
    color, dash = CURVE_COLORS[series.color], DASHES[series.dash]
    times = [seconds / unit for seconds, _ in series.points]
    values = [value for _, value in series.points]
    left.plot(times, [value.value for value in values], dash, color=color, marker="o", markersize=3, linewidth=1.6)
    lows, highs = [v.low for v in values], [v.high for v in values]
    if None not in lows and series.rank < MOST_BANDS:
        left.fill_between(times, lows, highs, color=color, alpha=0.15, linewidth=0)
    if not values:
        left.plot(series.seconds / unit, series.gain.value, "D", color=color, markersize=5)
    gain, x = series.gain, series.rank
    label = f"{x + 1}  {plot_text(short_name(series.name))}"
    if gain.low is not None and gain.high is not None:
        right.plot([x, x], [gain.low, gain.high], dash, color=color, linewidth=2)
    if len(series.seeds) > 1:
        right.plot([x + 0.22] * len(series.seeds), series.seeds, ".", color=color, markersize=4)
    right.plot(x, gain.value, "o", color=color, markersize=6, label=label)
