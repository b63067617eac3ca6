"""How much of a run is done."""

from dataclasses import dataclass


@dataclass
class Budget:
    """Iterations, and seconds of training where they are limited."""

    iterations: int
    seconds: float | None = None
    used: float = 0.0
    """Seconds of training so far; evaluation, pictures and checkpoints do not count."""

    def done(self, step: int) -> float:
        """Share in [0, 1] that is done before iteration `step`, by whichever limit is nearer."""
        by_time = 0.0 if self.seconds is None else self.used / self.seconds
        return min(1.0, max(step / self.iterations, by_time))

    def ends(self, step: int) -> bool:
        """Whether iteration `step`, now finished, was the last."""
        return self.done(step + 1) == 1.0
