"""Signs that training goes wrong, told once while it runs."""

import math
import statistics
from collections import deque
from collections.abc import Mapping

WINDOW = 10
"""Number of iterations over which a sign is averaged."""
NEARLY_ALL = 0.9
"""Share of groups without spread, or of clipped ratios and masked steps, from which hardly anything is learnt."""
RUNAWAY = 10.0
"""Growth of a number from one window to the next that no healthy run shows after its beginning."""

HEALTH_REMEDIES = {
    "zero_std_groups": (
        "of the groups have one reward for all their images and teach nothing; take prompts that are met now and then, "
        "a reward with degrees, or more images of a prompt (--algorithm.group)"
    ),
    "masked_fraction": (
        "of the steps are masked and teach nothing; lower --learning-rate, or raise --algorithm.divergence"
    ),
    "clip_fraction": "of the ratios are clipped and teach nothing; lower --learning-rate, or widen --algorithm.clip",
    "kl": "lower --learning-rate, or raise --algorithm.beta; what was learnt before is in checkpoints/ and best/",
    "grad_norm": "lower --learning-rate, or --max-grad-norm; look at samples/",
}
"""Metric → what its sign means, or what to do."""


class HealthWatch:
    """Looks at the metrics of iterations as they come, and has a sentence for every sign, once."""

    def __init__(self) -> None:
        self.values: dict[str, deque[float]] = {name: deque(maxlen=2 * WINDOW) for name in HEALTH_REMEDIES}
        self.seen: dict[str, int] = dict.fromkeys(HEALTH_REMEDIES, 0)
        self.reported: set[str] = set()

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Return the sentences that the metrics of one more iteration give reason for."""
        sentences = []
        for name, values in self.values.items():
            if name not in metrics or not math.isfinite(metrics[name]):
                continue
            values.append(metrics[name])
            self.seen[name] += 1
            sentence = None if name in self.reported else self.sign(name)
            if sentence is not None:
                self.reported.add(name)
                sentences.append(sentence)
        return sentences

    def sign(self, name: str) -> str | None:
        """Return what is wrong with a metric's last values; None where nothing is."""
        values, remedy = list(self.values[name]), HEALTH_REMEDIES[name]
        recent = values[-WINDOW:]
        if len(recent) < WINDOW:
            return None
        mean = statistics.mean(recent)
        if name in ("zero_std_groups", "clip_fraction", "masked_fraction"):
            return f"{mean:.0%} {remedy}" if mean >= NEARLY_ALL else None
        # At its beginning a KL grows from 0, by more than any factor.
        before = statistics.median(values[:WINDOW])
        if self.seen[name] < 3 * WINDOW or not 0 < before * RUNAWAY <= statistics.median(recent):
            return None
        return (
            f"{name} runs away, from {before:.2g} to {statistics.median(recent):.2g} in {WINDOW} iterations; {remedy}"
        )
