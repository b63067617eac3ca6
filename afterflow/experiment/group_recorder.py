"""Groups of a rollout that are stored to be looked at: their rewards, and the pictures of the best and the worst."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algorithms.base import Scores
from ..objectives.advantages import combine
from ..objectives.preferences import win_rates
from ..sampling.rollout import Plan
from ..system.side_outputs import SideOutputs
from .picture_store import PictureStore, encode_picture

SHOWN_GROUPS = 4
"""Number of groups of an iteration that are stored, at most."""


@dataclass(frozen=True)
class RecordedGroup:
    """The rewards of a group, and its best and worst picture."""

    record: Mapping[str, Any]
    """Record of its prompt."""
    scores: Mapping[str, Any]
    """Its weighted sum of rewards under "total", and rewards and parts by name, each a list of G."""
    shown: tuple[int, int]
    """Indices of its best and its worst image."""
    pictures: tuple[bytes, bytes]
    """Both, encoded."""


class GroupRecorder:
    """Keeps the first groups that are scored in the iteration it waits for; its failures end nothing."""

    def __init__(self, weights: Mapping[str, float], side: SideOutputs) -> None:
        self.weights, self.side = weights, side
        self.step: int | None = None
        """The iteration whose groups are recorded; None: no one's."""
        self.groups: list[RecordedGroup] = []

    def arm(self, step: int | None) -> None:
        """Wait for the groups of iteration `step`, and forget those of others."""
        self.step, self.groups = step, []

    def add(self, images: np.ndarray, records: Sequence[dict], scores: Scores) -> None:
        """Record images (P, G, ...) of P records with their scores, while the iteration has too few groups."""
        if self.step is None or not self.weights or len(self.groups) >= SHOWN_GROUPS:
            return
        with self.side.making("stored groups", self.step):
            rewards = {**scores.rewards, **{name: win_rates(judged) for name, judged in scores.judged.items()}}
            total = combine(rewards, self.weights)
            for p in range(min(len(images), SHOWN_GROUPS - len(self.groups))):
                shown = highest_and_lowest(total[p])
                if shown is not None:
                    values = {"total": total[p].tolist(), "rewards": rows(rewards, p), "parts": rows(scores.parts, p)}
                    best, worst = (encode_picture(images[p, i]) for i in shown)
                    self.groups.append(RecordedGroup(records[p], values, shown, (best, worst)))

    def write(self, store: PictureStore, plan: Plan) -> None:
        """Store the groups of the iteration that was waited for, with the tree that the plan grew, if it grew one."""
        if self.step is None or not self.groups:
            return
        with self.side.making("stored groups", self.step):
            groups = [
                {
                    "record": group.record,
                    **group.scores,
                    "best": group.shown[0],
                    "worst": group.shown[1],
                    "tree": tree_levels(plan, torch.tensor(group.scores["total"])),
                }
                for group in self.groups
            ]
            store.write(self.step, [content for group in self.groups for content in group.pictures], {"groups": groups})


def rows(values: Mapping[str, Tensor], p: int) -> dict[str, list[float]]:
    """Return row p of each tensor (P, G), by name."""
    return {name: value[p].tolist() for name, value in values.items()}


def highest_and_lowest(total: Tensor) -> tuple[int, int] | None:
    """Return the indices of the highest and the lowest reward (G,); None where no image has one."""
    if not bool(total.isfinite().any()):
        return None
    known = total.isfinite()
    best = int(total.masked_fill(~known, -torch.inf).argmax())
    return best, int(total.masked_fill(~known, torch.inf).argmin())


def tree_levels(plan: Plan, total: Tensor) -> list[dict[str, Any]]:
    """Return the levels at which a tree branches, the root first; empty where the plan grows no tree.

    A level has the step before which its states stand, the index of each state's parent, and the mean reward of the
    leaves (G,) below it.
    """
    branching = [k for k in range(plan.steps) if plan.widths[k + 1] > plan.widths[k]]
    if len(branching) < 2:
        return []
    levels, before = [], 1
    for step in (0, *(k + 1 for k in branching)):
        width = plan.widths[step]
        means = total.view(width, -1).nanmean(1).tolist()
        levels.append({"step": step, "parents": [i * before // width for i in range(width)], "rewards": means})
        before = width
    return levels
