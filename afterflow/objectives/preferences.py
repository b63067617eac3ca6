"""Win rates come from pairwise verdicts (Pref-GRPO, arXiv:2508.20751).

judged (P, G, G) holds in [i, j] whether image i, shown first, beats image j, shown second: 1, 0, 0.5 for a tie or
anything between.  It is NaN where that pair was not shown in that order, as on the diagonal.
"""

import torch
from torch import Tensor


def pairs(group: int, opponents: int | None, both_orders: bool, generator: torch.Generator) -> Tensor:
    """Draw which pairs to show in which order, (G, G) bool; every image meets `opponents` others (None: all).

    A pair shown in one order only is shown in a random one: in order of index, a judge that favours what it sees
    first would rank the images by their index.
    """
    seat = torch.randperm(group, generator=generator)
    apart = (seat[:, None] - seat).abs()
    distance = torch.minimum(apart, group - apart)  # of seats around a table
    meets = (distance > 0) & (distance <= (group if opponents is None else opponents // 2))
    if both_orders:
        return meets
    first = torch.rand(group, group, generator=generator) < 0.5
    return meets & torch.where(seat[:, None] < seat, first, ~first.T)


def beats(judged: Tensor) -> Tensor:
    """Return how far i beats j, (P, G, G), the mean of both orders where both were shown.

    i over j plus j over i is 1, so orders that contradict each other make a tie.
    """
    return torch.stack([judged, 1 - judged.transpose(1, 2)]).nanmean(0)


def best_and_worst(reward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best and the worst of each group, and whether they differ, (P, G) → (P,) each; a NaN is neither."""
    best, worst = reward.nan_to_num(-torch.inf).argmax(1), reward.nan_to_num(torch.inf).argmin(1)
    return best, worst, (reward.gather(1, best[:, None]) > reward.gather(1, worst[:, None]))[:, 0]


def win_rates(judged: Tensor) -> Tensor:
    """Return the share of its comparisons that an image wins, (P, G); a tie is half a win.

    The mean of a full group is 0.5.
    """
    return beats(judged).nanmean(2)


def consistency(judged: Tensor) -> Tensor:
    """Return the share of the pairs shown in both orders whose verdicts agree, (P,); 1 where no pair was.

    A tie agrees with anything.
    """
    both = ~(judged.isnan() | judged.transpose(1, 2).isnan())
    agree = ((judged - 0.5) * (judged.transpose(1, 2) - 0.5) <= 0) & both
    return torch.where(both.any(2).any(1), agree.sum((1, 2)) / both.sum((1, 2)).clamp(min=1), 1.0)
