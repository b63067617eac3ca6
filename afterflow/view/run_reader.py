"""A run's folder as plain data for a page: summary, curves and stored pictures, each read again only where it grew."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..experiment.progress import RECENT, progress_of, state_of
from ..experiment.run_folder import PICTURE_SETS, RESULTS, RunFolder, duration
from ..system.errors import InputError
from ..system.escapes import printable
from .curves import AlarmSearch, HeldOutCurves, MetricCurves, finite_or_none
from .growing_file import first_and_last_lines, is_number
from .health import health_warnings
from .picture_sets import PictureSet, read_json_object
from .verifier_sight import sight


class RunReader:
    """Reads one run; what it returns are objects of JSON for a page, which shows every text as text."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.metrics = MetricCurves(self.folder.metrics_file, path)
        self.held_out = HeldOutCurves(self.folder.held_out_file, path)
        self.alarm = AlarmSearch(self.folder.metrics_file, path)
        self.sets = {name: PictureSet(self.folder, name) for name in PICTURE_SETS}
        self._config: tuple[int, dict[str, Any]] = (-1, {})
        self._ends: tuple[tuple[int, int], list[dict[str, Any]]] = ((-1, -1), [])

    def config(self) -> dict[str, Any]:
        """Return the options of the record; none where it cannot be read."""
        file = self.folder.record_file
        changed = file.stat().st_mtime_ns if file.is_file() else 0
        if self._config[0] != changed:
            record = read_json_object(file, self.folder.path) or {}
            config = record.get("config")
            named = {"recipe": record.get("recipe"), **(config if isinstance(config, dict) else {})}
            self._config = (changed, named)
        return self._config[1]

    def stamp(self) -> str:
        """Return a text that changes whenever something of the run does that a page shows."""
        files = [self.folder.metrics_file, self.folder.held_out_file, self.folder.record_file]
        files += [self.folder.picture_folder / name for name in PICTURE_SETS]
        states = [file.stat() if file.exists() else None for file in files]
        return "-".join("" if state is None else f"{state.st_mtime_ns:x}.{state.st_size:x}" for state in states)

    def summary(self, now: float | None = None) -> dict[str, Any]:
        """Return how far the run is and whether it is well, at time `now` (seconds), from its last lines alone."""
        config, path = self.config(), self.folder.path
        about = {"name": printable(str(path)), "recipe": printable(str(config.get("recipe") or ""))}
        about["method"] = printable(kind_of(config.get("algorithm")))
        try:
            return {**about, **self._progress(time.time() if now is None else now), "stamp": self.stamp()}
        except (InputError, OSError, KeyError, TypeError, ValueError) as error:
            words = f"its files cannot be read: {error}"
            return {**about, "state": "unreadable", "progress": printable(words), "share": 0, "health": [], "stamp": ""}

    def _progress(self, now: float) -> dict[str, Any]:
        """Return state, progress and health."""
        if not self.folder.record_file.is_file():
            return {"state": "gone", "progress": "its folder is gone", "share": 0, "health": []}
        lines = self._first_and_last()
        if not lines:
            return {"state": "waiting", "progress": "no iteration has ended yet", "share": 0, "health": []}
        progress, last = progress_of(self.folder, lines), lines[-1]
        state, idle = state_of(self.folder, progress, now)
        health = health_warnings(lines[-RECENT:], self.alarm.update())
        if state == "quiet":
            health.insert(0, f"it has written nothing for {duration(idle)}")
        rewards = {
            printable(name): [finite_or_none(lines[0][name]), finite_or_none(last[name])]
            for name in last
            if (name == "reward" or name.startswith("reward/"))
            and is_number(last[name])
            and is_number(lines[0].get(name))
        }
        return {
            "state": state,
            "progress": progress.sentence(state == "ended"),
            "share": finite_or_none(progress.share),
            "iteration": int(last["step"]),
            "alarm": self.alarm.first,
            "health": health,
            "rewards": rewards,
        }

    def _first_and_last(self) -> list[dict[str, Any]]:
        """Return the first line of the metrics and the last ones, which are read where the file changed."""
        file = self.folder.metrics_file
        if not file.is_file():
            return []
        state = file.stat()
        if self._ends[0] != (state.st_mtime_ns, state.st_size):
            lines = first_and_last_lines(file, self.folder.path, RECENT + 1)
            self._ends = ((state.st_mtime_ns, state.st_size), lines)
        return self._ends[1]

    def details(self) -> dict[str, Any]:
        """Return the names of the metrics, the held-out means with intervals, the alarms, and the stored sets."""
        self.metrics.update()
        self.held_out.update()
        config = self.config()
        trained = trained_rewards(config.get("algorithm"))
        measured = dict.fromkeys(name for point in self.held_out.points for name in point["means"])
        return {
            "names": list(self.metrics.series),
            "alarms": self.metrics.alarms[:MOST_ALARMS],
            "held_out": self.held_out.thinned(),
            "trained": [name for name in measured if name in trained],
            "hidden": [name for name in measured if name not in trained],
            "sets": {name: len(stored.update()) for name, stored in self.sets.items()},
        }

    def curves(self, names: Sequence[str]) -> dict[str, list[list[float | None]]]:
        """Return the thinned curves of these names."""
        self.metrics.update()
        return self.metrics.thinned(names)

    def seen(self, set_name: str, step: str) -> list[dict[str, Any] | None]:
        """Return what the verifier saw in each picture of a step; None where it is none of its world."""
        pictures = self.sets[set_name]
        pictures.update()
        names = (pictures.steps[step][1] or {}).get("pictures", []) if step in pictures.steps else []
        return [self._seen(pictures, step, i, name) for i, name in enumerate(names)]

    def _seen(self, pictures: PictureSet, step: str, index: int, name: str) -> dict[str, Any] | None:
        """Return what the verifier saw in one picture."""
        record, file = pictures.record_of(step, index), pictures.picture(step, name)
        return sight(file, record) if record is not None and file is not None else None


MOST_ALARMS = 200
"""Number of alarms of a run that are marked, at most."""


def kind_of(options: object) -> str:
    """Return the type that a record's options name."""
    return str(options.get("type") or "") if isinstance(options, Mapping) else ""


def trained_rewards(algorithm: object) -> set[str]:
    """Return the rewards that an algorithm's options give a weight, or make a gate."""
    if not isinstance(algorithm, Mapping):
        return set()
    weights, blend = algorithm.get("weights"), algorithm.get("blend")
    gate = blend.get("gate") if isinstance(blend, Mapping) else None
    return {name for names in (weights, gate) if isinstance(names, Mapping) for name in names}


def runs_below(folder: Path) -> list[Path]:
    """Return the folders of runs in a folder and below, by name; the folder of a run is not searched further."""
    runs = []
    for parent, folders, files in os.walk(folder):
        if "run.json" in files:
            folders.clear()
            if Path(parent).name not in RESULTS:
                runs.append(Path(parent))
        folders.sort()
    return runs


def check_run_folder(path: Path) -> Path:
    """Return the folder of a run.  InputError where there is none."""
    if not (path / "run.json").is_file():
        raise InputError(f"{path}: no run is there; runs are kept in runs/NAME")
    return path
