"""What a velocity field is conditioned on, and the example of supervised training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .flow import expand


class Embedding(NamedTuple):
    """Encoded texts, one row each."""

    sequence: Tensor  # (P, L, D)
    pooled: Tensor | None = None  # (P, D')
    mask: Tensor | None = None  # (P, L) long: 0 where a sequence is only padded

    def rows(self, chosen: Tensor | slice) -> "Embedding":
        return Embedding(*(None if x is None else x[chosen] for x in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> "Embedding":
        return Embedding(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Conditioning:
    """The prompts of B rows, as indices into P records and their U texts, so that no embedding is ever copied."""

    positive: Embedding  # U rows; they may lie in the CPU's memory, since those of T5 and many prompts fill a GPU
    texts: Tensor  # (P,) long: which of them is a record's
    negative: Embedding  # 1 row: what guidance steers away from, and what a dropped prompt becomes
    prompts: Sequence[dict]  # P records as the data set gave them: {"prompt": ..., "tag": ...}
    index: Tensor  # (B,) long; -1 is the negative
    padding: int = 0  # zero vectors appended to each sequence, as stock SD3 does where it has no T5

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> "Conditioning":
        return replace(self, index=self.index[rows.to(self.index.device)])

    def records(self) -> list[dict]:
        """The rows' own records."""
        return [self.prompts[i] for i in self.index.tolist()]

    def dropped(self, mask: Tensor) -> "Conditioning":
        """The rows where mask (B,) is true lose their prompt."""
        return replace(self, index=self.index.masked_fill(mask.to(self.index.device), -1))

    def embedding(self) -> Embedding:
        """The rows' embeddings, gathered: B rows."""
        chosen, empty = self.texts[self.index.clamp(min=0)], self.index < 0
        rows = self.positive.rows(chosen.to(self.positive.sequence.device)).to(self.index.device)
        columns = zip(self.negative, rows)
        found = [None if n is None or p is None else torch.where(expand(empty, p), n, p) for n, p in columns]
        assert found[0] is not None
        return Embedding(torch.nn.functional.pad(found[0], (0, 0, 0, self.padding)), *found[1:])


def condition(
    positive: Embedding, negative: Embedding, prompts: Sequence[dict], texts: Tensor | None = None
) -> Conditioning:
    """A Cond of one row per record; texts (P,) says which row of `positive` is whose where records share them.

    Rows are on the device of `negative`.
    """
    rows = torch.arange(len(prompts), device=negative.sequence.device)
    return Conditioning(positive, rows if texts is None else texts, negative, prompts, rows)


T = TypeVar("T")


def move_rows(rows: T, device: torch.device | str) -> T:
    """Rows, any dataclass of tensors, on a device; their prompts stay where they are."""
    found = {}
    for each in fields(rows):  # type: ignore[arg-type]
        value = getattr(rows, each.name)
        inner = is_dataclass(value) and not isinstance(value, Conditioning)
        found[each.name] = (
            value.to(device) if isinstance(value, Tensor) else move_rows(value, device) if inner else value
        )
    return replace(rows, **found)  # type: ignore[type-var]


class Velocity(Protocol):
    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """v(x, t | cond): (B, ...), (B,), B rows → (B, ...)."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Clean latents with their prompts: what supervised algorithms learn from."""

    x0: Tensor  # (B, ...)
    cond: Conditioning  # B rows

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows: Tensor) -> "Pairs":
        return Pairs(self.x0[rows], self.cond[rows])

    def mass(self, rows: Tensor) -> float:
        """How much these rows count beside others of the same update."""
        return float(len(rows))
