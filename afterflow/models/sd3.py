"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206) through diffusers.

The encoders live only while prompts are encoded; what stays in memory is the transformer and the autoencoder.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..cond import Cond, Embedding, Velocity
from ..flow import Schedule, SD3Grid
from .base import Model, cache_folder, keep

FIRST_ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
THIRD_ENCODER = ("text_encoder_3", "tokenizer_3")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@dataclass(frozen=True)
class SD3:
    """A Stable Diffusion 3 or 3.5 pipeline."""

    path: str = "stabilityai/stable-diffusion-3.5-medium"
    """Hub id or folder; `tiny` is the pipeline shipped with afterflow."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the frozen weights."""
    size: int | None = None
    """Height and width in pixels; None: the transformer's own."""
    max_sequence_length: int | None = None
    """Tokens of the third (T5) encoder, 0 leaves it out; None: 256, or 0 where the pipeline's T5 is missing or mute."""

    def load(self, device: torch.device | str = "cpu") -> "SD3Model":
        """Everything but the text encoders; ValueError when `path` is not an SD3 pipeline."""
        return SD3Model(self, locate(self.path, self.revision), torch.device(device))


TINY = Path(__file__).parent.parent / "assets" / "tiny_sd3"


def locate(path: str, revision: str | None) -> Path:
    """The local folder of a pipeline, downloaded when `path` is a hub id."""
    folder = TINY if path == "tiny" else Path(path)
    if not folder.is_dir():
        if len(Path(path).parts) != 2 or path.startswith((".", "/")):
            raise ValueError(f"model {path!r}: no such folder, and a hub id reads owner/name")
        try:
            folder = Path(DiffusionPipeline.download(path, revision=revision))
        except OSError as error:
            raise ValueError(
                f"model {path!r} is not on this machine and could not be fetched from the hub; check the id, the "
                "network and, for a gated model, your token"
            ) from error
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"model {path!r}: {folder} holds no model_index.json, so it is not a diffusers pipeline")
    family = json.loads(index.read_text())["_class_name"]
    if family != "StableDiffusion3Pipeline":
        raise ValueError(f"model {path!r} is a {family}; the sd3 model needs a StableDiffusion3Pipeline")
    return folder


class SD3Model(Model):
    lora_targets = ATTENTION

    def __init__(self, config: SD3, folder: Path, device: torch.device) -> None:
        self.config, self.folder, self.device = config, folder, device
        told, default = config.max_sequence_length, 256 if t5_speaks(folder) else 0
        self.t5_tokens = default if told is None else told
        self.pipe = self._pipeline(without=FIRST_ENCODERS + THIRD_ENCODER).to(device)
        self.module = self.pipe.transformer
        self.vae = self.pipe.vae.requires_grad_(False).float()  # the decoder overflows in half precision
        self.schedule: Schedule = SD3Grid(self.pipe.scheduler.config.shift)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = config.size // factor if config.size else self.module.config.sample_size
        self.latent_shape = (self.module.config.in_channels, side, side)

    def _pipeline(self, without: Sequence[str] = (), **parts: nn.Module) -> StableDiffusion3Pipeline:
        """The stock pipeline from the folder, some parts given and some left out."""
        index = json.loads((self.folder / "model_index.json").read_text())
        # diffusers insists that parts which the folder does not have are named.
        absent = [name for name, kind in index.items() if kind == [None, None]]
        left_out = dict.fromkeys([*without, *absent])
        return StableDiffusion3Pipeline.from_pretrained(
            self.folder, dtype=getattr(torch, self.config.dtype), **left_out, **parts
        )

    def encode(self, prompts: Sequence[str]) -> Embedding:
        cached = self._cache_file(prompts)
        if not cached.is_file():
            embedding = self._run_encoders(prompts)
            keep(cached, {"sequence": embedding.sequence, "pooled": embedding.pooled})  # type: ignore[dict-item]
        stored = load_file(cached, device=str(self.device))
        return Embedding(stored["sequence"], stored["pooled"])

    def _cache_file(self, prompts: Sequence[str]) -> Path:
        digest = hashlib.sha256(f"{self.t5_tokens} {self.config.dtype}".encode())
        for file in sorted(self.folder.glob("t[eo][xk]*/*")):  # text_encoder*, tokenizer*
            digest.update(fingerprint(file))
        digest.update(json.dumps(list(prompts)).encode())
        return cache_folder() / "prompts" / f"{digest.hexdigest()[:32]}.safetensors"

    @torch.no_grad()
    def _run_encoders(self, prompts: Sequence[str], batch: int = 64) -> Embedding:
        without = ("vae",) if self.t5_tokens else ("vae", *THIRD_ENCODER)
        encoders = self._pipeline(without, transformer=self.module).to(self.device)
        sequences, pooleds = [], []
        for i in range(0, len(prompts), batch):
            encoded = encoders.encode_prompt(
                list(prompts[i : i + batch]),
                None,
                None,
                do_classifier_free_guidance=False,
                max_sequence_length=self.t5_tokens,
            )
            sequences.append(encoded[0].cpu())  # type: ignore[union-attr]
            pooleds.append(encoded[2].cpu())  # type: ignore[union-attr]
        return Embedding(torch.cat(sequences).contiguous(), torch.cat(pooleds).contiguous())

    def velocity(self, module: nn.Module) -> Velocity:
        dtype = next(module.parameters()).dtype

        def v(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            embedding = cond.embedding()
            assert embedding.pooled is not None
            return module(
                hidden_states=x.to(dtype),
                timestep=1000 * t,
                encoder_hidden_states=embedding.sequence.to(dtype),
                pooled_projections=embedding.pooled.to(dtype),
                return_dict=False,
            )[0]

        return v

    @property
    def image_key(self) -> str:
        digest = hashlib.sha256(str(self.latent_shape).encode())
        for file in sorted((self.folder / "vae").iterdir()):
            digest.update(fingerprint(file))
        return digest.hexdigest()

    @torch.no_grad()
    def encode_images(self, images: np.ndarray, batch: int = 64) -> Tensor:
        latents = []
        for i in range(0, len(images), batch):
            x = torch.from_numpy(images[i : i + batch]).to(self.device).permute(0, 3, 1, 2) / 127.5 - 1
            latents.append(self.vae.encode(x).latent_dist.mode())
        return (torch.cat(latents) - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 16) -> np.ndarray:
        images = []
        for z in latents.float().split(batch):
            x = self.vae.decode(z / self.vae.config.scaling_factor + self.vae.config.shift_factor).sample
            images.append((x / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(images)

    def save_lora(self, folder: Path) -> None:
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(self.module),
            # Without it diffusers loads a LoRA with alpha != rank at the wrong scale, and says nothing.
            **_collate_lora_metadata({"transformer": self.module}),
        )

    def load_lora(self, folder: str | Path, name: str = "default") -> None:
        file = lora_file(folder)
        check_lora_fits(file, self.module)
        self.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)

    def save_pipeline(self, folder: Path) -> None:
        self._pipeline(transformer=self.module).save_pretrained(folder)


def t5_speaks(folder: Path) -> bool:
    """Whether the pipeline has a third encoder, and one that says anything (see tiny/ship.py)."""
    files = sorted((folder / "text_encoder_3").glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as stored:
            if (name := "encoder.final_layer_norm.weight") in stored.keys():  # noqa: SIM118
                return bool(stored.get_tensor(name).any())
    return bool(files)


def lora_file(folder: str | Path) -> Path:
    """Where an adapter lies; ValueError when it does not."""
    file = Path(folder)
    file = file / "pytorch_lora_weights.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"LoRA {folder}: no pytorch_lora_weights.safetensors there")
    return file


def check_lora_fits(file: Path, module: nn.Module) -> None:
    """ValueError unless every factor of the LoRA meets a layer of its shape; diffusers would skip it in silence."""
    # A layer that has an adapter already is kept inside it.
    linear = ((name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear))
    layers = {name.removesuffix(".base_layer"): m.weight for name, m in linear}
    with safe_open(file, "pt") as stored:
        keys = [key for key in stored.keys() if ".lora_A." in key or ".lora_B." in key]  # noqa: SIM118
        if not keys:
            raise ValueError(f"LoRA {file}: no lora_A tensors in it, so it is no LoRA in diffusers' format")
        for key in keys:
            name, _, factor = key.removeprefix("transformer.").rpartition(".lora_")
            shape = list(stored.get_slice(key).get_shape())
            side = 1 if factor.startswith("A") else 0  # A meets the layer's input, B its output
            if name not in layers or layers[name].shape[side] != shape[side]:
                raise ValueError(
                    f"LoRA {file} is of another architecture: its tensor {key} {shape} meets no layer of this "
                    "model; take the model it was trained on"
                )


def fingerprint(file: Path, head: int = 1 << 20) -> bytes:
    """Tells files of different content apart without reading gigabytes: name, size, first and last megabyte."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(head)
        stream.seek(max(0, size - head))
        return hashlib.sha256(f"{file.parent.name}/{file.name} {size}".encode() + start + stream.read()).digest()
