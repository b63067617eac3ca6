"""What benches of trainings share: train to the end, store a result once, find the results of a name, pool verdicts."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afterflow.evaluation.report import ShapesSettings, averaged_tags, rows_by_tag
from afterflow.evaluation.shapes_suite import prompts_of_suite, suite_prompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.intervals import estimates
from afterflow.experiment.run_folder import RunFolder
from afterflow.experiment.train_subprocess import check_ended, check_same, has_ended
from afterflow.system.atomic_files import make_folder, write_text_atomically

SIDES = (32, 32)
"""Height and width of the shapes world's pictures."""


def work_parser(doc: str | None, works: Sequence[str], names: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser of what a bench is to do, with which of its trainings, and from which seeds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=works)
    parser.add_argument("names", nargs="*", choices=[*names, []], help="all of them without a name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser


def train_to_end(run: Run, recipe: str) -> float:
    """Train a run, or go on with it, and return its seconds of training; InputError where it was interrupted."""
    check_same(run)
    if not has_ended(run.folder, run):
        execute(run, recipe, resume=bool(RunFolder(run.folder).checkpoints()))
    check_ended(run.folder, run)
    return RunFolder(run.folder).metrics()[-1]["seconds_trained"]


def is_stored(file: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a result is there; SystemExit where it was made with other settings."""
    if not file.is_file():
        return False
    stored = json.loads(file.read_text())
    if {name: stored.get(name) for name in settings} != settings:
        raise SystemExit(f"{file} is of other settings; delete it")
    return True


def store(file: Path, result: Mapping[str, Any]) -> None:
    """Store a result; it is whole or not there."""
    make_folder(file.parent)
    write_text_atomically(file, json.dumps(result) + "\n")


def results_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the stored results NAME_SEED.json of a name, by seed."""
    files = [file for file in folder.glob(f"{name}_*.json") if file.stem.removeprefix(f"{name}_").isdecimal()]
    return sorted((json.loads(file.read_text()) for file in files), key=lambda result: result["seed"])


def strata_of(suite: ShapesSettings) -> tuple[list[dict], list[dict], list[np.ndarray]]:
    """Return the records of a suite, those of different prompts, and the rows of these for each tag of the overall."""
    records = suite_prompts(suite, SIDES)
    prompts = prompts_of_suite(records)
    rows = rows_by_tag(prompts)
    return records, prompts, [rows[tag] for tag in averaged_tags(suite.split, rows)]


def verdicts_by_tag(
    columns: np.ndarray, records: Sequence[Mapping[str, Any]], tags: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Return verdicts (P, V) over all with 95 % intervals, prompts resampled within tags, and their means by tag."""
    strata = [np.array([i for i, record in enumerate(records) if record["tag"] == tag]) for tag in tags]
    overall = estimates(columns, strata, 2000, np.random.default_rng(0))
    rounded = {name: [round(x, 3) for x in (e.value, e.low, e.high)] for name, e in zip(names, overall)}
    by_tag = {tag: dict(zip(names, columns[rows].mean(0).round(3).tolist())) for tag, rows in zip(tags, strata)}
    return rounded, by_tag


def replace_part(page: Path, begin: str, end: str, part: str) -> None:
    """Replace what stands between two marks of a page; SystemExit where it has none."""
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or end not in text.partition(begin)[2]:
        raise SystemExit(f"{page} has no part between {begin.strip()} and {end.strip()}")
    before, rest = text.split(begin)
    page.write_text(before + begin + part + end + rest.partition(end)[2], encoding="utf-8")
