"""Judges: what Pref-GRPO asks which of two images is better."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .shapes import verdicts


@dataclass(frozen=True)
class ShapesJudge:
    """The shapes world's verifier as a judge with the flaws of a vision-language model, each adjustable."""

    score: str = "partial"
    """The verdict it goes by: partial, strict or closed."""
    noise: float = 0.0
    """Standard deviation of what it adds to each difference, anew for each pair and order."""
    bias: float = 0.0
    """How much it favours the image that it is shown first."""
    margin: float = 0.0
    """Smaller differences are ties."""
    softness: float = 0.0
    """0: it says first, second or tie; else it says how sure it is, sigmoid(difference / softness)."""

    def __post_init__(self) -> None:
        if self.score not in ("partial", "strict", "closed"):
            raise ValueError(f"judge.score = {self.score!r}: take partial, strict or closed")
        for name in ("noise", "bias", "margin", "softness"):
            if getattr(self, name) < 0:
                raise ValueError(f"judge.{name} = {getattr(self, name)}: 0 or more")
        if self.margin and self.softness:
            raise ValueError(
                "judge.margin makes ties of a judge that says first or second; leave softness at 0 with it"
            )

    def __call__(
        self,
        images: np.ndarray,
        records: Sequence[dict],
        first: np.ndarray,
        second: np.ndarray,
        seeds: np.ndarray,
    ) -> np.ndarray:
        score = np.array([verdict[self.score] for verdict in verdicts(images, records)])
        difference = score[first] - score[second] + self.bias
        if self.noise:
            draws = [np.random.default_rng(seed).standard_normal() for seed in seeds.tolist()]
            difference = difference + self.noise * np.array(draws)
        if self.softness:
            return 1 / (1 + np.exp(-difference / self.softness))
        return np.where(np.abs(difference) <= self.margin, 0.5, difference > 0)
