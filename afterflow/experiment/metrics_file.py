"""The files of a run that grow by a line for each iteration or measurement, and outlive a full disk."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..system.atomic_files import make_folder, write_text_atomically, writing
from ..system.errors import OutputError
from ..system.side_outputs import failure_words
from .run_folder import RunFolder, read_lines
from .setup import TrainingSetup

_log = logging.getLogger(__name__)


class MetricsFile:
    """A file such as metrics.jsonl, open for writing: one line for each iteration, readable while it grows.

    Lines that cannot be written are kept and written when that is possible again.  A file that is gone is made anew.
    """

    def __init__(self, file: Path, first: int, checkpoint: Path | None = None) -> None:
        """Open the file for iterations from `first` on; lines of later ones, which are repeated, are removed.

        Lines that the file lacks and that `checkpoint` has in a file of the same name are added.
        """
        stored = read_lines(file, ("step",)) + (read_lines(checkpoint / file.name, ("step",)) if checkpoint else [])
        by_step = {line["step"]: line for line in stored if line["step"] < first}
        lines = [by_step[step] for step in sorted(by_step)]
        self.file = file
        self.texts = [json.dumps(line) + "\n" for line in lines]
        """All lines, those that are not written at the end."""
        self.failure: OutputError | None = None
        """Why the last lines are not written; None where all are."""
        self.before: dict[str, float] = lines[-1] if lines else {}
        """Numbers of the iteration before the first one."""
        self._open()

    def _open(self) -> None:
        """Write all lines to a new file, and open that."""
        write_text_atomically(self.file, "".join(self.texts))
        with writing(self.file):
            self.stream = self.file.open("ab", buffering=0)
        self.size, self.written = os.fstat(self.stream.fileno()).st_size, len(self.texts)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the line of an iteration, and those before it that could not be written.

        Where they cannot be written the first time, that is said.
        """
        self.texts.append(json.dumps({"step": step, **metrics}) + "\n")
        before = self.failure
        try:
            self._catch_up()
        except OutputError as error:
            self.failure = error
            if before is None:
                why = failure_words(error)
                _log.warning(f"iteration {step}: {why}; its lines are kept, and written when that is possible again")

    def _catch_up(self) -> None:
        """Write the lines that are not written.  OutputError where that cannot be; no line is then half there."""
        if not self._is_there():
            _log.warning(f"{self.file} is gone and is made anew")
            self.stream.close()
            make_folder(self.file.parent)
            self._open()
        with writing(self.file):
            data = "".join(self.texts[self.written :]).encode()
            try:
                while data:
                    data = data[self.stream.write(data) :]
            except OSError:
                self.stream.truncate(self.size)
                raise
            self.size = os.fstat(self.stream.fileno()).st_size
        self.written, self.failure = len(self.texts), None

    def _is_there(self) -> bool:
        """Return whether the file is the one that is open; where that cannot be known, it is."""
        if self.stream.closed:
            return False
        try:
            return os.path.samestat(self.file.stat(), os.fstat(self.stream.fileno()))
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def unwritten(self) -> dict[str, str]:
        """Return the lines that could not be written, by the file's name; empty where there are none."""
        return {self.file.name: "".join(self.texts[self.written :])} if self.failure is not None else {}

    def close(self) -> None:
        """Close the file."""
        self.stream.close()


def metrics_file(setup: TrainingSetup, file: Path) -> MetricsFile | None:
    """Open a file of metrics where this process writes it, with the lines that the last checkpoint kept for it."""
    if not setup.processes.main:
        return None
    checkpoints = RunFolder(setup.run.folder).checkpoints()
    return MetricsFile(file, setup.first, checkpoints[-1] if setup.first and checkpoints else None)
