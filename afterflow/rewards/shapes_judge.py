"""The shapes world's verifier as a judge of two images, for Pref-GRPO."""

from dataclasses import dataclass

import numpy as np

from ..system.checks import check_not_negative
from ..system.errors import ConfigError
from .base import ImagePairs
from .shapes import shapes_verdicts


@dataclass(frozen=True)
class ShapesJudge:
    """The shapes world's verifier as a judge with the flaws of a vision-language model, each adjustable."""

    score: str = "partial"
    """The verdict that decides: partial, strict or closed."""
    noise: float = 0.0
    """Standard deviation of the noise on each difference, which is drawn anew for each pair and order."""
    bias: float = 0.0
    """The constant that is added to the score of the image shown first."""
    margin: float = 0.0
    """Differences of at most this size are ties."""
    softness: float = 0.0
    """With 0 the answer is first, second or tie.  Otherwise it is a probability, sigmoid(difference / softness)."""

    def __post_init__(self) -> None:
        if self.score not in ("partial", "strict", "closed"):
            raise ConfigError(f"judge.score = {self.score!r}: take partial, strict or closed")
        check_not_negative(self, "noise", "bias", "margin", "softness", prefix="judge.")
        if self.margin and self.softness:
            raise ConfigError(
                "judge.margin makes ties of a judge that says first or second; leave softness at 0 with it"
            )

    def __call__(self, pairs: ImagePairs) -> np.ndarray:
        """Return how much the first image of each pair is better, (Q,) in [0, 1]."""
        score = np.array([verdict[self.score] for verdict in shapes_verdicts(pairs.images, pairs.records)])
        difference = score[pairs.first] - score[pairs.second] + self.bias
        if self.noise:
            draws = [np.random.default_rng(seed).standard_normal() for seed in pairs.seeds.tolist()]
            difference = difference + self.noise * np.array(draws)
        if self.softness:
            return 1 / (1 + np.exp(-difference / self.softness))
        return np.where(np.abs(difference) <= self.margin, 0.5, difference > 0)
