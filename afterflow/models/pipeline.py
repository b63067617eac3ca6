"""What a model offers the rest of afterflow, and what all families share: a stock pipeline of diffusers.

Times, velocities and images are in our convention here and only here converted: t = 1 is noise, v = ε - x_0,
images are uint8 (B, H, W, 3), clips of F frames uint8 (B, F, H, W, 3).

The text encoders live only while prompts are encoded.  The transformer and the autoencoder stay in memory.
diffusers and transformers take seconds to import, so that each function imports them that needs them.
"""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import __version__
from ..sampling.conditioning import Conditioning, Embedding, Velocity, concatenate_embeddings, linear_guidance
from ..sampling.schedules import Schedule
from ..system.atomic_files import write_text_atomically
from ..system.checks import check_at_least_one, check_not_negative
from ..system.errors import ConfigError
from ..system.freed_memory import keep_freed_memory
from ..system.input_pictures import input_names, read_input
from ..system.once import say_each_once
from ..system.pictures import fit_picture
from .base import cache_folder, latents_file, read_cache_file, warn_of_slow_bf16, write_cache_file
from .lora.factors import LoRAFactors
from .lora.files import StoredLoRA, check_lora_fits, lora_state_dict, read_lora, write_lora
from .lora.trained import trained_factors
from .packing import pack_latents, unpack_latents
from .pipeline_files import check_family, copy_part, fingerprint, is_distilled, locate, read_index, reading_parts
from .prompt_lengths import CutPrompts, TextLimit, cut_prompts
from .quantize import QuantizeName, check_quantizes, quantize
from .text_encoders import encoder_name, prompts_per_pass, remove_word_heads
from .vae import batch_size, decode_images, encode_images
from .wrappers import Combine, guided, in_chunks

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


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
        given = vars(self).keys()
        check_at_least_one(
            self, *sorted(given & {"size", "width", "height", "frames", "picture_size"}), prefix="model."
        )
        check_not_negative(
            self, *sorted(given & {"max_sequence_length", "embedded_guidance", "guidance_cap"}), prefix="model."
        )

    @abstractmethod
    def load(self, device: torch.device | str = "cpu") -> "Model":
        """Load everything but the text encoders.

        Raises InputError where `path` is not a pipeline of this family, ConfigError for options that it cannot draw.
        """


class InputPictures(NamedTuple):
    """The pictures that texts are about, each once."""

    views: Sequence[tuple[np.ndarray, ...]]
    """Pictures in the sizes in which they are seen, uint8 (H, W, 3) each, that of the autoencoder last."""
    digests: Sequence[str]
    """Digests of the pictures as the model takes them, before they are scaled to what is seen."""
    rows: Tensor
    """Which of them are those of each of U texts, (U, N) long."""

    @property
    def digest(self) -> str:
        """Digest of the pictures and of whose they are."""
        return hashlib.sha256(" ".join([*self.digests, str(self.rows.tolist())]).encode()).hexdigest()


class Model(ABC):
    """A stock pipeline without its text encoders, which a family tells how to read prompts and predict velocities."""

    stock: str
    """Name of the pipeline's class in diffusers."""
    also: tuple[str, ...] = ()
    """Names of other pipelines of diffusers whose folders it loads as well."""
    encoders: tuple[str, ...]
    """Names of the pipeline's parts that read prompts."""
    optional_encoders: tuple[str, ...] = ()
    """Those of them that a pipeline may be without, and need not name."""
    prompts_in_chat: bool = False
    """Whether the tokens of a prompt are counted with those of a chat before it."""
    usual_guidance: float
    """The guidance scale of its authors.  1 where the network takes another one as input, or needs none."""
    streams: tuple[str, ...]
    """Names of the layers that the network's residual streams begin with."""
    lora_targets: tuple[str, ...]
    """The layers that the family's LoRAs adapt by default."""
    takes_pictures: Literal["never", "may", "must"] = "never"
    """Whether a prompt has pictures that it is about, to edit them or to begin with them."""
    most_pictures: int | None = None
    """Largest number of pictures of a prompt.  None: there is no limit."""
    reads_pictures: bool = False
    """Whether the encoders see a prompt's pictures, so that the empty text is encoded anew for each prompt."""
    combine: Combine = staticmethod(linear_guidance)
    """How the family's own pipeline guides: (v_∅, v_c, scale) → velocity."""
    vae_encode: Callable[[Any, np.ndarray], Tensor] = staticmethod(encode_images)
    """How the autoencoder is called on uint8 images: (autoencoder, images) → latents."""
    vae_decode: Callable[[Any, Tensor], np.ndarray] = staticmethod(decode_images)
    """How the autoencoder is called on latents: (autoencoder, latents) → uint8 images."""
    packed: bool = False
    """Whether the pipeline's own loop has tokens of 2x2 latents."""
    end_layers: tuple[str, ...] = ("proj_out",)
    """Names of the small layers at the network's ends that compute in fp32 where its streams are kept so."""
    lora_calls: tuple[Mapping[str, Any], ...] = ({},)
    """Options of each call of diffusers' load_lora_weights that loads a saved LoRA from its folder."""

    module: nn.Module
    """The network that is trained; adapters attach to it."""
    config: Any
    """The family's own `Pretrained`."""
    pipe: Any
    """An instance of `stock`, without encoders."""
    schedule: Schedule
    """The sampling grid that the pipeline's own scheduler prescribes."""
    latent_shape: tuple[int, ...]
    """Shape of one image's latents, without the batch."""
    scale_factor: int
    """Pixels on a side of a latent."""
    pixel_unit: int
    """Pixels of which every side of an image is a multiple."""
    text_shape: tuple[int, int, int | None]
    """Number and width of the vectors of an encoded prompt, and the width of the pooled one if there is one."""
    encoder_key: tuple[tuple[str, ...], str]
    """Names of encoders that are left out, and what else decides how a prompt is encoded.  It keys the cache."""
    _loaded: "list[DiffusionPipeline] | None" = None
    """The pipeline with encoders, once there is one to keep.  None: it is not kept."""

    def __init__(self, config: Pretrained, device: torch.device | str) -> None:
        self.config, self.device = config, torch.device(device)
        self.folder = locate(config.path, config.revision, weights=False)
        check_family(config.path, self.folder, self.stock, *self.also)
        import diffusers  # noqa: F401 - whatever stops its import is no fault of the pipeline's

        with reading_parts(config.path):
            self.pipe = self.meta_pipeline()
            self.configure()  # what cannot be drawn is refused before weights are fetched
        if config.dtype == "bfloat16":
            warn_of_slow_bf16(self.device, "dtype = bfloat16", "float32")
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.device.type != "meta":
            self.folder = locate(config.path, config.revision)
            with reading_parts(config.path):
                self.pipe = self.pipeline(without=self.encoders)
            if config.quantize is not None:
                quantize(self.network(), config.quantize, self.device)
            with reading_parts(config.path):
                self.pipe.to(self.device)  # which fails where a file lacks weights
            self.configure()  # again: only weights tell whether SD3's T5 says anything
        self.pipe.set_progress_bar_config(disable=True)
        self.module = self.network()
        self.vae = self.pipe.vae.requires_grad_(False).float()  # decoders overflow in half precision

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        """Whether a pipeline is of this family, by its model_index.json."""
        return index["_class_name"] == cls.stock

    @classmethod
    def also_reads(cls, index: Mapping[str, Any]) -> bool:
        """Whether a pipeline of another class is of this family where prompts have input pictures."""
        return False

    def network(self) -> nn.Module:
        """Return the network of the pipeline that is trained."""
        return self.pipe.transformer

    def network_parts(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the parts of a pipeline that `network`, which is this model's or a copy of it, is, by their names."""
        return {"transformer": network}

    @abstractmethod
    def configure(self) -> None:
        """Set schedule, shapes, scale factor and encoder key by `config` and `pipe`.

        Raises ConfigError for options that the pipeline cannot draw.
        """

    @abstractmethod
    def embed(self, pipe: Any, prompts: list[str]) -> Embedding:
        """Encode B texts by the encoders of the stock pipeline."""

    @abstractmethod
    def velocity(self, module: nn.Module) -> Velocity:
        """Return the velocity field of `module`, which is this model's network or a copy of it."""

    @abstractmethod
    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for B encoded prompts, B empty ones and a guidance scale."""

    @classmethod
    def guidance_of(cls, folder: Path) -> float:
        """Return the guidance scale of the authors of the pipeline in a folder: 1 for a distilled one."""
        return 1.0 if is_distilled(folder) else cls.usual_guidance

    @classmethod
    def check_guidance(cls, folder: Path, scale: float) -> None:
        """Raise ConfigError for guidance of a distilled model, which its own pipeline leaves out."""
        if scale != 1 and is_distilled(folder):
            why = "the model is distilled and draws without guidance"
            raise ConfigError(f"guidance scale {scale:g}: {why}; take 1, or its base model")

    @property
    def low_noise(self) -> Callable[[Tensor], Tensor] | None:
        """Says by times (M,) which rows the second of two networks computes, (M,) bool.  None: there is one."""
        return None

    @property
    @abstractmethod
    def text_tokens(self) -> dict[str, int]:
        """Number of tokens that each encoder reads, by the name of its tokenizer."""

    def cut_prompts(self, prompts: Sequence[str]) -> tuple[CutPrompts, ...]:
        """Return for each encoder that does not read all of the prompts what it cuts."""
        limits = [
            TextLimit(encoder_name(tokenizer), self.folder / tokenizer, tokens, self.prompts_in_chat)
            for tokenizer, tokens in self.text_tokens.items()
        ]
        return cut_prompts(tuple(limits), tuple(prompts))

    def guided_velocity(self, scale: float, chunk: int) -> Velocity:
        """Return the velocity field that draws images: guided as the family does, in passes of `chunk` rows.

        ConfigError where the pipeline cannot be guided so.
        """
        self.check_guidance(self.folder, scale)
        return in_chunks(self.guide(self.velocity(self.module), scale), chunk)

    def guide(self, velocity: Velocity, scale: float) -> Velocity:
        """Guide a velocity of this model by the one without a prompt, as the family does."""
        return guided(velocity, scale, self.combine)

    def encode_images(self, images: np.ndarray) -> Tensor:
        """Encode uint8 images (B, H, W, 3), or clips (B, F, H, W, 3), to latents (B, ...)."""
        return self.vae_encode(self.vae, images)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents (B, ...) to uint8 images (B, H, W, 3), or clips (B, F, H, W, 3)."""
        return self.vae_decode(self.vae, latents)

    def index(self) -> dict[str, Any]:
        """Return what the pipeline's model_index.json holds, with a pair of None for each part that is not there."""
        return {name: [None, None] for name in self.optional_encoders} | read_index(self.folder)

    def stock_class(self) -> "type[DiffusionPipeline]":
        """Return the pipeline's class in diffusers."""
        import diffusers

        return getattr(diffusers, self.stock)

    def pipeline(self, without: Sequence[str] = (), **parts: nn.Module) -> "DiffusionPipeline":
        """Return the stock pipeline from the folder, some parts given and some left out.

        The autoencoder, which computes in fp32, is read in fp32: bf16 would round what the file holds.
        """
        index = self.index()
        # diffusers insists that parts which the folder does not have are named.
        absent = [name for name, kind in index.items() if kind == [None, None]]
        left_out = dict.fromkeys([*without, *absent])
        dtypes = {"vae": torch.float32, "default": getattr(torch, self.config.dtype)}
        return self.stock_class().from_pretrained(self.folder, dtype=dtypes, **left_out, **parts)

    def meta_pipeline(self) -> "DiffusionPipeline":
        """Return the stock pipeline without encoders and without weights, on the device `meta`."""
        import diffusers

        index, dtype = self.index(), getattr(torch, self.config.dtype)
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
        return self.stock_class()(**options)

    def encode(self, prompts: Sequence[str]) -> Embedding:
        """Encode P texts to P rows.  They are cached on disk by content; encoders are loaded only for new texts."""
        file = self._cache_file(prompts)
        tensors = read_cache_file(file)
        if tensors is None:
            embedding = self._run_encoders(prompts)
            tensors = {name: tensor for name, tensor in embedding._asdict().items() if tensor is not None}
            write_cache_file(file, tensors)
        return Embedding(**tensors)

    def encode_texts(self, texts: Sequence[str], pictures: InputPictures | None) -> tuple[Embedding, Embedding]:
        """Encode U texts with the pictures that they are about: U rows, and those of the empty text, one or U."""
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        embedding = self.encode([*distinct, ""])
        positive, negative = embedding.rows(slice(-1)), embedding.rows(slice(-1, None))
        if len(distinct) < len(texts):  # a request about several pictures
            positive = positive.rows(torch.tensor([distinct[text] for text in texts]))
        return positive._replace(pictures=self.encode_pictures(pictures)), negative

    def encode_pictures(self, pictures: InputPictures | None) -> Tensor | None:
        """Encode input pictures to latents (U, N, C, h, w), which are cached on disk by content."""
        if pictures is None:
            return None
        file = latents_file([self.image_key, self.input_shape, __version__, pictures.digest])
        stored = read_cache_file(file)
        if stored is None:
            count, seen = len(pictures.views), pictures.views[0][-1]
            batch = batch_size(seen.shape[0] * seen.shape[1])
            batches = [range(i, min(i + batch, count)) for i in range(0, count, batch)]
            parts = [self.encode_images(np.stack([pictures.views[i][-1] for i in rows])).cpu() for rows in batches]
            stored = {"latents": torch.cat(parts)}
            write_cache_file(file, stored)
        return stored["latents"][pictures.rows]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the latents of an input picture."""
        return self.latent_shape

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the model draws."""
        height, width = (side * self.scale_factor for side in self.latent_shape[-2:])
        return height, width

    def fit_input(self, pixels: np.ndarray) -> np.ndarray:
        """Scale and crop an input picture, uint8 (H, W, 3), to what the model takes."""
        return fit_picture(pixels, *self.drawn_size)

    def views(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return a fitted input picture in the sizes in which it is seen, that of the autoencoder last."""
        return (pixels,)

    def _cache_file(self, prompts: Sequence[str]) -> Path:
        digest = hashlib.sha256(f"{self.stock} {self.encoder_key} {self.config.dtype}".encode())
        # Of text_encoder*, tokenizer* and processor.
        for file in sorted([*self.folder.glob("t[eo][xk]*/*"), *self.folder.glob("processor/*")]):
            digest.update(fingerprint(file))
        digest.update(json.dumps(list(prompts)).encode())
        return cache_folder() / "prompts" / f"{digest.hexdigest()[:32]}.safetensors"

    @torch.no_grad()
    def _run_encoders(self, prompts: Sequence[str]) -> Embedding:
        pipe = self.pipeline_with_encoders()
        batch = prompts_per_pass(pipe, self.text_tokens)
        made = [self.embed(pipe, list(prompts[i : i + batch])) for i in range(0, len(prompts), batch)]
        return concatenate_embeddings([Embedding(*(None if x is None else x.cpu() for x in part)) for part in made])

    def pipeline_with_encoders(self, *without: str) -> Any:
        """Return the stock pipeline with its text encoders, and without an autoencoder and some other parts."""
        if self._loaded:
            return self._loaded[0]
        with reading_parts(self.config.path):
            pipe = self.pipeline(("vae", *self.encoder_key[0], *without), **self.network_parts(self.module))
            remove_word_heads(pipe, self.encoders)
            pipe.to(self.device)
        if self._loaded is not None:
            self._loaded.append(pipe)
        return pipe

    @contextmanager
    def encoders_loaded_once(self) -> Iterator[None]:
        """Keep the text encoders, where the block needs them, from their first use in it to its end."""
        self._loaded = []
        try:
            yield
        finally:
            self._loaded = None

    def stock_latents(self, cond: Conditioning, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """Return the latents (B, ...) that the stock pipeline's own loop makes of noise (B, ...), by Euler's steps."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        from .grid_scheduler import GridScheduler

        names = [input_names(record) for record in cond.records()]
        if len(set(names)) > 1 or (names[0] and len(names) > 1):  # pipelines take one set of pictures
            rows = torch.arange(len(cond))
            return torch.cat([self.stock_latents(cond[i], noise[i], steps, guidance) for i in rows.split(1)])
        inputs = self.stock_inputs(cond.embedding(), cond.unprompted().embedding(), guidance)
        inputs["height"], inputs["width"] = self.drawn_size
        if names[0]:
            inputs["image"] = [Image.fromarray(self.fit_input(read_input(name))) for name in names[0]]
        stock_scheduler = self.pipe.scheduler
        if not isinstance(stock_scheduler, FlowMatchEulerDiscreteScheduler):
            # One step at a time on the same grid, where UniPC takes several together.
            self.pipe.scheduler = GridScheduler(self.schedule.times(steps))
        x = pack_latents(noise) if self.packed else noise
        try:
            x = self.pipe(latents=x, num_inference_steps=steps, output_type="latent", **inputs)[0]
        finally:
            self.pipe.scheduler = stock_scheduler
        return self.from_stock(x, noise)

    def from_stock(self, latents: Tensor, like: Tensor) -> Tensor:
        """Return the latents, in the shape of `like` (B, ...), of what the stock pipeline gives its autoencoder."""
        return unpack_latents(latents, like) if self.packed else latents

    @property
    def image_key(self) -> str:
        """Digest of all that decides how an image is encoded: the latents' shape and the autoencoder, which is fp32."""
        digest = hashlib.sha256(f"{self.latent_shape} float32".encode())
        for file in sorted((self.folder / "vae").iterdir()):
            digest.update(fingerprint(file))
        return digest.hexdigest()

    def save_lora(self, folder: str | Path) -> None:
        """Write the adapter of `module` by `write_lora`, for diffusers and ComfyUI, with its alpha for training on."""
        layers, alpha = trained_factors(self.module)
        write_lora(folder, layers, type(self.config).__name__, alpha)

    def load_lora(self, source: str | Path, name: str = "default") -> StoredLoRA:
        """Attach and activate an adapter, and return it as it was read.  InputError when it does not fit.

        source: a run's folder, a LoRA's folder or a file, of any program that `read_lora` knows.  The scale is part of
        the weights, so that alpha is the rank.
        """
        lora = read_lora(source, type(self.config).__name__)
        check_lora_fits(lora, self.module)
        self.attach_lora(lora.layers, name)
        return lora

    def attach_lora(self, layers: Mapping[str, LoRAFactors], name: str) -> None:
        """Attach an adapter of this name, with the factors of these layers, which fit."""
        self.pipe.load_lora_weights(lora_state_dict(layers), adapter_name=name)

    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        """Write the whole pipeline with the trained network, which is `module` or a copy of it.

        The other parts are files of the base: none is loaded for it, and none is rounded to the run's precision.
        """
        trained = self.network_parts(network)
        for name, part in trained.items():
            part.save_pretrained(folder / name)  # type: ignore[operator]
        index = self.index() | {"_class_name": self.stock}
        for name, kind in index.items():
            if isinstance(kind, list) and kind != [None, None] and name not in trained:
                copy_part(self.folder / name, folder / name)
        write_text_atomically(folder / "model_index.json", json.dumps(index, indent=2) + "\n")


def meta_part(kind: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Make a part of a pipeline from its configuration, on the device `meta`."""
    with torch.device("meta"):
        part = kind.from_config(kind.load_config(folder))
    # As loading does: files hold buffers too, such as SD3's table of positions, of half a gigabyte in 3.5 medium.
    for stored in part.state_dict(keep_vars=True).values():
        if stored.is_floating_point():
            stored.data = stored.data.to(dtype)
    return part


KNOWN_NOISE = (
    "requires torchvision (not installed)",
    "Unable to import `torchao`",
    # What follows is said with the number of prompts by generate.encode_records.
    "Token indices sequence length is longer",
    "The following part of your input was truncated",
)
"""Warnings of diffusers and transformers that tell users nothing new."""


def no_progress_bars() -> None:
    """Silence the progress of loading parts, and pass every warning of diffusers and transformers on once."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_warning()
    for name in ("diffusers", "transformers"):
        say_each_once(logging.getLogger(name), KNOWN_NOISE)
