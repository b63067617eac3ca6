"""Whether a run is well, from the lines of its metrics."""

import math
import statistics

from ..experiment.progress import MetricLines


def first_and_last(name: str, metrics: MetricLines) -> str | None:
    """Return the first and last value of a metric that is not measured at every iteration."""
    values = [line[name] for line in metrics if isinstance(line.get(name), int | float)]
    return f"{name} {values[0]:.4g} → {values[-1]:.4g}" if values else None


def first_alarm(metrics: MetricLines) -> int | None:
    """Return the first iteration at which a trained reward rose while a hidden one fell; None where none did."""
    return next((int(line["step"]) for line in metrics if line.get("alarm")), None)


def health_warnings(recent: MetricLines, alarm: int | None) -> list[str]:
    """Return a sentence for each thing in the last iterations that somebody should look at.

    `alarm` is the first iteration with an alarm.
    """
    sentences = []
    if alarm is not None:
        sentences.append(f"ALARM since iteration {alarm}: a reward that is not trained has fallen; look at samples/")
    for name in recent[-1]:
        if name.startswith("invalid/"):
            sentences.append(f"{recent[-1][name]:.0%} of the last images have no {name.removeprefix('invalid/')}")
    if any(not math.isfinite(line.get("grad_norm", 0)) for line in recent):
        sentences.append("a gradient was not finite")
    tied = statistics.mean(line.get("zero_std_groups", 0) for line in recent)
    if tied > 0.5:
        sentences.append(f"{tied:.0%} of the groups have one reward for all their images, and teach nothing")
    clipped = statistics.mean(line.get("clip_fraction", 0) for line in recent)
    if clipped > 0.5:
        sentences.append(f"{clipped:.0%} of the ratios are clipped; lower the learning rate, or widen clip")
    masked = statistics.mean(line.get("masked_fraction", 0) for line in recent)
    if masked > 0.5:
        sentences.append(f"{masked:.0%} of the steps are masked; lower the learning rate, or raise divergence")
    return sentences
