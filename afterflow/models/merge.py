"""LoRAs merged into one, by what they add to the weights: ΔW = α/r · B A.

Averaging the factors instead gives (1/K²) Σ B_i A_j, which is another matrix wherever the A's differ; released code
does so.  Here a sum of ΔW is exact at rank Σ r_i, and cut to a lower rank it is the nearest there is (its SVD).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, ties
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .lora import lora_file

MergeName = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
PRUNING: dict[MergeName, Callable[[list[Tensor], Tensor, float], Tensor]] = {
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "magnitude_prune": magnitude_prune,
}


@dataclass(frozen=True)
class Factors:
    """What a LoRA adds to one layer: B A, the scale in B."""

    A: Tensor  # (r, in)
    B: Tensor  # (out, r)

    @property
    def delta(self) -> Tensor:
        return self.B @ self.A


@dataclass(frozen=True)
class StoredLoRA:
    folder: str
    layers: dict[str, Factors]  # fp32
    rank: int


def merge_folders(
    folders: Sequence[str],
    out: Path,
    weights: Sequence[float] | None = None,
    how: MergeName = "linear",
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Factors], float]:
    """Write the merge of the LoRAs in `folders` to `out`; its factors, and the relative error of cutting it to `rank`.

    weights None: the mean of what the LoRAs add.  ValueError for what cannot be merged.
    """
    check_merge(len(folders), weights, density, rank)
    loras = [read(folder) for folder in folders]
    # Of the entries that agree in sign, ties takes the mean by itself.
    each = 1.0 if "ties" in how else 1 / len(loras)
    layers, error = merge(loras, weights or [each] * len(loras), how, density, rank, seed)
    write(out, layers)
    return layers, error


def check_merge(count: int, weights: Sequence[float] | None, density: float, rank: int | None) -> None:
    """ValueError for a merge that cannot be."""
    if count < 2:
        raise ValueError(f"a merge of {count} LoRAs: name at least two")
    if weights is not None and len(weights) != count:
        raise ValueError(f"weights: {len(weights)} numbers for {count} LoRAs; give one for each")
    if rank is not None and rank < 1:
        raise ValueError(f"rank = {rank}: at least 1")
    if not 0 < density <= 1:
        raise ValueError(f"density = {density}: a share of the entries, in (0, 1]")


def read(folder: str) -> StoredLoRA:
    """A LoRA in diffusers' format; ValueError for what is none, or is more than B A."""
    file = lora_file(folder)
    with safe_open(file, "pt") as stored:
        told = json.loads((stored.metadata() or {}).get("lora_adapter_metadata", "{}"))
        tensors = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118
    config = {key.split(".", 1)[1]: value for key, value in told.items()}
    odd = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if odd:
        raise ValueError(f"LoRA {folder}: it has {' and '.join(odd)}; only plain LoRAs of one rank can be merged")
    pairs = {key: key.replace(".lora_A.", ".lora_B.") for key in tensors if ".lora_A." in key}
    ranks = {len(tensors[key]) for key in pairs}
    if len(ranks) != 1 or set(tensors) != {*pairs, *pairs.values()}:
        raise ValueError(f"LoRA {folder}: it is not made of pairs lora_A and lora_B of one rank")
    rank = ranks.pop()
    scale = config.get("lora_alpha", rank) / rank  # without a word about it, diffusers takes alpha to be the rank
    layers = {a.split(".lora_A.")[0]: Factors(tensors[a], scale * tensors[b]) for a, b in pairs.items()}
    return StoredLoRA(folder, layers, rank)


def merge(
    loras: Sequence[StoredLoRA], weights: Sequence[float], how: MergeName, density: float, rank: int | None, seed: int
) -> tuple[dict[str, Factors], float]:
    """Factors of the merged LoRA, and the relative error ‖ΔW - B A‖ / ‖ΔW‖ of cutting it to `rank`.

    rank None keeps every rank: Σ r_i.  A LoRA adds nothing to a layer that it does not have.
    """
    check_same_base(loras)
    kept = sum(lora.rank for lora in loras) if rank is None else rank
    draws = torch.Generator().manual_seed(seed)
    merged, lost, whole = {}, 0.0, 0.0
    for layer in dict.fromkeys(name for lora in loras for name in lora.layers):
        parts = [(lora.layers[layer], weight) for lora, weight in zip(loras, weights) if layer in lora.layers]
        exact = concatenated(parts)
        delta = exact.delta if how == "linear" else pruned(parts, how, density, draws)
        found = within(exact, kept) if how == "linear" else truncated(delta, kept)
        merged[layer] = padded(found, kept)
        lost += (delta - found.delta).square().sum().item()
        whole += delta.square().sum().item()
    return merged, (lost / whole) ** 0.5 if whole else 0.0


def check_same_base(loras: Sequence[StoredLoRA]) -> None:
    """ValueError where a layer has another shape in another LoRA, or where they have no layer in common."""
    first = loras[0]
    for other in loras[1:]:
        common = first.layers.keys() & other.layers.keys()
        if not common:
            raise ValueError(f"{first.folder} and {other.folder} have no layer in common; they are of different models")
        for layer in sorted(common):
            shapes = [(len(lora.layers[layer].B), lora.layers[layer].A.shape[1]) for lora in (first, other)]
            if shapes[0] != shapes[1]:
                its = f"{shapes[0]} in {first.folder} and {shapes[1]} in {other.folder}"
                raise ValueError(f"layer {layer} is {its}; LoRAs of different bases cannot be merged")


def concatenated(parts: Sequence[tuple[Factors, float]]) -> Factors:
    """Σ w_i ΔW_i, exactly: the factors side by side."""
    return Factors(torch.cat([f.A for f, _ in parts]), torch.cat([w * f.B for f, w in parts], 1))


def pruned(parts: Sequence[tuple[Factors, float]], how: MergeName, density: float, draws: torch.Generator) -> Tensor:
    """peft's merges, which leave out entries of each ΔW: small ones, random ones, or the minority's sign."""
    deltas, weights = [f.delta for f, _ in parts], torch.tensor([w for _, w in parts])
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=draws)))  # dare draws from the global generator
        return PRUNING[how](deltas, weights, density)


def within(factors: Factors, rank: int) -> Factors:
    """The nearest factors of a rank; the SVD is of a small matrix, which the factors' QR leave of B A."""
    if len(factors.A) <= rank:
        return factors
    (left, B), (right, A) = torch.linalg.qr(factors.B), torch.linalg.qr(factors.A.T)
    small = truncated(B @ A.T, rank)
    return Factors(small.A @ right.T, left @ small.B)


def truncated(delta: Tensor, rank: int) -> Factors:
    """The nearest matrix of a rank, its singular values shared evenly between the factors."""
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    root = S[:rank].sqrt()
    return Factors(root[:, None] * V[:rank], U[:, :rank] * root)


def padded(factors: Factors, rank: int) -> Factors:
    """As much rank as every layer has, in zeros."""
    missing = rank - len(factors.A)
    pad = torch.nn.functional.pad
    return Factors(pad(factors.A, (0, 0, 0, missing)), pad(factors.B, (0, missing)))


def write(folder: Path, layers: dict[str, Factors]) -> None:
    """In diffusers' format, with rank and alpha."""
    rank = len(next(iter(layers.values())).A)
    targets = [name.split(".", 1)[1] for name in layers]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    about = json.dumps({f"transformer.{name}": value for name, value in config.items()}, default=str)
    tensors = {}
    for name, factors in layers.items():
        tensors[f"{name}.lora_A.weight"] = factors.A.contiguous()
        tensors[f"{name}.lora_B.weight"] = factors.B.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": about, "format": "pt"})
