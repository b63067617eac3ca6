"""The page of a comparison: its sentences, its chart, and that nothing of a run becomes part of it."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from afterflow.evaluation.conclusion import conclusion
from afterflow.evaluation.figure_text import figure_text, number_text
from afterflow.evaluation.gain_chart import CURVE_COLORS, gain_chart, gain_series, time_axis, value_axis
from afterflow.evaluation.html_page import write_page
from afterflow.evaluation.method_curve import method_curve, shared_measurements
from afterflow.experiment.intervals import Estimate
from afterflow.experiment.run_folder import RunFolder
from afterflow.system.page_style import PALETTE_FILE, policy_digest
from run_folders import run_of

HOSTILE = "<img src=x onerror=alert(1)></style></title><script>alert(1)</script> & \u202eevil"
SUITE = {"split": "test", "prompts": 280, "images": 4, "steps": 20, "draws": 10000}


def estimate(value, half=None):
    return {
        "value": value,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
    }


def figures(gain, half=0.03, fidelity=0.0, diversity=1.0, base=0.25):
    changes = {
        "strict": (gain, half),
        "closed": (gain, half),
        "fidelity": (fidelity, 0.01),
        "diversity": (diversity, 0.5),
    }
    return {
        name: {"base": estimate(base, half), "tuned": estimate(base + change, of), "delta": estimate(change, of)}
        for name, (change, of) in changes.items()
    }


def method(name, gain, seconds=420.0, seeds=3, points=3, **changes):
    """The entry of a method, whose curve rises to its gain."""
    overall = figures(gain, **changes)
    run = {"folder": f"runs/{name}", "seed": 0, "iterations": 9, "seconds_trained": seconds, "overall": overall}
    curve = [
        {
            "seconds": seconds * (i + 1) / points,
            "steps": [i],
            "means": {"shapes_strict": estimate(0.3 + gain * i / points, 0.05), "std": estimate(0.8)},
            "changes": {"shapes_strict": estimate(gain * i / points, 0.05 * bool(i))},
        }
        for i in range(points)
    ]
    return {
        "name": name,
        "algorithm": "FlowGRPO",
        "config": {"note": HOSTILE},
        "guidance": 1.0,
        "report": {
            "overall": overall,
            "frechet": {"tuned": estimate(1.9)},
            "tags": {"counting": {"strict": overall["strict"]}},
            "prompts": {"counting": 5},
        },
        "nfe": {"rollout": 9.0},
        "seconds_per_iteration": 7.5,
        "curve": curve,
        "runs": [{**run, "seed": seed, "curve": [{"evaluations": 1e6}]} for seed in range(seeds)],
    }


def compared(*methods, half=0.02, paired=True):
    """A comparison of methods, with their differences in pairs where they have the same prompts."""
    gains = [(one["name"], one["report"]["overall"]["strict"]["delta"]["value"]) for one in methods]
    pairs = [
        {"first": one, "second": other, "strict": estimate(a - b, half)}
        for i, (one, a) in enumerate(gains)
        for other, b in gains[i + 1 :]
    ]
    return {"suite": SUITE, "methods": list(methods), "differences": pairs if paired else []}


def sentences(data):
    return " ".join(conclusion(data, gain_series(data["methods"])))


A, B = method("a", 0.1), method("b", 0.2)
NEAR = method("a", 0.19)


@pytest.mark.parametrize(
    "data, words",
    [
        (compared(A, B), "Best: b, +.200 [+.170, +.230] in strict over the base after 7 min"),
        (compared(A, B), "It is ahead of a (difference +.100 [+.080, +.120])."),
        (compared(NEAR, B), "It cannot be told apart from a (difference +.010 [−.010, +.030])."),
        (compared(B, NEAR), "It cannot be told apart from a (difference +.010 [−.010, +.030])."),
        (compared(*(method(n, 0.2) for n in "abcdef")), "from b (difference +.000 [−.020, +.020]), c and 3 more."),
        (compared(method("a", 0.1, 60), method("b", 0.2, 300)), "[+.080, +.120], after 5 min against 60 s)"),
        (compared(A, B, paired=False), "Its interval does not overlap that of a, +.100 [+.070"),
        (compared(NEAR, B, paired=False), "Its interval overlaps that of a, +.190 [+.160"),
        (compared(method("a", 0.01), method("b", 0.02)), "told apart from the base; the highest is b, +.020"),
        (compared(method("a", -0.2), method("b", -0.1)), "b is worse than the base: −.100 [−.130, −.070] in strict"),
        (compared(A), "a gains +.100 [+.070, +.130] in strict over the base after 7 min"),
        (compared(method("a", 0.01)), "a and the base cannot be told apart: +.010 [−.020, +.040] in strict"),
        (compared(method("a", 0.1, half=None)), "a tag has one prompt alone, so there is no interval"),
        (compared(A), "Its fidelity and diversity do not fall."),
        (compared(method("a", 0.1, fidelity=-0.03)), "Its fidelity changes by −.030 [−.040, −.020]: look at"),
        (compared(method("a", 0.1, diversity=-2, fidelity=-1)), "and its diversity changes by −2.00 [−2.50, −1.50]"),
        (compared(method("a", 0.1, seeds=1), method("b", 0.2, seeds=1)), "One seed each: another seed may change"),
        (compared(method("a", 0.1, seeds=2), B), "Seeds are not as many for all: a 2, others 3."),
    ],
)
def test_the_page_says_who_is_best_and_whether_it_is_real(data, words):
    assert words in sentences(data)


def test_an_interval_that_ends_at_zero_as_it_is_shown_is_no_difference():
    data = compared(method("a", 0.1, fidelity=-0.0104), method("b", 0.1796, seeds=1), half=0.0798)
    assert "apart from a (difference +.080 [+.000, +.159])" in sentences(data).replace("−.000", "+.000")
    assert "do not fall" in sentences(compared(method("a", 0.1, fidelity=-0.0104)))


class Tags(HTMLParser):
    """The elements of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def all(self, name):
        return [about for tag, about in self.elements for key, about in about.items() if key == name]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The text of a page with a hostile name, one of many letters, and a method that was never measured."""
    long = "shapes_flow_grpo_cps_with_a_long_name, algorithm.beta = 0.01, batches.batch = 4, 3 more"
    methods = [method(HOSTILE, 0.2), method(long, 0.1, seeds=1), method("unmeasured", 0.05, points=0, half=None)]
    methods[2]["runs"] = [{**run, "curve": []} for run in methods[2]["runs"]]
    data = compared(*methods, *(method(f"m{i}", 0.01 * i) for i in range(7)))
    path = write_page(tmp_path_factory.mktemp("page"), data, HOSTILE, f"afterflow report {HOSTILE}")
    assert (path.parent / "comparison.png").read_bytes().startswith(b"\x89PNG")
    return path.read_text(encoding="utf-8")


def test_no_text_of_a_run_becomes_markup(page):
    tags = Tags(page)
    assert {tag for tag, _ in tags.elements} & {"script", "iframe", "link", "object"} == set()
    assert not [about for tag, about in tags.elements if tag == "img" or "onerror" in about or "style" in about]
    assert page.count("<title>") == page.count("</title>") == page.count("</style>") == 1
    assert "\u202e" not in re.sub(r"(?s)<title>.*?</title>", "", page).split("<details>")[0]


def test_the_page_loads_nothing_and_its_policy_lets_in_its_style_alone(page):
    style = re.search(r"<style>(.*?)</style>", page, re.S).group(1)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'") and f"style-src '{policy_digest(style)}'" in policy
    assert "unsafe" not in policy and "script-src" not in policy
    tags = Tags(page)
    assert all(link.startswith("#") for link in tags.all("href")) and not tags.all("src") + tags.all("srcset")
    assert "url(" not in style and "@import" not in style


def test_every_link_leads_somewhere_and_no_id_is_there_twice(page):
    ids, links = Tags(page).all("id"), Tags(page).all("href")
    assert len(ids) == len(set(ids)) and len(links) == 10 and {link[1:] for link in links} <= set(ids)


def test_the_page_has_every_figure_and_names_what_fell(tmp_path):
    data = compared(method("a", 0.2, fidelity=-0.03), method("b", 0.1))
    text = write_page(tmp_path, data, "t", "c").read_text(encoding="utf-8")
    assert text.count('class="fell"') == 1 and "<b>−.030</b><small>[−.040, −.020]</small>" in text
    assert "<b>−.100</b><small>[−.120, −.080]</small>" in text, "b against the best"
    assert "base .250" in text and "1 000 000, 1 000 000, 1 000 000" in text


def test_a_comparison_of_an_older_version_has_a_page(tmp_path):
    data = compared(method("a", 0.2), method("b", 0.1))
    del data["differences"]
    for entry in data["methods"]:
        del entry["curve"]
    text = write_page(tmp_path, data, "t", "c").read_text(encoding="utf-8")
    assert "Its interval does not overlap that of b" in text and "not measured on the way" in text


def test_everything_of_the_chart_lies_in_it_and_the_base_is_its_zero():
    data = compared(method("a", 0.2), method("b", -0.3, 10.0), method("c", 0.05, points=0))
    chart = gain_chart(gain_series(data["methods"]))
    assert [series.name for series in chart.series] == ["a", "c", "b"]
    for series in chart.series:
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", chart.line(series) + chart.band(series))]
        assert all(0 <= number <= 1000 for number in numbers)
        assert 0 < chart.y.percent(series.gain.high) < chart.y.percent(series.gain.low) < 100
        assert chart.x.end < chart.slots[series.rank] <= 100
    assert dict((text, place) for place, text in chart.y.marks())["0"] == chart.base
    assert chart.y.percent(0.2) < chart.base < chart.y.percent(-0.3)
    first, last = re.findall(r"[\d.]+ [\d.]+", chart.line(chart.series[0]))[:: len(chart.series[0].points) - 1]
    assert float(first.split()[1]) == 10 * chart.base and float(last.split()[0]) == 10 * chart.x.percent(420)


@pytest.mark.parametrize(
    "seconds, unit, ticks",
    [
        (20.0, "seconds", ["0", "5", "10", "15", "20"]),
        (420.0, "minutes", ["0", "2", "4", "6"]),
        (3 * 3600.0, "hours", ["0", "1", "2", "3"]),
        (0.0, "seconds", ["0.0", "0.5", "1.0"]),
    ],
)
def test_time_is_counted_in_a_unit_that_suits_it(seconds, unit, ticks):
    axis, name = time_axis([seconds], 60)
    assert name == unit and [text for _, text in axis.ticks] == ticks
    assert axis.percent(0) == 0 and axis.percent(seconds) <= 60


def test_ticks_are_round_numbers_that_differ():
    for values in ([0.0, 0.2], [0.9931, 0.9934], [5.0], [-3.0, 40.0]):
        texts = [text for _, text in value_axis(values).ticks]
        assert len(texts) == len(set(texts)) >= 2, values


def test_the_png_has_the_colours_of_the_page():
    palette = PALETTE_FILE.read_text(encoding="utf-8").split("@media")[0]
    assert re.findall(r"--c\d: (#\w+);", palette) == list(CURVE_COLORS)


STYLES = [file for file in sorted(PALETTE_FILE.parents[1].rglob("*.css")) if file != PALETTE_FILE]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.parent.parent.name)
def test_pages_have_the_colours_of_the_palette_alone(style):
    text, palette = style.read_text(encoding="utf-8"), PALETTE_FILE.read_text(encoding="utf-8")
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", text)) <= {"#000", "#fff"}, "black and white are drawn over pictures"
    assert not re.search(r"\b(rgb|hsl)a?\(|\bCanvas", text)
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used and used <= set(re.findall(r"(--\w+):", palette))


def test_figures_have_three_digits():
    assert [number_text(value) for value in (0.5123, -0.0004, 4.508, 31.92, 604.2)] == [
        ".512",
        ".000",
        "4.51",
        "31.9",
        "604",
    ]
    assert figure_text(Estimate(-0.0312, -0.0374, 0.0)) == "−.031 [−.037, .000]"
    assert figure_text(Estimate(3.503, 3.142, 3.83), "+") == "+3.50 [+3.14, +3.83]"
    assert figure_text(Estimate(1.0)) == "1.00" and number_text(np.nan) == "none"


def lines(steps, **values):
    evaluated = [{f"eval/{name}": of[i] for name, of in values.items()} for i in range(len(steps))]
    return [{"step": step, "seconds_trained": 2.0 * step + 1, **line} for step, line in zip(steps, evaluated)]


def measured(folder, steps, scores, contents):
    """A run that measured x on its held-out prompts, with its lines."""
    run = run_of(folder, (), (), contents={"held-out prompts": contents})
    measurements = [{"step": step, "x": list(x)} for step, x in zip(steps, scores)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measurements))
    return RunFolder(run), lines(steps, x=[float(np.mean(x)) for x in scores], std=[0.5] * len(steps))


def test_seeds_with_prompts_of_their_own_are_averaged_run_by_run(tmp_path):
    one = measured(tmp_path / "0", (0, 10, 19), ([0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0]), "a")
    two = measured(tmp_path / "1", (0, 10, 21), ([1.0, 0.0], [1.0, 0.0], [1.0, 1.0]), "b")
    points = method_curve([one, two], 2000, 0)
    assert [point["steps"] for point in points] == [[0, 0], [10, 10], [19, 21]]
    assert [point["seconds"] for point in points] == [1.0, 21.0, 41.0]
    assert [point["means"]["x"]["value"] for point in points] == pytest.approx([0.375, 0.5, 0.875])
    assert [point["changes"]["x"]["value"] for point in points] == pytest.approx([0, 0.125, 0.5])
    assert points[0]["changes"]["x"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    last = points[-1]["changes"]["x"]
    assert 0 <= last["low"] < 0.5 < last["high"] <= 1
    assert points[0]["means"]["std"] == {"value": 0.5, "low": None, "high": None}


def test_seeds_with_the_same_prompts_are_averaged_prompt_by_prompt(tmp_path):
    scores = [np.arange(8.0) / 8, np.arange(8.0) / 8 + 0.1]
    opposite = [list(1 - of) for of in scores]
    one = measured(tmp_path / "0", (0, 9), [list(of) for of in scores], "a")
    two = measured(tmp_path / "1", (0, 9), opposite, "a")
    same = method_curve([one, two], 2000, 0)[0]["means"]["x"]
    two[0].record_file.write_text(two[0].record_file.read_text().replace('"a"', '"b"'))
    other = method_curve([one, two], 2000, 0)[0]["means"]["x"]
    assert same["value"] == pytest.approx(0.5) and same["high"] - same["low"] < 1e-9, "each prompt's mean is the same"
    assert other["value"] == pytest.approx(0.5) and other["high"] - other["low"] > 0.1


def test_prompts_without_a_score_do_not_count_and_a_reward_without_any_has_no_curve(tmp_path):
    one = measured(tmp_path / "0", (0, 9), ([0.0, np.nan, 1.0, 0.0], [1.0, 1.0, np.nan, 0.0]), "a")
    points = method_curve([one], 200, 0)
    assert [point["means"]["x"]["value"] for point in points] == [0.0, 0.5], "the first prompt and the last"
    none = measured(tmp_path / "1", (0, 9), ([np.nan] * 3, [np.nan] * 3), "a")
    assert [set(point["means"]) for point in method_curve([none], 200, 0)] == [{"std"}, {"std"}]
    assert json.loads(json.dumps(points, allow_nan=False)) == points


def test_a_method_of_which_a_run_was_never_measured_has_no_curve():
    assert shared_measurements([lines((0, 5), x=[1, 2]), [{"step": 0, "seconds_trained": 1.0}]]) == []
    assert [line["step"] for [line] in shared_measurements([lines((0, 5, 7), x=[1, 2, 3])])] == [0, 5, 7]
