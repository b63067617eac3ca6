"""Files of LoRAs: found, read whichever program wrote them, and written.  Nothing else of afterflow writes one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...system.atomic_files import apply_umask, make_folder, replacing, sha256
from ...system.errors import InputError
from ...system.own_folders import check_inside, check_own_file
from ...system.text_files import read_text
from ..experts import EXPERTS
from .factors import LoRAFactors, pad_rank
from .kohya import split_layer, to_kohya
from .layer_names import BLOCKS
from .pair_files import PAIR_FAMILIES, SECOND, by_expert, check_expert, check_network_count, noise_files, sorted_pair
from .parse import PEFT, check_alpha, check_config, check_factors, check_tensors, layer_positions, layer_tensors, scaled

NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Names of the file in a LoRA's folder: diffusers' and peft's."""
COMFYUI = "comfyui.safetensors"
"""Name of the file beside ours whose layers have the names that ComfyUI and kohya's trainers know."""
OWN = (NAMES[0], SECOND, COMFYUI, *(path.name for path in noise_files(Path(COMFYUI))))
"""Names of all files that `write_lora` may leave in a folder."""

MOST_PADDING = 64
"""How many times the numbers in a file may become where all layers get the highest rank."""
ABOUT = "afterflow"
"""Name of what our files' metadata say of training: alpha and the model's family."""


@dataclass(frozen=True)
class StoredLoRA:
    """A LoRA as it was read from a file."""

    source: str
    """Run, folder or file that it came from."""
    layers: dict[str, LoRAFactors]
    """Factors in fp32 by the layers' names in diffusers, which of a pair of networks begin with the network's."""
    rank: int
    """Rank of every layer."""
    alpha: float
    """The alpha that it was trained with, if afterflow, diffusers or peft wrote it; else the rank."""
    family: str | None = None
    """Name of the family that has these layers.  None: several have them."""

    @property
    def scale(self) -> float:
        """The scale that its training had outside of B: alpha / rank."""
        return self.alpha / self.rank


def lora_file(source: str | Path) -> Path:
    """Return the file of a LoRA, by a run's folder, a LoRA's folder or the file itself.  InputError without one.

    It is that of the first network where the folder holds the LoRA of a pair.
    """
    path = Path(source)
    if path.is_file():
        check_inside(path)
        return path
    folder = lora_folder(path)
    named = [folder / name for name in NAMES if (folder / name).is_file()]
    files = named[:1] or sorted(folder.glob("*.safetensors"))
    pair = sorted_pair(files)
    if len(files) == 1 or pair is not None:
        return files[0] if pair is None else pair[0]
    if files:
        names = ", ".join(file.name for file in files[:3])
        raise InputError(f"LoRA {source}: there are {len(files)} files in it ({names}); name one of them")
    if (path / "model").is_dir() or (path / "model_index.json").is_file():
        raise InputError(f"LoRA {source}: it holds a whole pipeline and no LoRA; take it as the model")
    if (path / "run.json").is_file():
        raise InputError(f"LoRA {source}: the run has no lora/ yet; let it end, or go on with train --resume")
    raise InputError(f"LoRA {source}: no {NAMES[0]} there")


def lora_files(source: str | Path) -> tuple[Path, ...]:
    """Return the file of a LoRA, or the two files of a pair of networks, high noise first.  InputError without one."""
    first = lora_file(source)
    if Path(source).is_file():
        return (first,)
    own = first.with_name(SECOND)
    if first.name == NAMES[0]:
        return (first, own) if own.is_file() else (first,)
    return sorted_pair(sorted(first.parent.glob("*.safetensors"))) or (first,)


def lora_digest(source: str | Path) -> str:
    """Return the digests of all files of a LoRA."""
    return " ".join(sha256(file) for file in lora_files(source))


def lora_folder(path: Path) -> Path:
    """Return the folder of the LoRA in a run's folder, and any other path as it is.

    InputError where a link leads out of a run's folder.
    """
    if not (path / "lora").is_dir():
        check_inside(path)
        return path
    check_inside(path / "lora", path)
    return path / "lora"


@contextmanager
def open_file(file: Path, source: str) -> Iterator[Any]:
    """Open a .safetensors file.  InputError for what is none."""
    try:
        with safe_open(file, "pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"LoRA {source}: {file.name} is no whole .safetensors file ({error}); other formats must be converted"
        ) from None


def read_lora(source: str | Path, family: str | None = None) -> StoredLoRA:
    """Read a LoRA by diffusers' names.  InputError for a file that is none, or that is more than B A.

    source: a run's folder, a LoRA's folder or a file.  family: name of the model's family; None: by the names in it.
    Where ranks differ from layer to layer, all become the highest.  The LoRA of a pair of networks is in two files.
    """
    files, source = lora_files(source), str(source)
    check_network_count(files, family, source)
    if len(files) == 1:
        return read_file(files[0], source, family)
    return joined([read_file(file, source, PAIR_FAMILIES[0], expert) for file, expert in zip(files, EXPERTS)], source)


def joined(experts: Sequence[StoredLoRA], source: str) -> StoredLoRA:
    """Return the LoRA of a pair of networks, of what was read for each.  InputError where they adapt other layers."""
    first, second = experts
    odd = sorted(first.layers.keys() ^ second.layers.keys())
    if odd:
        raise InputError(
            f"LoRA {source}: {odd[0]} is in one of its two files alone; take two that adapt the same layers"
        )
    layers = {f"{name}.{layer}": f for name, lora in zip(EXPERTS, experts) for layer, f in lora.layers.items()}
    rank = common_rank(layers, source)
    alike = (first.rank, first.alpha) == (second.rank, second.alpha)
    layers = {name: pad_rank(factors, rank) for name, factors in layers.items()}
    return StoredLoRA(source, layers, rank, first.alpha if alike else rank, PAIR_FAMILIES[0])


def read_file(file: Path, source: str, family: str | None, expert: str | None = None) -> StoredLoRA:
    """Read one file of a LoRA by diffusers' names.  InputError as of `read_lora`.

    expert: which network of a pair it is read for.  None: the model has one.
    """
    with open_file(file, source) as stored:
        metadata = stored.metadata() or {}
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    check_tensors(tensors, source)
    by_name = layer_tensors(tensors, source)
    about = read_about(metadata.get(ABOUT, "{}"), ABOUT, source)
    if about.get("family") not in (None, *BLOCKS):
        raise InputError(f"LoRA {source}: {about['family']!r} is no family of this version of afterflow; update it")
    check_expert(about, expert, source)
    config = peft_config(file, tensors, metadata, source)
    check_config(config, source)
    check_alpha(about.get("alpha", 1), source)
    positions, family = layer_positions(by_name, family or about.get("family"), source)
    layers: dict[str, LoRAFactors] = {}
    for name, parts in by_name.items():
        factors = scaled(parts, config)
        check_factors(factors, positions[name], f"LoRA {source}: {name}")
        split = split_layer(factors, positions[name])
        twice = split.keys() & layers.keys()
        if twice:
            raise InputError(f"LoRA {source}: {min(twice)} is there twice, by two names; it is two LoRAs")
        layers |= split
    rank = common_rank(layers, source)
    several = any(config.get(name) for name in ("alpha_pattern", "rank_pattern", "use_rslora"))
    several |= any(parts.alpha is not None for parts in by_name.values())
    alpha = about.get("alpha", rank if several else config.get("lora_alpha", rank))
    return StoredLoRA(source, {name: pad_rank(f, rank) for name, f in layers.items()}, rank, alpha, family)


def common_rank(layers: Mapping[str, LoRAFactors], source: str) -> int:
    """Return the highest rank of the layers.  InputError where all of that rank would be too large for their file."""
    rank = max((len(factors.A) for factors in layers.values()), default=0)
    stored = sum(factors.A.numel() + factors.B.numel() for factors in layers.values())
    padded = rank * sum(factors.A.shape[1] + len(factors.B) for factors in layers.values())
    if rank == 0:
        raise InputError(f"LoRA {source}: it changes no layer; the file is empty or damaged")
    if padded > MOST_PADDING * stored:
        raise InputError(f"LoRA {source}: one layer has rank {rank}, and the others next to none; the file is damaged")
    return rank


def peft_config(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """Return peft's configuration of the adapter, from the file or from beside it; empty where there is none.

    InputError where the names are peft's own and nothing says the scale.
    """
    if "lora_adapter_metadata" in metadata:
        content = read_about(metadata["lora_adapter_metadata"], "lora_adapter_metadata", source)
        return {key.split(".", 1)[1]: value for key, value in content.items() if key.startswith("transformer.")}
    beside = file.parent / "adapter_config.json"
    if file.name == NAMES[1] and beside.is_file():
        return read_about(read_text(beside), beside.name, source)
    alphas = any(key.endswith(".alpha") for key in tensors)
    if any(key.startswith(PEFT) for key in tensors) and not alphas:
        raise InputError(f"LoRA {source}: peft's adapter_config.json is not beside it, and with it its alpha")
    return {}


def read_about(text: str, name: str, source: str) -> dict[str, Any]:
    """Read what is written about a LoRA.  InputError where it is no object of JSON."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"LoRA {source}: its {name} is no JSON object; the file is damaged")
    return content


def lora_state_dict(layers: Mapping[str, LoRAFactors]) -> dict[str, Tensor]:
    """Return the tensors of diffusers' format; alpha is the rank."""
    tensors = {}
    for name, factors in layers.items():
        tensors[f"transformer.{name}.lora_A.weight"] = factors.A.contiguous()
        tensors[f"transformer.{name}.lora_B.weight"] = factors.B.contiguous()
    return tensors


def write_lora(
    folder: str | Path, layers: Mapping[str, LoRAFactors], family: str | None = None, alpha: float | None = None
) -> None:
    """Write a LoRA for diffusers, and beside it for ComfyUI where its family is known.  In both, alpha is the rank.

    Of a pair of networks each has files of its own.

    Args:
        folder: where the files go.
        layers: factors of one rank with their scale in B, by the layers' names in a `StoredLoRA`.
        family: name of the model's family.
        alpha: the alpha that it was trained with, which training goes on with.  None: the rank.
    """
    folder, rank = Path(folder), len(next(iter(layers.values())).A)
    about = {"alpha": rank if alpha is None else alpha, "family": family}
    make_folder(folder)
    for name in OWN:
        check_own_file(folder / name, is_own_lora)
    for name in OWN[1:]:
        (folder / name).unlink(missing_ok=True)  # of what the folder held before
    for file, (metadata, part) in zip((NAMES[0], SECOND), parts_of(layers, about)):
        # No more than every version of peft knows.
        config = {"r": rank, "lora_alpha": rank, "target_modules": sorted(part)}
        adapter = json.dumps({f"transformer.{name}": value for name, value in config.items()})
        write_file(folder / file, lora_state_dict(part), metadata | {"lora_adapter_metadata": adapter})
    if family is not None:
        write_parts(folder / COMFYUI, layers, about)


def write_kohya(file: Path, lora: StoredLoRA) -> list[Path]:
    """Write a LoRA, whose family is known, by the names of ComfyUI and kohya's trainers; alpha is the rank.

    Returns the file, or those of a pair of networks, whose names end in high_noise and low_noise.  OutputError where
    that would replace a file that afterflow did not write.
    """
    make_folder(file.parent)
    return write_parts(file, lora.layers, {"alpha": lora.rank, "family": lora.family})


def write_parts(file: Path, layers: Mapping[str, LoRAFactors], about: Mapping[str, Any]) -> list[Path]:
    """Write the file of a LoRA by kohya's names, or a file for each of two networks, and return which."""
    files = noise_files(file) if about["family"] in PAIR_FAMILIES else (file,)
    for path in files:
        check_own_file(path, is_own_lora)
    for path, (metadata, part) in zip(files, parts_of(layers, about)):
        write_file(path, to_kohya(part, about["family"]), metadata)
    return list(files)


def parts_of(
    layers: Mapping[str, LoRAFactors], about: Mapping[str, Any]
) -> list[tuple[dict[str, str], Mapping[str, LoRAFactors]]]:
    """Return the metadata and the layers of each file of a LoRA: one, or two where its family has two networks."""
    if about["family"] not in PAIR_FAMILIES:
        return [({"format": "pt", ABOUT: json.dumps(about)}, layers)]
    parts = by_expert(layers).items()
    return [({"format": "pt", ABOUT: json.dumps({**about, "expert": expert})}, part) for expert, part in parts]


def write_file(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file of equal bytes for equal contents, which others may read as the umask says."""
    with replacing(file) as partial:
        save_file(dict(tensors), partial, metadata=dict(metadata))
        sort_metadata(partial)
        apply_umask(partial)


def sort_metadata(file: Path) -> None:
    """Put the metadata of a .safetensors file in the order of their names; safetensors writes them in any order."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "safetensors writes compact JSON, as this is"
        stream.seek(8)
        stream.write(text)


def is_own_lora(file: Path) -> bool:
    """Return whether a file is a LoRA that afterflow wrote."""
    try:
        with safe_open(file, "pt") as stored:
            return ABOUT in (stored.metadata() or {})
    except (SafetensorError, OSError):
        return False


def check_lora_fits(lora: StoredLoRA, module: nn.Module) -> None:
    """Raise InputError unless every layer meets one of the model.  diffusers would skip it in silence."""
    # A layer that has an adapter already is kept inside it.
    linear = ((name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear))
    shapes = {name.removesuffix(".base_layer"): tuple(m.weight.shape) for name, m in linear}
    for name, factors in lora.layers.items():
        shape = (len(factors.B), factors.A.shape[1])
        if shapes.get(name) != shape:
            raise InputError(
                f"LoRA {lora.source} is of another architecture: its layer {name} {shape} meets no layer of this "
                "model; take the model it was trained on"
            )
