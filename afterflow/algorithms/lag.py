"""How slowly an average of the policy follows it: the old policy of forward-process methods, and the KL's average."""

from dataclasses import dataclass

from ..system.errors import ConfigError


@dataclass(frozen=True)
class Lag:
    """After each iteration an average becomes d of itself and 1 - d of the policy (DiffusionNFT, arXiv:2509.16117).

    d = min(start + slope max(0, k - flat), highest) after k optimizer updates of the run.
    """

    start: float = 0.0
    """d of the first updates; 0 is the policy itself."""
    slope: float = 0.001
    """Growth of d with each update."""
    flat: int = 0
    """Number of updates before d grows."""
    highest: float = 0.5
    """Largest d."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.highest < 1:
            raise ConfigError(
                f"lag.start = {self.start}, lag.highest = {self.highest}: shares of the average that stay, so "
                "0 <= start <= highest < 1"
            )
        if self.slope < 0 or self.flat < 0:
            raise ConfigError(f"lag.slope = {self.slope}, lag.flat = {self.flat}: 0 or more")

    @property
    def follows_at_once(self) -> bool:
        """Return whether the average is always the policy itself, so that no copy is needed."""
        return self.highest == 0 or (self.start == 0 and self.slope == 0)

    def decay(self, updates: int) -> float:
        """Return d after so many optimizer updates."""
        return min(self.start + self.slope * max(0, updates - self.flat), self.highest)
