"""Limits of a run: iterations, and seconds of training."""

from dataclasses import dataclass


@dataclass
class Budget:
    """Limits of a run, and the training time it has used."""

    iterations: int
    """Number of iterations."""
    seconds: float | None = None
    """Seconds of training; None means no limit."""
    used: float = 0.0
    """Seconds of training so far, without evaluation, sample images and checkpoints."""

    def fraction_done(self, step: int) -> float:
        """Return the share in [0, 1] that is done before iteration `step`, by whichever limit is nearer."""
        by_time = 0.0 if self.seconds is None else self.used / self.seconds
        return min(1.0, max(step / self.iterations, by_time))

    def ends(self, step: int) -> bool:
        """Return whether iteration `step`, now finished, was the last."""
        return self.fraction_done(step + 1) == 1.0
