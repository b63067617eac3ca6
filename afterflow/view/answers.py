"""What the page of runs is told, by the path of its request, whether it is served or stored in one file."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..experiment.run_folder import step_of_name
from .run_reader import RunReader, runs_below

RESCAN_SECONDS = 5.0
"""Seconds between two searches for new runs."""


class Answers:
    """Answers the requests of the page about some runs; one at a time, since readers remember what they read."""

    def __init__(self, runs: Sequence[Path], below: Path | None = None) -> None:
        """Answer about these runs, and about those that are or will be in the folder `below`."""
        self.below, self.lock, self.searched = below, threading.Lock(), 0.0
        self.readers: dict[Path, RunReader] = {}
        for path in runs:
            self.readers[path] = RunReader(path)

    def answer(self, path: str, names: Sequence[str] = ()) -> dict[str, Any] | list[Any] | None:
        """Return the answer to a request such as run/0; None where there is none.

        runs                    a summary of each run
        run/N                   names of metrics, held-out means, alarms, and the sets of pictures of run N
        curves/N                the curves of `names`
        set/N/SET               prompts, steps, and scores of a set of pictures
        seen/N/SET/STEP         what the verifier saw in each picture of a step
        """
        what, *rest = path.split("/")
        with self.lock:
            if what == "runs" and not rest:
                return self.runs()
            reader = self.reader(rest[0]) if rest else None
            if reader is None:
                return None
            match (what, rest[1:]):
                case ("run", []):
                    return reader.details()
                case ("curves", []):
                    return reader.curves(names)
                case ("set", [name]) if name in reader.sets:
                    return reader.sets[name].content()
                case ("seen", [name, step]) if name in reader.sets and step_of_name(step) is not None:
                    return reader.seen(name, step)
            return None

    def runs(self) -> list[dict[str, Any]]:
        """Return the summary of each run, after a search for new ones."""
        if self.below is not None and time.monotonic() - self.searched > RESCAN_SECONDS:
            self.searched = time.monotonic()
            for path in runs_below(self.below):
                self.readers.setdefault(path, RunReader(path))
        return [reader.summary() for reader in self.readers.values()]

    def reader(self, index: str) -> RunReader | None:
        """Return the reader of run number `index`; None where there is no such run."""
        readers = list(self.readers.values())
        known = index.isascii() and index.isdigit() and len(index) < 7 and int(index) < len(readers)
        return readers[int(index)] if known else None

    def picture(self, index: str, set_name: str, step: str, file: str) -> Path | None:
        """Return the path of a stored picture; None where there is none that lies in its run."""
        with self.lock:
            reader = self.reader(index)
            return reader.sets[set_name].picture(step, file) if reader and set_name in reader.sets else None
