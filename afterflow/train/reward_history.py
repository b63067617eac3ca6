"""Earlier rewards of each prompt, for algorithms that compare with them."""

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class RewardHistory:
    """The last `size` rewards of each kind and prompt.  It is part of a checkpoint."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: dict[str, dict[str, deque[float]]] = {}  # reward → prompt → values, the newest last

    def recall(self, names: Sequence[str], records: Sequence[dict]) -> dict[str, Tensor]:
        """(P, size) of each reward, padded with NaN on the left."""
        return {name: torch.stack([self._row(name, record["prompt"]) for record in records]) for name in names}

    def _row(self, name: str, prompt: str) -> Tensor:
        values = list(self.kept.get(name, {}).get(prompt, ()))
        return torch.tensor([torch.nan] * (self.size - len(values)) + values)

    def add(self, rewards: Mapping[str, Tensor], records: Sequence[dict]) -> None:
        """Rewards (P, G) of P records, without those that are NaN."""
        for name, value in rewards.items():
            of_prompt = self.kept.setdefault(name, {})
            for record, row in zip(records, value.tolist()):
                of_prompt.setdefault(record["prompt"], deque(maxlen=self.size)).extend(v for v in row if v == v)

    def state(self) -> dict[str, dict[str, list[float]]]:
        """For JSON."""
        return {name: {prompt: list(row) for prompt, row in rows.items()} for name, rows in self.kept.items()}

    def load(self, state: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        self.kept = {
            name: {prompt: deque(row, maxlen=self.size) for prompt, row in rows.items()} for name, rows in state.items()
        }
