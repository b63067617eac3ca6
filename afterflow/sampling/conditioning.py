"""Conditioning of a velocity field on prompts, and the rows of supervised training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .device_copies import to_device
from .flow import expand


class Embedding(NamedTuple):
    """An embedding holds encoded texts, one row each."""

    sequence: Tensor  # (P, L, D)
    pooled: Tensor | None = None  # (P, D')
    mask: Tensor | None = None  # (P, L) long: 0 where a sequence is only padded
    pictures: Tensor | None = None  # (P, N, C, h, w): latents of the N pictures that each text is about

    def rows(self, chosen: Tensor | slice) -> "Embedding":
        """Return the embedding of the chosen rows, each column where it lies."""
        there = chosen if isinstance(chosen, slice) else to_device(chosen, self.sequence.device)
        return Embedding(*(None if x is None else x[chosen if x.is_cpu else there] for x in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> "Embedding":
        """Return the embedding on a device."""
        return Embedding(*(None if x is None else to_device(x, device) for x in self))  # type: ignore[arg-type]

    def resident(self, device: torch.device | str) -> "Embedding":
        """Return the embedding on a device, but the mask where it is: the host reads the lengths of texts from it."""
        return self.to(device)._replace(mask=self.mask)


def concatenate_embeddings(parts: Sequence[Embedding]) -> Embedding:
    """Concatenate batches, shorter sequences padded with zeros, which their mask leaves out."""
    length = max(part.sequence.shape[1] for part in parts)
    columns = zip(*(pad_sequence(part, length) for part in parts))
    return Embedding(*(None if column[0] is None else torch.cat(column).contiguous() for column in columns))  # type: ignore[arg-type]


def text_lengths(embedding: Embedding) -> Tensor:
    """Return the number of vectors of each text, (P,) long on the CPU, without padding."""
    if embedding.mask is None:
        return torch.full((len(embedding.sequence),), embedding.sequence.shape[1])
    return embedding.mask.sum(1).cpu()


def pad_sequence(embedding: Embedding, length: int) -> Embedding:
    """Pad sequences to `length` vectors with zeros."""
    missing = length - embedding.sequence.shape[1]
    sequence = torch.nn.functional.pad(embedding.sequence, (0, 0, 0, missing))
    mask = None if embedding.mask is None else torch.nn.functional.pad(embedding.mask, (0, missing))
    return embedding._replace(sequence=sequence, mask=mask)


@dataclass(frozen=True)
class Conditioning:
    """The prompts of B rows are indices into P records and their U texts, so that no embedding is ever copied.

    A picture that a text is about stays with it when the text is dropped.
    """

    positive: Embedding  # U rows; they may lie in the CPU's memory, since those of T5 and many prompts fill a GPU
    texts: Tensor  # (P,) long, on the CPU: which of them is a record's
    negative: Embedding  # 1 row, or U: what guidance steers away from, and what a dropped prompt becomes
    prompts: Sequence[dict]  # P records as the data set gave them: {"prompt": ..., "tag": ...}
    index: Tensor  # (B,) long, on the CPU; -1 - i is record i without its prompt
    device: torch.device  # where velocities are computed
    padding: int = 0  # zero vectors appended to each sequence, as stock SD3 does where it has no T5

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> "Conditioning":
        return replace(self, index=self.index[rows])

    def records(self) -> list[dict]:
        """Return the record of each row."""
        return [self.prompts[i] for i in self.record_index.tolist()]

    @property
    def record_index(self) -> Tensor:
        """Which record is each row's, (B,) long, whether its prompt is dropped or not."""
        return torch.where(self.index < 0, -1 - self.index, self.index)

    def dropped(self, mask: Tensor) -> "Conditioning":
        """Return the conditioning without the prompts of the rows where mask (B,) is true."""
        drop = mask & (self.index >= 0)
        return replace(self, index=torch.where(drop, -1 - self.index, self.index))

    def unprompted(self) -> "Conditioning":
        """Return the conditioning without the prompts of all rows."""
        return replace(self, index=-1 - self.record_index)

    def on_device(self) -> "Conditioning":
        """Return the same rows, the embeddings of whose texts were copied to the device once."""
        if self.positive.sequence.device == self.device:
            return self
        needed = self.needed()
        positive, negative = needed.positive.resident(self.device), needed.negative.resident(self.device)
        return replace(needed, positive=positive, negative=negative)

    def needed(self) -> "Conditioning":
        """Return the same rows, with the embeddings of their own texts alone."""
        used = self.texts[self.record_index].unique()
        position = torch.zeros(len(self.positive.sequence), dtype=torch.long)
        position[used] = torch.arange(len(used))
        subset = lambda part: part.rows(used) if len(part.sequence) > 1 else part
        return replace(self, positive=subset(self.positive), negative=subset(self.negative), texts=position[self.texts])

    def lengths(self) -> Tensor:
        """Return the number of vectors of each row's text, (B,) long on the CPU, without padding."""
        chosen, negative = self.texts[self.record_index], text_lengths(self.negative)
        negative = negative[chosen] if len(negative) > 1 else negative
        return torch.where(self.index < 0, negative, text_lengths(self.positive)[chosen])

    def embedding(self) -> Embedding:
        """Gather the embeddings of the B rows on the device."""
        chosen, empty = self.texts[self.record_index], to_device(self.index < 0, self.device)
        rows, negatives = self.positive.rows(chosen).to(self.device), self.negative
        if len(negatives.sequence) > 1:
            negatives = negatives.rows(chosen)
        negatives = negatives.to(self.device)
        sequence, pooled, mask = (
            None if negative is None or positive is None else torch.where(expand(empty, positive), negative, positive)
            for negative, positive in zip(negatives[:3], rows[:3])
        )
        assert sequence is not None
        return Embedding(torch.nn.functional.pad(sequence, (0, 0, 0, self.padding)), pooled, mask, rows.pictures)


def condition(
    positive: Embedding,
    negative: Embedding,
    prompts: Sequence[dict],
    texts: Tensor | None = None,
    device: torch.device | None = None,
) -> Conditioning:
    """Return the conditioning of one row per record.

    Args:
        positive: The encoded texts.
        negative: The encoded empty text, or one for each text.
        prompts: P records.
        texts: The row of `positive` that belongs to each record, (P,) long, where records share texts.
        device: Where velocities are computed; None: where `negative` lies.
    """
    rows = torch.arange(len(prompts), device="cpu")
    device = negative.sequence.device if device is None else device
    return Conditioning(positive, rows if texts is None else texts, negative, prompts, rows, device)


_Rows = TypeVar("_Rows")


def move_rows(rows: _Rows, device: torch.device | str) -> _Rows:
    """Move the numbers of rows, any dataclass of tensors, to a device.

    Whole numbers stay on the CPU, where indices, counts and seeds are read, and so do prompts.
    """

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return to_device(value, device) if value.is_floating_point() else value
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
    masses: Tensor | None = None  # (B,) fp64, on the CPU: how much each row counts in its update; None: all alike
    rejected: Tensor | None = None  # (B, ...): latents that lost against x0 for the same prompt, where there are pairs

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows: Tensor) -> "Pairs":
        columns = (self.seeds, self.masses, self.rejected)
        x0, cond = self.x0[to_device(rows, self.x0.device)], self.cond[rows]
        return Pairs(x0, cond, *(None if x is None else x[to_device(rows, x.device)] for x in columns))

    def mass(self, rows: Tensor) -> float:
        """Return how much these rows count beside others of the same update: their masses, or their number."""
        return float(len(rows) if self.masses is None else self.masses[rows].sum())
