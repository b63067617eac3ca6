"""Where the seconds of an iteration go."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds per named stage since it was last read."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.stage: str | None = None
        """The one under way."""
        self.failed: str | None = None
        """The innermost that an exception has left."""

    @contextmanager
    def within(self, stage: str) -> Iterator[None]:
        """Say what is under way, and count nothing."""
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
        start = self._now()
        try:
            with self.within(stage):
                yield
        finally:
            self.seconds[stage] += self._now() - start

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels run behind our back
        return time.perf_counter()

    def read(self) -> dict[str, float]:
        """Seconds by stage; starts anew."""
        seconds = {f"seconds/{stage}": value for stage, value in self.seconds.items()}
        self.seconds.clear()
        return seconds
