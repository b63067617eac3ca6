"""Earlier rewards of each prompt, for algorithms that compare with them."""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algorithms.base import Scores
from ..system.input_pictures import content_key, input_names


class RewardHistory:
    """The last `size` rewards of each kind and prompt.  It is part of a checkpoint."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: dict[str, dict[str, deque[float]]] = {}  # reward → prompt → values, the newest last

    def attach(self, scores: Scores, records: Sequence[dict]) -> Scores:
        """Return the scores of P records with the earlier rewards of their prompts, and remember the new ones."""
        past, prompts = self.recall(list(scores.rewards), records), [history_key(record) for record in records]
        self.add(scores.rewards, records)
        return replace(scores, past=past, prompt=torch.tensor([prompts.index(prompt) for prompt in prompts]))

    def recall(self, names: Sequence[str], records: Sequence[dict]) -> dict[str, Tensor]:
        """Return the history of each reward, (P, size), padded with NaN on the left."""
        return {name: torch.stack([self._row(name, history_key(record)) for record in records]) for name in names}

    def _row(self, name: str, prompt: str) -> Tensor:
        values = list(self._values.get(name, {}).get(prompt, ()))
        return torch.tensor([torch.nan] * (self.size - len(values)) + values)

    def add(self, rewards: Mapping[str, Tensor], records: Sequence[dict]) -> None:
        """Remember rewards (P, G) of P records, of the images that have them all.

        An image without one of them is left out of all, so that rewards of one place are of one image.
        """
        missing = torch.stack([value.isnan() for value in rewards.values()]).any(0)
        for name, value in rewards.items():
            by_prompt = self._values.setdefault(name, {})
            for record, row in zip(records, value.masked_fill(missing, torch.nan).tolist()):
                by_prompt.setdefault(history_key(record), deque(maxlen=self.size)).extend(v for v in row if v == v)

    def state(self) -> dict[str, dict[str, list[float]]]:
        """Return the history as what `json.dumps` takes."""
        return {name: {prompt: list(row) for prompt, row in rows.items()} for name, rows in self._values.items()}

    def load(self, state: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Take up the history that `state` returned."""
        self._values = {
            name: {prompt: deque(row, maxlen=self.size) for prompt, row in rows.items()} for name, rows in state.items()
        }


def history_key(record: Mapping[str, Any]) -> str:
    """Return the key of a prompt in a checkpoint: its text, with a digest of the pictures that it is about."""
    if not input_names(record):
        return record["prompt"]
    return f"{record['prompt']} {hashlib.sha256(repr(content_key(record)).encode()).hexdigest()}"
