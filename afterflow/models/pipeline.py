"""What all families share: a stock pipeline of diffusers, of which a part is trained and the encoders come and go.

The encoders live only while prompts are encoded; what stays in memory is the transformer and the autoencoder.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import DiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from huggingface_hub import snapshot_download
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding
from .base import Model, cache_folder, write_cache_file
from .lora.files import (
    StoredLoRA,
    check_lora_fits,
    is_diffusers_lora,
    layer_shapes,
    lora_file,
    lora_state_dict,
    read_lora,
)
from .quantize import QuantizeName, check_quantizes, quantize

ASSETS = Path(__file__).parent / "assets"
TINY, TINY_WAN = ASSETS / "tiny_sd3", ASSETS / "tiny_wan"
SHIPPED = {"tiny": TINY, "tiny_wan": TINY_WAN}
"""Names that a model's path may have instead of a folder."""


@dataclass(frozen=True)
class Pretrained(ABC):
    """A pipeline of diffusers."""

    path: str
    """Hub id or folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the frozen weights."""
    quantize: QuantizeName | None = None
    """Keep the frozen weights in 8 or 4 bits, for a LoRA beside them; passes still compute in dtype."""

    def __post_init__(self) -> None:
        check_quantizes(self.quantize)
        for name in ("size", "width", "height", "frames"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"model.{name} = {value}: at least 1")
        for name in ("max_sequence_length", "embedded_guidance"):
            value = getattr(self, name, None)
            if value is not None and value < 0:
                raise ValueError(f"model.{name} = {value}: 0 or more")

    @abstractmethod
    def load(self, device: torch.device | str = "cpu") -> "PipelineModel":
        """Everything but the text encoders; ValueError when `path` is not a pipeline of this family."""


class PipelineModel(Model):
    stock: type[DiffusionPipeline]
    """The pipeline's class in diffusers."""
    encoders: tuple[str, ...]
    """Its parts that read prompts."""
    usual_guidance: float
    """The scale that its authors draw with; 1 where the network is told another, or needs none."""
    pipe: Any
    """An instance of it, without them."""
    config: Any
    """The family's own `Pretrained`."""

    def __init__(self, config: Pretrained, device: torch.device | str) -> None:
        self.config, self.device = config, torch.device(device)
        self.folder = locate(config.path, config.revision, weights=False)
        check_family(config.path, self.folder, self.stock.__name__)
        self.pipe = self.outline()
        self.settle()  # what cannot be drawn is refused before weights are fetched
        if self.device.type != "meta":
            self.folder = locate(config.path, config.revision)
            self.pipe = self.pipeline(without=self.encoders)
            if config.quantize is not None:
                quantize(self.pipe.transformer, config.quantize, self.device)
            self.pipe.to(self.device)
            self.settle()  # again, because weights tell more than configurations: whether SD3's T5 says anything
        self.pipe.set_progress_bar_config(disable=True)
        self.module = self.pipe.transformer
        self.vae = self.pipe.vae.requires_grad_(False).float()  # decoders overflow in half precision

    @abstractmethod
    def settle(self) -> None:
        """Set latent_shape and schedule by `config` and by what `pipe` says of itself; ValueError if it cannot."""

    def pipeline(self, without: Sequence[str] = (), **parts: nn.Module) -> DiffusionPipeline:
        """The stock pipeline from the folder, some parts given and some left out."""
        index = json.loads((self.folder / "model_index.json").read_text())
        # diffusers insists that parts which the folder does not have are named.
        absent = [name for name, kind in index.items() if kind == [None, None]]
        left_out = dict.fromkeys([*without, *absent])
        return self.stock.from_pretrained(self.folder, dtype=getattr(torch, self.config.dtype), **left_out, **parts)

    def outline(self) -> DiffusionPipeline:
        """The same without encoders and without weights: shapes and options alone, on the device `meta`."""
        index, dtype = json.loads((self.folder / "model_index.json").read_text()), getattr(torch, self.config.dtype)
        options = {name: value for name, value in index.items() if not name.startswith("_")}
        for name, (library, kind) in ((n, v) for n, v in options.items() if isinstance(v, list)):
            if library is None or name in self.encoders:
                options[name] = None
            elif name == "scheduler":
                options[name] = getattr(diffusers, kind).from_pretrained(self.folder / name)
            elif library == "diffusers":
                options[name] = weightless(getattr(diffusers, kind), self.folder / name, dtype)
            else:
                options[name] = None
        return self.stock(**options)

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, int, int | None]:
        """Of an encoded prompt: how many vectors of what width, and the width of the pooled one, if there is one."""

    @property
    @abstractmethod
    def reading(self) -> tuple[tuple[str, ...], str]:
        """The encoders that are not asked, and what else decides how a prompt is encoded."""

    @abstractmethod
    def embed(self, pipe: DiffusionPipeline, prompts: list[str]) -> Embedding:
        """B texts through the stock pipeline's encoders."""

    def encode(self, prompts: Sequence[str]) -> Embedding:
        cached = self._cache_file(prompts)
        if not cached.is_file():
            embedding = self._run_encoders(prompts)
            write_cache_file(
                cached, {name: tensor for name, tensor in embedding._asdict().items() if tensor is not None}
            )
        return Embedding(**load_file(cached))

    def _cache_file(self, prompts: Sequence[str]) -> Path:
        digest = hashlib.sha256(f"{self.reading} {self.config.dtype}".encode())
        for file in sorted(self.folder.glob("t[eo][xk]*/*")):  # text_encoder*, tokenizer*
            digest.update(fingerprint(file))
        digest.update(json.dumps(list(prompts)).encode())
        return cache_folder() / "prompts" / f"{digest.hexdigest()[:32]}.safetensors"

    @torch.no_grad()
    def _run_encoders(self, prompts: Sequence[str], batch: int = 64) -> Embedding:
        pipe = self.pipeline(("vae", *self.reading[0]), transformer=self.module).to(self.device)
        parts = [self.embed(pipe, list(prompts[i : i + batch])) for i in range(0, len(prompts), batch)]
        return concatenate_embeddings([Embedding(*(None if x is None else x.cpu() for x in part)) for part in parts])

    def stock_latents(self, cond: Conditioning, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """What the stock pipeline's own loop makes of noise (B, ...), by Euler's steps: latents (B, ...)."""
        nothing = cond.dropped(torch.ones(len(cond), dtype=torch.bool))
        return self.by_stock(cond.embedding(), nothing.embedding(), noise, steps, guidance)

    @abstractmethod
    def by_stock(self, told: Embedding, empty: Embedding, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """The same, of B prompts and B empty ones that are encoded."""

    @property
    def image_key(self) -> str:
        digest = hashlib.sha256(str(self.latent_shape).encode())
        for file in sorted((self.folder / "vae").iterdir()):
            digest.update(fingerprint(file))
        return digest.hexdigest()

    def save_lora(self, folder: Path) -> None:
        self.stock.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(self.module),
            # Without it diffusers loads a LoRA with alpha != rank at the wrong scale, and says nothing.
            **in_order(_collate_lora_metadata({"transformer": self.module})),
        )

    def load_lora(self, folder: str | Path, name: str = "default") -> None:
        file = lora_file(folder)
        if is_diffusers_lora(file):
            check_lora_fits(file, layer_shapes(file), self.module)
            self.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
            return
        layers = self.read_lora(folder).layers
        check_lora_fits(file, {layer: (len(f.B), f.A.shape[1]) for layer, f in layers.items()}, self.module)
        self.pipe.load_lora_weights(lora_state_dict(layers), adapter_name=name)

    def read_lora(self, folder: str | Path) -> StoredLoRA:
        return read_lora(folder, type(self.config).__name__)

    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        self.pipeline(transformer=network).save_pretrained(folder)


def in_order(metadata: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same with layers by name: peft has them in sets, whose order no other process repeats."""
    ordered = lambda name, value: sorted(value) if name == "target_modules" else value
    return {part: {name: ordered(name, value) for name, value in told.items()} for part, told in metadata.items()}


def weightless(kind: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A part of a pipeline from its configuration, on the device `meta`."""
    with torch.device("meta"):
        part = kind.from_config(kind.load_config(folder))
    for parameter in part.parameters():
        parameter.data = parameter.data.to(dtype)
    return part


def concatenate_embeddings(parts: Sequence[Embedding]) -> Embedding:
    """Embeddings of several batches as one; shorter sequences are padded with zeros, which their mask leaves out."""
    length = max(part.sequence.shape[1] for part in parts)
    columns = zip(*(pad_sequence(part, length) for part in parts))
    return Embedding(*(None if column[0] is None else torch.cat(column).contiguous() for column in columns))


def pad_sequence(embedding: Embedding, length: int) -> Embedding:
    """Sequences of `length` vectors, the last ones 0."""
    missing = length - embedding.sequence.shape[1]
    sequence = nn.functional.pad(embedding.sequence, (0, 0, 0, missing))
    mask = None if embedding.mask is None else nn.functional.pad(embedding.mask, (0, missing))
    return embedding._replace(sequence=sequence, mask=mask)


def locate(path: str, revision: str | None, weights: bool = True) -> Path:
    """The local folder of a pipeline, downloaded when `path` is a hub id; without weights, its configurations alone."""
    folder = SHIPPED.get(path, Path(path))
    if not folder.is_dir():
        if len(Path(path).parts) != 2 or path.startswith((".", "/")):
            raise ValueError(f"model {path!r}: no such folder, and a hub id reads owner/name")
        try:
            configurations = {"allow_patterns": ["*.json", "*.txt"], "revision": revision}
            fetched = DiffusionPipeline.download(path, revision=revision) if weights else None
            folder = Path(fetched or snapshot_download(path, **configurations))
        except OSError as error:
            raise ValueError(
                f"model {path!r} is not on this machine and could not be fetched from the hub; check the id, the "
                "network and, for a gated model, your token"
            ) from error
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"model {path!r}: {folder} holds no model_index.json, so it is not a diffusers pipeline")
    return folder


def weights_digest(path: str) -> str:
    """Of what a pipeline draws with."""
    folder, found = locate(path, None), hashlib.sha256()
    for file in sorted([*folder.glob("transformer/*.safetensors"), *folder.glob("vae/*.safetensors")]):
        found.update(fingerprint(file))
    return found.hexdigest()[:32]


def family_of(folder: Path) -> str:
    """The pipeline's class in diffusers."""
    return json.loads((folder / "model_index.json").read_text())["_class_name"]


def check_family(path: str, folder: Path, family: str) -> None:
    """ValueError when the pipeline is of another class."""
    found = family_of(folder)
    if found != family:
        raise ValueError(f"model {path!r} is a {found}; this model needs a {family}")


def check_divides(pixels: int, unit: int, what: str = "size") -> None:
    """ValueError unless the model can draw so many pixels to a side."""
    if pixels % unit or pixels <= 0:
        near = max(1, pixels // unit) * unit
        raise ValueError(f"{what} = {pixels}: this model draws multiples of {unit} pixels, say {near} or {near + unit}")


def latent_sides(size: int, width: int | None, factor: int, unit: int) -> tuple[int, int]:
    """Height and width of the latents, `factor` times smaller; ValueError unless both are multiples of `unit`."""
    check_divides(size, unit)
    if width is not None:
        check_divides(width, unit, "width")
    return size // factor, (size if width is None else width) // factor


def fingerprint(file: Path, head: int = 1 << 20) -> bytes:
    """Tells files of different content apart without reading gigabytes: name, size, first and last megabyte."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(head)
        stream.seek(max(0, size - head))
        return hashlib.sha256(f"{file.parent.name}/{file.name} {size}".encode() + start + stream.read()).digest()


def no_progress_bars() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
