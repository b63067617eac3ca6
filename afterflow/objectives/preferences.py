"""Win rates from pairwise verdicts (Pref-GRPO, arXiv:2508.20751).

judged (P, G, G) holds in [i, j] whether image i, shown first, beats image j, shown second: 1, 0, 0.5 for a tie or
anything between; NaN where that pair was not shown in that order, as on the diagonal.
"""

import torch
from torch import Tensor


def pairs(group: int, opponents: int | None, both_orders: bool, generator: torch.Generator) -> Tensor:
    """(G, G) bool: which pairs to show in which order, so that every image meets `opponents` others (None: all).

    A pair shown in one order only is shown in a random one: in order of index, a judge that favours what it sees
    first would rank the images by their index.
    """
    place = torch.randperm(group, generator=generator)
    apart = (place[:, None] - place).abs()
    distance = torch.minimum(apart, group - apart)  # of seats around a table
    meets = (distance > 0) & (distance <= (group if opponents is None else opponents // 2))
    if both_orders:
        return meets
    first = torch.rand(group, group, generator=generator) < 0.5
    return meets & torch.where(place[:, None] < place, first, ~first.T)


def beats(judged: Tensor) -> Tensor:
    """(P, G, G): how far i beats j, the mean of both orders where both were shown; i over j plus j over i is 1.

    Orders that contradict each other thus make a tie.
    """
    return torch.stack([judged, 1 - judged.transpose(1, 2)]).nanmean(0)


def win_rates(judged: Tensor) -> Tensor:
    """(P, G): share of its comparisons that an image wins, ties as halves.  The mean of a full group is 0.5."""
    return beats(judged).nanmean(2)


def consistency(judged: Tensor) -> Tensor:
    """(P,): share of the pairs shown in both orders whose two verdicts agree; 1 where no pair was.

    A tie agrees with anything.
    """
    known = ~(judged.isnan() | judged.transpose(1, 2).isnan())
    agree = ((judged - 0.5) * (judged.transpose(1, 2) - 0.5) <= 0) & known
    return torch.where(known.any(2).any(1), agree.sum((1, 2)) / known.sum((1, 2)).clamp(min=1), 1.0)
