"""Scores of an iteration's images: gathered from all processes, checked, and summed up for the log."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..algorithms.base import Scores
from ..objectives.advantages import combine, nanstd
from ..objectives.preferences import consistency, win_rates
from ..system.errors import TrainingStopped
from .clock import Clock
from .distributed import Processes

_log = logging.getLogger(__name__)

Score = Callable[[Tensor, Sequence[dict], Sequence[torch.Generator], Clock], Scores]
"""A function of finished latents (P, G, ...), their P records and as many generators.

It returns scores on the CPU, with NaN where one failed.
"""


T = TypeVar("T")


def gather_scores(work: Callable[[], tuple[T, Scores]], processes: Processes) -> tuple[T, Scores]:
    """Run `work` on every process; return what it made on this one and the scores of all prompts.

    Where `work` fails on one process, all stop, as `Processes.run_on_all` does.
    """
    if processes.count == 1:
        made, scores = work()
        return made, concatenate_scores([scores])  # contiguous, as those of several processes are
    products = []

    def scores_for_json() -> dict[str, Any]:
        made, scores = work()
        products.append(made)
        return scores_to_json(scores)

    scores = concatenate_scores([scores_from_json(data) for data in processes.run_on_all(scores_for_json)])
    return products[0], scores


def scores_to_json(scores: Scores) -> dict[str, Any]:
    """Return scores as what `json.dumps` takes; float32 comes back as it was."""
    tensors = ("rewards", "judged", "parts")
    lists = {kind: {name: value.tolist() for name, value in getattr(scores, kind).items()} for kind in tensors}
    return {**lists, "failures": {name: list(reasons) for name, reasons in scores.failures.items()}}


def scores_from_json(data: Mapping[str, Any]) -> Scores:
    """Return the scores that `scores_to_json` wrote."""
    rewards, judged, parts = (
        {name: torch.tensor(value) for name, value in data[kind].items()} for kind in ("rewards", "judged", "parts")
    )
    return Scores(rewards, judged, parts=parts, failures=data["failures"])


def concatenate_scores(groups: Sequence[Scores]) -> Scores:
    """Join the scores of several groups of prompts to the scores of all."""

    def names(kind: str) -> Iterable[str]:
        return dict.fromkeys(name for scores in groups for name in getattr(scores, kind))

    def joined(kind: str) -> dict[str, Tensor]:
        return {name: torch.cat([getattr(scores, kind)[name] for scores in groups]) for name in names(kind)}

    def part(scores: Scores, name: str) -> Tensor:
        # Where every image of a group failed, it has no parts.
        return scores.parts.get(name, next(iter(scores.rewards.values())) * torch.nan)

    parts = {name: torch.cat([part(scores, name) for scores in groups]) for name in names("parts")}
    failures = {name: [reason for scores in groups for reason in scores.failures[name]] for name in names("failures")}
    return Scores(joined("rewards"), joined("judged"), parts=parts, failures=failures)


def check_scores(scores: Scores, records: Sequence[dict], step: int, max_missing: float) -> None:
    """Log which images have no score and which pairs no verdict.

    TrainingStopped is raised where their share is above `max_missing`.
    """
    for name, value in scores.rewards.items():
        missing = (~value.isfinite()).nonzero().tolist()
        if missing:
            default = [f"{records[p]['prompt']!r}: it is not a finite number" for p, _ in missing]
            reasons = scores.failures.get(name, default)
            message = f"step {step}: {len(missing)} of {value.numel()} images have no {name}; {'; '.join(reasons[:3])}"
            _report(message, len(missing) > max_missing * value.numel())
    for name, judged in scores.judged.items():
        reasons = scores.failures.get(name, ())
        shown = int(judged.isfinite().sum()) + len(reasons)
        if reasons:
            message = f"step {step}: {len(reasons)} of {shown} comparisons have no verdict; {'; '.join(reasons[:3])}"
            _report(message, len(reasons) > max_missing * shown)


def _report(message: str, stop: bool) -> None:
    if stop:
        raise TrainingStopped(message)
    _log.warning(message)


def score_metrics(scores: Scores, weights: Mapping[str, float]) -> dict[str, float]:
    """Return mean and std within groups of each reward, and the share of groups that teach nothing."""
    metrics, values = {}, dict(scores.rewards)
    for name, judged in scores.judged.items():
        values[name] = win_rates(judged)
        metrics[f"consistency/{name}"] = consistency(judged).mean().item()
    for name, value in values.items():
        metrics[f"reward/{name}"] = value.nanmean().item()
        metrics[f"reward_std/{name}"] = nanstd(value, 0).mean().item()
        if value.isnan().any():
            metrics[f"invalid/{name}"] = value.isnan().float().mean().item()
    for name, value in scores.parts.items():
        metrics[f"part/{name}"] = value.nanmean().item()
    if not weights:
        return metrics
    total = combine(values, weights)
    metrics["reward"] = total.nanmean().item()
    if total.shape[1] > 1:
        # In fp32 the mean of equal values is often off by a digit, and they would seem to differ.
        metrics["zero_std_groups"] = (nanstd(total.double(), 0) == 0).float().mean().item()
    return metrics
