"""The demo, step by step: it trains by its recipe, judges base and result, and prints both."""

import json
from pathlib import Path

from ..evaluation.base_meanwhile import base_drawn_meanwhile
from ..evaluation.comparison import beside_base, judge_run
from ..evaluation.report import Comparison, Report, ShapesSettings, render_report
from ..experiment.config import Run
from ..experiment.execute import execute
from ..experiment.run_folder import RECORD_MARK, is_of_run
from ..models.pipeline import no_progress_bars
from ..recipes.shapes import demo
from ..system.folder_lock import locked_folder
from ..system.messages import show_messages
from ..system.own_folders import check_own, remove_own
from ..system.running_time import running_seconds
from ..system.side_outputs import SideOutputs
from ..train.cpu_threads import cpu_threads
from ..view.report_file import write_report_file
from .output import result_console, write_text

SUITE = ShapesSettings(prompts=280, images=4)
REPORT = "report.html"
"""Name of the page that the demo leaves in the folder of its run."""


def run_demo() -> None:
    """Train by the demo's recipe, judge base and result on held-out prompts, and print both."""
    start = running_seconds()
    show_messages()
    no_progress_bars()
    run = demo()
    if run.folder.exists():
        check_own(run.folder, is_of_run, RECORD_MARK)
        with locked_folder(run.folder):  # nobody is training in it
            print(f"{run.folder} is there already and is replaced.")
        remove_own(run.folder, is_of_run, RECORD_MARK)
    with base_drawn_meanwhile(run, SUITE):
        folder = execute(run, "demo").folder
    with locked_folder(folder), cpu_threads(run.distribution.threads):  # locked so that nobody replaces it meanwhile
        judge_demo(run, folder, start)


def judge_demo(run: Run, folder: Path, start: float) -> None:
    """Judge base and result on held-out prompts, print both, and write them beside the LoRA."""
    judged = judge_run(folder, run, "demo", SUITE).judged
    report = beside_base(run, SUITE, judged, str(folder / "lora"))
    summary = {"seconds": round(running_seconds() - start, 1), **figures(report)}
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    result_console().print(render_report(report))
    print(f"{summary['seconds']} seconds.  Before and after: {folder / 'before_after.png'}")
    print(f"The LoRA: {folder / 'lora'}  The figures: {folder / 'summary.json'}")
    with SideOutputs() as side, side.making("the page"):
        write_report_file(folder, folder / REPORT)
        print(f"Every stage of the training, in a browser: {folder / REPORT}")
        print(f"The same with the extra `serve`, also while a run trains: afterflow view {folder}")


def figures(report: Report) -> dict:
    """Return the trained metric first, then those that training never saw."""
    assert report.frechet is not None
    chosen = {name: report.overall[name] for name in ("strict", "closed", "fidelity", "diversity")}
    return {name: comparison_figures(comparison) for name, comparison in chosen.items()} | {
        "frechet": comparison_figures(report.frechet)
    }


def comparison_figures(comparison: Comparison) -> dict:
    """Return before, after and the interval of the difference."""
    assert comparison.base is not None and comparison.delta is not None
    entry = {"before": comparison.base.value, "after": comparison.tuned.value}
    if comparison.delta.low is None:
        return entry
    return entry | {"delta_ci": [comparison.delta.low, comparison.delta.high]}
