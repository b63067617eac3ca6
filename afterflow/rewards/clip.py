"""Rewards on the embeddings of CLIP (arXiv:2103.00020): CLIPScore, PickScore, HPSv2 and the aesthetic predictor.

Checkpoints of open_clip are read by transformers under other names, so that its library is not needed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ..system.errors import ConfigError, InputError
from ..system.input_pictures import file_version
from ..system.pictures import find_file, read_picture
from .base import RewardModels, Scored, Scorer, network_reward
from .canaries import BEAUTIFUL, CAPTIONED, SIMILAR

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_VIT_L = ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
CLIP_VIT_H = ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
PICKSCORE_V1 = ("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
HPS_V2_1 = ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")


Images = np.ndarray | Sequence[np.ndarray]
"""Images of one size in an array (B, H, W, 3), or of several sizes in a list."""


class Clip:
    """Embeds images and texts by the two towers of a CLIP."""

    def __init__(self, models: RewardModels, path: str, revision: str | None, words: tuple[str, str | None]) -> None:
        """Load the towers from a path and revision, and the tokenizer from those in `words`."""
        from transformers import AutoTokenizer, CLIPModel

        # Any: transformers' types say of a configuration that it may be None or a dict.
        model: Any = CLIPModel.from_pretrained(path, revision=revision or "main", dtype=torch.float32)
        self.length = model.logit_scale.exp().item()  # bf16 would round 100 to 99
        self.model = model.to(models.torch_device, getattr(torch, models.dtype)).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(words[0], revision=words[1])
        self.size, self.models = model.config.vision_config.image_size, models

    @torch.no_grad()
    def embed_images(self, images: Images, prepare: Callable[[Any, int], Tensor]) -> Tensor:
        """Embed B uint8 images (H, W, 3) → (B, D) fp32 of length 1, on the CPU."""
        rows, to = self.models.batch, {"device": self.model.device, "dtype": self.model.dtype}
        parts = [prepare(images[i : i + rows], self.size).to(**to) for i in range(0, len(images), rows)]
        outputs = [embeddings(self.model.get_image_features(pixel_values=part)) for part in parts]
        return unit_rows(torch.cat(outputs))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> tuple[Tensor, np.ndarray]:
        """Embed B texts → (B, D) fp32 of length 1, on the CPU; and say which are longer than CLIP reads, (B,) bool."""
        distinct = list(dict.fromkeys(texts))
        index = np.array([distinct.index(text) for text in texts])
        max_length = self.model.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
        tokens = self.tokenizer(distinct, **options).to(self.model.device)
        cut = np.array([len(ids) > max_length for ids in self.tokenizer(distinct)["input_ids"]])
        output = self.model.get_text_features(**{key: tokens[key] for key in ("input_ids", "attention_mask")})
        return unit_rows(embeddings(output))[index], cut[index]

    def scorer(self, prepare: Callable[[np.ndarray, int], Tensor], factor: float = 1.0) -> Scorer:
        """Return a scorer of the cosine of image and prompt, times a factor; part `cut` is 1 where a prompt is cut."""

        def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
            text, cut = self.embed_texts([record["prompt"] for record in records])
            values = (self.embed_images(images, prepare) * text).sum(1).numpy().astype(np.float64)
            return Scored(factor * values, {"cut": cut.astype(np.float64)})

        return score


def load_clip_vit_l(models: RewardModels) -> Clip:
    """Load CLIP ViT-L/14, on clipscore's weights."""
    source = models.weights_source("clipscore", CLIP_VIT_L)
    return Clip(models, *source, source)


def embeddings(output: object) -> Tensor:
    """Return the embeddings of a tower, which are in an object since transformers 5 and a tensor before."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


def unit_rows(rows: Tensor) -> Tensor:
    """Scale rows to length 1, fp32, on the CPU."""
    return functional.normalize(rows.float(), dim=-1).cpu()


def crop_square(images: Images, size: int) -> Tensor:
    """Scale the shorter side by PIL's bicubic filter and crop the middle: (B, H, W, 3) → (B, 3, size, size)."""
    crops = []
    for image in map(Image.fromarray, images):
        short = min(image.size)
        wide, tall = (side * size // short for side in image.size)
        x, y = (wide - size) // 2, (tall - size) // 2
        scaled = image.resize((wide, tall), Image.Resampling.BICUBIC)
        crops.append(np.asarray(scaled.crop((x, y, x + size, y + size))))
    return normalize_pixels(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255)


def pad_square(images: np.ndarray, size: int) -> Tensor:
    """Scale the longer side and pad with black, as HPSv2 does to tensors: (B, H, W, 3) → (B, 3, size, size)."""
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2) / 255
    scale = size / max(x.shape[2:])
    tall, wide = (round(side * scale) for side in x.shape[2:])
    if scale != 1:
        x = functional.interpolate(x, (tall, wide), mode="bicubic", antialias=True)
    before_x, before_y = (size - wide) // 2, (size - tall) // 2
    padding = (before_x, size - wide - before_x, before_y, size - tall - before_y)
    return normalize_pixels(functional.pad(x, padding))


def normalize_pixels(x: Tensor) -> Tensor:
    """Normalise pixels in [0, 1], (..., 3, H, W), by CLIP's mean and standard deviation of each channel."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (x - mean) / std


@network_reward("clipscore", -100, 100, scale=1 / 30, canary=CAPTIONED)
def clipscore(models: RewardModels) -> Scorer:
    """Score 100 cos(image, prompt) of CLIP ViT-L/14, over 30 as flow_grpo has it.

    CLIP reads a prompt as a bag of words: it binds no attribute to its object.
    """
    return load_clip_vit_l(models).scorer(crop_square, 100)


@network_reward("pickscore", -100, 100, scale=1 / 26, canary=CAPTIONED)
def pickscore(models: RewardModels) -> Scorer:
    """Score e^s cos(image, prompt) of PickScore v1 (arXiv:2305.01569), over 26 as flow_grpo has it."""
    path, revision = models.weights_source("pickscore", PICKSCORE_V1)
    clip = Clip(models, path, revision, (path, None) if Path(path).is_dir() else CLIP_VIT_H)
    return clip.scorer(crop_square, clip.length)


@network_reward("hpsv2", -1, 1, canary=CAPTIONED)
def hpsv2(models: RewardModels) -> Scorer:
    """Score cos(image, prompt) of HPSv2.1 (arXiv:2306.09341); only images of the same prompt can be compared."""
    path, revision = models.weights_source("hpsv2", HPS_V2_1)
    if Path(path).is_dir():  # already under transformers' names
        clip = Clip(models, path, None, (path, None))
    else:
        clip = Clip(models, *CLIP_VIT_H, CLIP_VIT_H)
        file = path if Path(path).is_file() else hf_hub_download(path, "HPS_v2.1_compressed.pt", revision=revision)
        clip.model.load_state_dict(from_open_clip(read_weights(Path(file))["state_dict"]))
    return clip.scorer(pad_square)


def check_image(record: dict) -> None:
    """Raise InputError where the record names no picture that is there and can be read."""
    file = record.get("image")
    if not isinstance(file, str):
        raise InputError(f"its image, the file of a picture to be like, is {file!r} and not there")
    check_reference(file)


def check_reference(file: str) -> None:
    """Raise InputError where a picture to be like is not there or cannot be read."""
    _check_reference(file, reference_version(file))


@lru_cache(maxsize=65536)
def _check_reference(file: str, version: object) -> None:
    read_reference(file)


def reference_version(file: str) -> tuple[str, tuple[int, int] | None]:
    """Return the path of a picture to be like with its time and size, which change with it.

    InputError where it is not there.
    """
    path = str(find_file(Path(), file))
    return path, file_version(path)


def read_reference(file: str) -> np.ndarray:
    """Read a picture to be like, uint8 (H, W, 3); InputError where it is not there or cannot be read."""
    return read_picture(find_file(Path(), file), file)


@network_reward("image_similarity", -1, 1, needs=check_image, canary=SIMILAR, weights=("clipscore",))
def image_similarity(models: RewardModels) -> Scorer:
    """Score the cosine of a picture and the one that its record names under "image", by CLIP ViT-L/14."""
    clip = load_clip_vit_l(models)
    references: dict[str, tuple[object, Tensor]] = {}

    def embed_reference(file: str) -> Tensor:
        version, known = reference_version(file), references.get(file)
        if known is None or known[0] != version:
            known = references[file] = version, clip.embed_images(read_reference(file)[None], crop_square)[0]
        return known[1]

    def score(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
        embedded = {file: embed_reference(file) for file in dict.fromkeys(record["image"] for record in records)}
        like = torch.stack([embedded[record["image"]] for record in records])
        return (clip.embed_images(images, crop_square) * like).sum(1).clamp(-1, 1).numpy()  # 1 may round to 1 + 1e-7

    return score


LINEAR_LAYERS = (0, 2, 4, 6, 7)
"""The linear layers of the aesthetic predictor and of ImageReward; their other layers are dropout."""


@network_reward("aesthetic", canary=BEAUTIFUL, weights=("aesthetic", "clipscore"))
def aesthetic(models: RewardModels) -> Scorer:
    """Score by LAION's improved aesthetic predictor, a linear map of CLIP ViT-L/14's image embedding, about 1 to 10.

    The CLIP is clipscore's.  Its weights are no model of the hub: `sac+logos+ava1-l14-linearMSE.pth` of the repository
    christophschuhmann/improved-aesthetic-predictor, or the same as .safetensors.
    """
    if "aesthetic" not in models.weights:
        raise ConfigError(
            "name its weights: --reward-models.weights aesthetic FILE, with sac+logos+ava1-l14-linearMSE.pth of "
            "github.com/christophschuhmann/improved-aesthetic-predictor"
        )
    clip = load_clip_vit_l(models)
    weight, bias = merge_linear_layers(read_weights(Path(models.weights["aesthetic"])))

    def score(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
        return (clip.embed_images(images, crop_square) @ weight + bias).numpy()

    return score


def read_weights(file: Path) -> dict:
    """Return the tensors in a file of safetensors, or of torch, of which nothing else is read.

    Raises InputError for one that is neither, because their libraries' errors have no common type.
    """
    try:
        return load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"{file} holds no weights that can be read") from error


def merge_linear_layers(stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return layers without activations as one, weight (D,) and bias (), fp32."""
    weight, bias = None, torch.zeros(1)
    for layer in LINEAR_LAYERS:
        matrix, offset = (stored[f"layers.{layer}.{name}"].float() for name in ("weight", "bias"))
        weight = matrix if weight is None else matrix @ weight
        bias = matrix @ bias + offset if layer else offset
    assert weight is not None
    return weight[0], bias[0]


_TOWERS = {"visual.transformer.": "vision_model.encoder.", "transformer.": "text_model.encoder."}
_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ENDS = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # the spelling is transformers'
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
_PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""open_clip stores these transposed."""


def from_open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename open_clip's weights of a ViT to those of transformers' CLIPModel; raise KeyError for an unknown name."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in _PROJECTIONS:
            renamed[_PROJECTIONS[name]] = value.T.contiguous()
            continue
        tower = next((prefix for prefix in _TOWERS if name.startswith(f"{prefix}resblocks.")), None)
        if tower is None:
            renamed[_ENDS[name]] = value
            continue
        number, _, rest = name.removeprefix(f"{tower}resblocks.").partition(".")
        layer = f"{_TOWERS[tower]}layers.{number}."
        part, _, kind = rest.rpartition(".")
        if rest.startswith("attn.in_proj_"):
            for projection, rows in zip("qkv", value.chunk(3)):
                renamed[f"{layer}self_attn.{projection}_proj.{rest.removeprefix('attn.in_proj_')}"] = rows.clone()
        else:
            renamed[f"{layer}{_LAYERS[part]}.{kind}"] = value
    return renamed
