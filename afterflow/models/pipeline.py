"""What all families share: a stock pipeline of diffusers, of which the transformer is trained.

The text encoders live only while prompts are encoded.  The transformer and the autoencoder stay in memory.
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
from ..system.errors import ConfigError, InputError
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
    """A pipeline of diffusers: where it is, and in which precision its weights are kept."""

    path: str
    """Hub id or folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen weights."""
    quantize: QuantizeName | None = None
    """Format of the frozen weights in 8 or 4 bits, for a LoRA beside them.  Passes still compute in dtype."""

    def __post_init__(self) -> None:
        check_quantizes(self.quantize)
        for name in ("size", "width", "height", "frames"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ConfigError(f"model.{name} = {value}: at least 1")
        for name in ("max_sequence_length", "embedded_guidance"):
            value = getattr(self, name, None)
            if value is not None and value < 0:
                raise ConfigError(f"model.{name} = {value}: 0 or more")

    @abstractmethod
    def load(self, device: torch.device | str = "cpu") -> "PipelineModel":
        """Load everything but the text encoders.

        Raises InputError where `path` is not a pipeline of this family, ConfigError for options that it cannot draw.
        """


class PipelineModel(Model):
    """A stock pipeline without its text encoders, which a family tells how to read prompts and predict velocities."""

    stock: type[DiffusionPipeline]
    """The pipeline's class in diffusers."""
    encoders: tuple[str, ...]
    """Names of the pipeline's parts that read prompts."""
    usual_guidance: float
    """The guidance scale of its authors.  1 where the network takes another one as input, or needs none."""
    pipe: Any
    """An instance of `stock`, without encoders."""
    config: Any
    """The family's own `Pretrained`."""
    scale_factor: int
    """Pixels on a side of a latent."""
    text_shape: tuple[int, int, int | None]
    """Number and width of the vectors of an encoded prompt, and the width of the pooled one if there is one."""
    encoder_key: tuple[tuple[str, ...], str]
    """Names of encoders that are left out, and what else decides how a prompt is encoded.  It keys the cache."""

    def __init__(self, config: Pretrained, device: torch.device | str) -> None:
        self.config, self.device = config, torch.device(device)
        self.folder = locate(config.path, config.revision, weights=False)
        check_family(config.path, self.folder, self.stock.__name__)
        self.pipe = self.meta_pipeline()
        self.configure()  # what cannot be drawn is refused before weights are fetched
        if self.device.type != "meta":
            self.folder = locate(config.path, config.revision)
            self.pipe = self.pipeline(without=self.encoders)
            if config.quantize is not None:
                quantize(self.pipe.transformer, config.quantize, self.device)
            self.pipe.to(self.device)
            self.configure()  # again: only weights tell whether SD3's T5 says anything
        self.pipe.set_progress_bar_config(disable=True)
        self.module = self.pipe.transformer
        self.vae = self.pipe.vae.requires_grad_(False).float()  # decoders overflow in half precision

    @abstractmethod
    def configure(self) -> None:
        """Set the shapes, the schedule and the encoder key by `config` and `pipe`.  ConfigError for what cannot be."""

    def pipeline(self, without: Sequence[str] = (), **parts: nn.Module) -> DiffusionPipeline:
        """Return the stock pipeline from the folder, some parts given and some left out."""
        index = json.loads((self.folder / "model_index.json").read_text())
        # diffusers insists that parts which the folder does not have are named.
        absent = [name for name, kind in index.items() if kind == [None, None]]
        left_out = dict.fromkeys([*without, *absent])
        return self.stock.from_pretrained(self.folder, dtype=getattr(torch, self.config.dtype), **left_out, **parts)

    def meta_pipeline(self) -> DiffusionPipeline:
        """Return the stock pipeline without encoders and without weights, on the device `meta`."""
        index, dtype = json.loads((self.folder / "model_index.json").read_text()), getattr(torch, self.config.dtype)
        options = {name: value for name, value in index.items() if not name.startswith("_")}
        for name, (library, kind) in ((n, v) for n, v in options.items() if isinstance(v, list)):
            if library is None or name in self.encoders:
                options[name] = None
            elif name == "scheduler":
                options[name] = getattr(diffusers, kind).from_pretrained(self.folder / name)
            elif library == "diffusers":
                options[name] = meta_part(getattr(diffusers, kind), self.folder / name, dtype)
            else:
                options[name] = None
        return self.stock(**options)

    @abstractmethod
    def embed(self, pipe: DiffusionPipeline, prompts: list[str]) -> Embedding:
        """Encode B texts by the stock pipeline's encoders."""

    def encode(self, prompts: Sequence[str]) -> Embedding:
        """Read the embeddings of P texts from the cache, or encode and cache them."""
        cached = self._cache_file(prompts)
        if not cached.is_file():
            embedding = self._run_encoders(prompts)
            write_cache_file(
                cached, {name: tensor for name, tensor in embedding._asdict().items() if tensor is not None}
            )
        return Embedding(**load_file(cached))

    def _cache_file(self, prompts: Sequence[str]) -> Path:
        digest = hashlib.sha256(f"{self.encoder_key} {self.config.dtype}".encode())
        for file in sorted(self.folder.glob("t[eo][xk]*/*")):  # text_encoder*, tokenizer*
            digest.update(fingerprint(file))
        digest.update(json.dumps(list(prompts)).encode())
        return cache_folder() / "prompts" / f"{digest.hexdigest()[:32]}.safetensors"

    @torch.no_grad()
    def _run_encoders(self, prompts: Sequence[str], batch: int = 64) -> Embedding:
        pipe = self.pipeline(("vae", *self.encoder_key[0]), transformer=self.module).to(self.device)
        parts = [self.embed(pipe, list(prompts[i : i + batch])) for i in range(0, len(prompts), batch)]
        return concatenate_embeddings([Embedding(*(None if x is None else x.cpu() for x in part)) for part in parts])

    def stock_latents(self, cond: Conditioning, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """Return the latents (B, ...) that the stock pipeline's own loop makes of noise (B, ...), by Euler's steps."""
        empty = cond.dropped(torch.ones(len(cond), dtype=torch.bool))
        return self.stock_sample(noise, steps, self.stock_inputs(cond.embedding(), empty.embedding(), guidance))

    @abstractmethod
    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for B encoded prompts, B empty ones and a guidance scale."""

    @abstractmethod
    def stock_sample(self, noise: Tensor, steps: int, inputs: dict[str, Any]) -> Tensor:
        """Return the latents (B, ...) that the stock pipeline makes of noise (B, ...) and its `stock_inputs`."""

    def call_stock(self, latents: Tensor, steps: int, inputs: dict[str, Any]) -> Tensor:
        """Call the stock pipeline on latents in its own layout, and return latents in that layout."""
        height, width = (side * self.scale_factor for side in self.latent_shape[-2:])
        size = {"height": height, "width": width}
        return self.pipe(latents=latents, num_inference_steps=steps, output_type="latent", **size, **inputs)[0]

    @property
    def image_key(self) -> str:
        """A digest of the latents' shape and the autoencoder's files."""
        digest = hashlib.sha256(str(self.latent_shape).encode())
        for file in sorted((self.folder / "vae").iterdir()):
            digest.update(fingerprint(file))
        return digest.hexdigest()

    def save_lora(self, folder: Path) -> None:
        """Write the adapter in diffusers' format, the same bytes in every process."""
        self.stock.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(self.module),
            # Without it diffusers loads a LoRA with alpha != rank at the wrong scale, and says nothing.
            **sort_targets(_collate_lora_metadata({"transformer": self.module})),
        )

    def load_lora(self, folder: str | Path, name: str = "default") -> None:
        """Attach and activate an adapter.  InputError where it cannot be read or meets no layer of the transformer."""
        file = lora_file(folder)
        if is_diffusers_lora(file):
            check_lora_fits(file, layer_shapes(file), self.module)
            self.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
            return
        layers = self.read_lora(folder).layers
        check_lora_fits(file, {layer: (len(f.B), f.A.shape[1]) for layer, f in layers.items()}, self.module)
        self.pipe.load_lora_weights(lora_state_dict(layers), adapter_name=name)

    def read_lora(self, folder: str | Path) -> StoredLoRA:
        """Read an adapter of any format, in which names depend on this family."""
        return read_lora(folder, type(self.config).__name__)

    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        """Write the stock pipeline, encoders and all, with `network` as its transformer."""
        self.pipeline(transformer=network).save_pretrained(folder)


def sort_targets(metadata: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sort the names of adapted layers, which peft has in a set whose order no other process repeats."""
    return {
        part: {name: sorted(value) if name == "target_modules" else value for name, value in options.items()}
        for part, options in metadata.items()
    }


def meta_part(kind: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Make a part of a pipeline from its configuration, on the device `meta`."""
    with torch.device("meta"):
        part = kind.from_config(kind.load_config(folder))
    for parameter in part.parameters():
        parameter.data = parameter.data.to(dtype)
    return part


def concatenate_embeddings(parts: Sequence[Embedding]) -> Embedding:
    """Concatenate batches, shorter sequences padded with zeros, which their mask leaves out."""
    length = max(part.sequence.shape[1] for part in parts)
    columns = zip(*(pad_sequence(part, length) for part in parts))
    return Embedding(*(None if column[0] is None else torch.cat(column).contiguous() for column in columns))


def pad_sequence(embedding: Embedding, length: int) -> Embedding:
    """Pad sequences to `length` vectors with zeros."""
    missing = length - embedding.sequence.shape[1]
    sequence = nn.functional.pad(embedding.sequence, (0, 0, 0, missing))
    mask = None if embedding.mask is None else nn.functional.pad(embedding.mask, (0, missing))
    return embedding._replace(sequence=sequence, mask=mask)


def locate(path: str, revision: str | None, weights: bool = True) -> Path:
    """Return the local folder of a pipeline, downloaded when `path` is a hub id.

    Without weights, its configurations alone are downloaded.  Raises InputError where there is no such pipeline.
    """
    folder = SHIPPED.get(path, Path(path))
    if not folder.is_dir():
        if len(Path(path).parts) != 2 or path.startswith((".", "/")):
            raise InputError(f"model {path!r}: no such folder, and a hub id reads owner/name")
        try:
            configurations = {"allow_patterns": ["*.json", "*.txt"], "revision": revision}
            fetched = DiffusionPipeline.download(path, revision=revision) if weights else None
            folder = Path(fetched or snapshot_download(path, **configurations))
        except OSError as error:
            raise InputError(
                f"model {path!r} is not on this machine and could not be fetched from the hub; check the id, the "
                "network and, for a gated model, your token"
            ) from error
    if not (folder / "model_index.json").is_file():
        raise InputError(f"model {path!r}: {folder} holds no model_index.json, so it is not a diffusers pipeline")
    return folder


def weights_digest(path: str) -> str:
    """Digest of the transformer's and the autoencoder's weights, 32 hexadecimal digits."""
    folder, digest = locate(path, None), hashlib.sha256()
    for file in sorted([*folder.glob("transformer/*.safetensors"), *folder.glob("vae/*.safetensors")]):
        digest.update(fingerprint(file))
    return digest.hexdigest()[:32]


def pipeline_class(folder: Path) -> str:
    """Return the name of the pipeline's class in diffusers."""
    return json.loads((folder / "model_index.json").read_text())["_class_name"]


def check_family(path: str, folder: Path, family: str) -> None:
    """Raise InputError where the pipeline is of another class in diffusers than `family`."""
    actual = pipeline_class(folder)
    if actual != family:
        raise InputError(f"model {path!r} is a {actual}; this model needs a {family}")


def check_divides(pixels: int, unit: int, what: str = "size") -> None:
    """Raise ConfigError unless a side of so many pixels is a multiple of `unit`."""
    if pixels % unit or pixels <= 0:
        near = max(1, pixels // unit) * unit
        raise ConfigError(
            f"{what} = {pixels}: this model draws multiples of {unit} pixels, say {near} or {near + unit}"
        )


def latent_sides(size: int, width: int | None, factor: int, unit: int) -> tuple[int, int]:
    """Height and width of the latents, `factor` times smaller.  ConfigError unless both are multiples of `unit`."""
    check_divides(size, unit)
    if width is not None:
        check_divides(width, unit, "width")
    return size // factor, (size if width is None else width) // factor


def fingerprint(file: Path, head: int = 1 << 20) -> bytes:
    """Digest of a file's name, size, first and last megabyte, which differs without reading gigabytes."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(head)
        stream.seek(max(0, size - head))
        return hashlib.sha256(f"{file.parent.name}/{file.name} {size}".encode() + start + stream.read()).digest()


def no_progress_bars() -> None:
    """Silence what diffusers and transformers print while they load the parts of a pipeline."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
