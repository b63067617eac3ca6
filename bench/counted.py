"""Trainings that are compared under the same seconds, which are counted as iterations of a quiet machine.

Two trainings at once slow each other, and by how much depends on what else runs.  So an iteration of every training is
first timed, in turn and alone, and a budget of seconds is as many iterations as that makes: rewards included,
evaluation and pictures not.  Those are then trained, several at a time, and judged beside the base on held-out prompts.
What has been stored is not repeated.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from harness import provenance, read_json
from trainings import is_stored, results_of, store, train_to_end, work_parser

from afterflow.evaluation.comparison import Finished, beside_base, curve, judge_run, judged_from_json, judged_to_json
from afterflow.evaluation.comparison import pooled as pool_seeds
from afterflow.evaluation.report import ShapesSettings
from afterflow.evaluation.shapes_suite import Judged, by_prompt
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.run_folder import RunFolder
from afterflow.experiment.serialization import to_json

SUITE = ShapesSettings(prompts=280, images=4)


@dataclass(frozen=True)
class CountedTrainings:
    """Trainings by name, their budget, and where their results are stored."""

    script: str
    """The benchmark that trains one of them, as its command names it."""
    folder: Path
    """Folder of the results."""
    budget: float
    """Seconds of training."""
    run_of: Callable[[str, int, int], Run]
    """Function (name, iterations, seed) → the run."""

    @property
    def times(self) -> Path:
        """The file of the seconds of an iteration of each."""
        return self.folder / "times.json"

    def time(self, names: Sequence[str], rounds: int) -> None:
        """Store the seconds of an iteration of each training: the least over rounds of the second of two."""
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                run = self.run_of(name, 2, 0)
                run = replace(run, name=f"{Path(run.name).parent}/{name}_time")
                run = run.with_options(held_out=None, eval_every=0, eval_rewards=())
                lines = RunFolder(execute(run, name).folder).metrics()
                shutil.rmtree(run.folder)
                seconds[name].append(lines[1]["seconds_trained"] - lines[0]["seconds_trained"])
                print(name, [round(value, 2) for value in seconds[name]], flush=True)
        times = read_json(str(self.times)).get("seconds", {})
        times |= {name: round(min(values), 3) for name, values in seconds.items()}
        iterations = {name: round(self.budget / value) for name, value in times.items()}
        store(self.times, {"seconds": times, "iterations": iterations, **provenance()})

    def result_file(self, name: str, seed: int) -> Path:
        """The file of one result."""
        return self.folder / f"{name}_{seed}.json"

    def results(self, name: str) -> list[dict]:
        """Return the stored results of a training, by seed."""
        return results_of(self.folder, name)

    def counted_run(self, name: str, seed: int) -> Run:
        """The run with the iterations of the budget."""
        return self.run_of(name, json.loads(self.times.read_text())["iterations"][name], seed)

    def is_stored(self, name: str, seed: int) -> bool:
        """Whether the result is there.  SystemExit where it is that of another recipe, or of other iterations."""
        return is_stored(self.result_file(name, seed), {"config": to_json(self.counted_run(name, seed))})

    def train(self, pairs: Sequence[tuple[str, int]], jobs: int) -> None:
        """Train each name with a seed that has no result yet, in a process of its own."""

        def train(one: tuple[str, int]) -> int:
            command = [sys.executable, self.script, "one", one[0], "--seeds", str(one[1])]
            code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
            print(*one, "is stored" if code == 0 else f"ended with {code}", flush=True)
            return code

        missing = [(name, seed) for name, seed in pairs if not self.is_stored(name, seed)]
        with ThreadPoolExecutor(jobs) as pool:
            if any(list(pool.map(train, missing))):
                raise SystemExit("some ended with an error, see above; the same command goes on with them")

    def train_one(self, name: str, seed: int) -> None:
        """Train one with a seed, and store its figures prompt by prompt."""
        run = self.counted_run(name, seed)
        finished = trained_and_judged(run, name, name)
        result = {
            "name": name,
            "seed": seed,
            "iterations": run.batches.iterations,
            "seconds_trained": finished.lines[-1]["seconds_trained"],
            "config": to_json(run),
            "curve": curve(finished),
            "judged": shortened(finished.judged),
            **provenance(f"python bench/{Path(self.script).name} train --seeds {seed}"),
        }
        store(self.result_file(name, seed), result)

    def pooled_entry(self, name: str, stored: list[dict], title: str | None = None) -> dict:
        """One method: the report over its seeds, and each seed's own gain."""
        run = self.run_of(name, 1, 0)
        report = lambda judged: to_json(beside_base(run, SUITE, judged, name))
        runs = [
            {key: one[key] for key in ("seed", "iterations", "seconds_trained", "curve", "git_commit", "hardware")}
            | {"strict": report(judged_from_json(one["judged"]))["overall"]["strict"]}
            for one in stored
        ]
        judged = pool_seeds([judged_from_json(one["judged"]) for one in stored])
        return {"name": title or name, "report": report(judged), "runs": runs}


def trained_and_judged(run: Run, recipe: str, name: str) -> Finished:
    """Train a run, or go on with it, and judge its pictures of the suite; `name` names it in reports."""
    train_to_end(run, recipe)
    return judge_run(run.folder, run, name, SUITE)


def figures_of(results: Sequence[dict], records: Sequence[dict], prompts: Sequence[dict], name: str) -> np.ndarray:
    """Return a figure (S, P) of S stored results on P different prompts, of the records of the suite."""
    judged = [judged_from_json(result["judged"]) for result in results]
    rows = [by_prompt({"": one.figures[name]}, records, prompts)[""] for one in judged]
    return np.stack(rows) if rows else np.zeros((0, len(prompts)))


def shortened(judged: Judged) -> dict:
    """Return the figures of every prompt with five decimals, which sums do not see; which image passed is left out."""
    figures = {name: np.round(values, 5) for name, values in judged.figures.items()}
    return judged_to_json(replace(judged, figures=figures, strict=np.zeros(0, bool)))


def parse_work(doc: str | None, names: Sequence[str]) -> argparse.Namespace:
    """Return the options of a benchmark of counted trainings: what is to be done, with which of them."""
    parser = work_parser(doc, ("time", "train", "one", "report"), names)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on one thread")
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    return parser.parse_args()
