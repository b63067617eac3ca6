"""Seconds that the stages of an iteration take."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..system.running_time import running_seconds


class Clock:
    """A clock that adds up seconds by named stage, until it is read."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.stage: str | None = None
        """Name of the stage that is running."""
        self.failed: str | None = None
        """Name of the innermost stage that raised an exception."""

    @contextmanager
    def within(self, stage: str) -> Iterator[None]:
        """Name the stage that is running, without counting its seconds."""
        outer, self.stage = self.stage, stage
        try:
            yield
        except BaseException:
            self.failed = self.failed or stage
            raise
        finally:
            self.stage = outer

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the seconds of the block as the stage's."""
        start = self._now()
        try:
            with self.within(stage):
                yield
        finally:
            self.seconds[stage] += self._now() - start

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels run asynchronously
        return running_seconds()

    def read(self) -> dict[str, float]:
        """Return the seconds by stage, as `seconds/STAGE`, and start again from zero."""
        seconds = {f"seconds/{stage}": value for stage, value in self.seconds.items()}
        self.seconds.clear()
        return seconds
