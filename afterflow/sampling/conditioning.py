"""Conditioning of a velocity field on prompts, and the rows of supervised training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .flow import expand


class Embedding(NamedTuple):
    """An embedding holds encoded texts, one row each."""

    sequence: Tensor  # (P, L, D)
    pooled: Tensor | None = None  # (P, D')
    mask: Tensor | None = None  # (P, L) long: 0 where a sequence is only padded

    def rows(self, chosen: Tensor | slice) -> "Embedding":
        """Return the embedding of the chosen rows."""
        return Embedding(*(None if x is None else x[chosen] for x in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> "Embedding":
        """Return the embedding on a device."""
        return Embedding(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Conditioning:
    """The prompts of B rows are indices into P records and their U texts, so that no embedding is ever copied."""

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
        """Return the record of each row."""
        return [self.prompts[i] for i in self.index.tolist()]

    def dropped(self, mask: Tensor) -> "Conditioning":
        """Return the conditioning without the prompts of the rows where mask (B,) is true."""
        return replace(self, index=self.index.masked_fill(mask.to(self.index.device), -1))

    def on_device(self) -> "Conditioning":
        """Return the same rows, the embeddings of whose texts were copied to their device once, from pinned memory."""
        device = self.index.device
        if self.positive.sequence.device == device:
            return self
        needed = self.needed()
        columns = [None if x is None else x.pin_memory().to(device, non_blocking=True) for x in needed.positive]
        return replace(needed, positive=Embedding(*columns))  # type: ignore[arg-type]

    def needed(self) -> "Conditioning":
        """Return the same rows, with the embeddings of their own texts alone."""
        used = self.texts[self.index.clamp(min=0)].unique()
        position = torch.zeros(len(self.positive.sequence), dtype=torch.long, device=used.device)
        position[used] = torch.arange(len(used), device=used.device)
        positive = self.positive.rows(used.to(self.positive.sequence.device))
        return replace(self, positive=positive, texts=position[self.texts])

    def embedding(self) -> Embedding:
        """Gather the embeddings of the B rows."""
        chosen, empty = self.texts[self.index.clamp(min=0)], self.index < 0
        rows = self.positive.rows(chosen.to(self.positive.sequence.device)).to(self.index.device)
        columns = [
            None if negative is None or positive is None else torch.where(expand(empty, positive), negative, positive)
            for negative, positive in zip(self.negative, rows)
        ]
        assert columns[0] is not None
        return Embedding(torch.nn.functional.pad(columns[0], (0, 0, 0, self.padding)), *columns[1:])


def condition(
    positive: Embedding, negative: Embedding, prompts: Sequence[dict], texts: Tensor | None = None
) -> Conditioning:
    """Return the conditioning of one row per record, on the device of `negative`.

    texts (P,) holds the row of `positive` that belongs to each record, where records share texts.
    """
    rows = torch.arange(len(prompts), device=negative.sequence.device)
    return Conditioning(positive, rows if texts is None else texts, negative, prompts, rows)


_Rows = TypeVar("_Rows")


def move_rows(rows: _Rows, device: torch.device | str) -> _Rows:
    """Move rows, any dataclass of tensors, to a device; their prompts stay where they are."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        nested = is_dataclass(value) and not isinstance(value, Conditioning)
        return move_rows(value, device) if nested else value

    return replace(rows, **{column.name: move(getattr(rows, column.name)) for column in fields(rows)})  # type: ignore


class Velocity(Protocol):
    """A velocity field is a network, perhaps under guidance, as sampler and algorithms call it."""

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return v(x, t | cond): (B, ...), (B,), B rows → (B, ...)."""
        ...


def linear_guidance(empty: Tensor, full: Tensor, scale: float) -> Tensor:
    """Return v_∅ + scale (v_c - v_∅), classifier-free guidance as it was published (arXiv:2207.12598)."""
    return empty + scale * (full - empty)


@dataclass(frozen=True)
class Pairs:
    """Clean latents with their prompts are what supervised algorithms learn from."""

    x0: Tensor  # (B, ...)
    cond: Conditioning  # B rows
    seeds: Tensor | None = None  # (B,) long: each row draws its random numbers from its seed; the trainer sets them
    masses: Tensor | None = None  # (B,) fp64: how much each row counts in its update; None: all alike
    rejected: Tensor | None = None  # (B, ...): latents that lost against x0 for the same prompt, where there are pairs

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows: Tensor) -> "Pairs":
        columns = (self.seeds, self.masses, self.rejected)
        return Pairs(self.x0[rows], self.cond[rows], *(None if x is None else x[rows.to(x.device)] for x in columns))

    def mass(self, rows: Tensor) -> float:
        """Return how much these rows count beside others of the same update: their masses, or their number."""
        return float(len(rows) if self.masses is None else self.masses[rows.to(self.masses.device)].sum())
