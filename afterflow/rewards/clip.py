"""Rewards on the embeddings of CLIP (arXiv:2103.00020): CLIPScore, PickScore, HPSv2 and the aesthetic predictor.

Checkpoints of open_clip are read by transformers under other names, so that its library is not needed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from .base import RewardModels, Scored, Scorer, network_reward

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LARGE = ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
HUGE = ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
PICKSCORE = ("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
HPS = ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")


class Clip:
    """Both towers and their tokenizer."""

    def __init__(self, models: RewardModels, path: str, revision: str | None, words: tuple[str, str | None]) -> None:
        from transformers import AutoTokenizer, CLIPModel

        # Any: transformers' types say of a configuration that it may be None or a dict.
        model: Any = CLIPModel.from_pretrained(path, revision=revision or "main", dtype=torch.float32)
        self.length = model.logit_scale.exp().item()  # bf16 would round 100 to 99
        self.model = model.to(models.on, getattr(torch, models.dtype)).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(words[0], revision=words[1])
        self.size, self.models = model.config.vision_config.image_size, models

    @torch.no_grad()
    def images(self, images: np.ndarray, prepare: Callable[[np.ndarray, int], Tensor]) -> Tensor:
        """uint8 (B, H, W, 3) → (B, D) fp32 of length 1, on the CPU."""
        rows, where = self.models.batch, {"device": self.model.device, "dtype": self.model.dtype}
        parts = [prepare(images[i : i + rows], self.size).to(**where) for i in range(0, len(images), rows)]
        return unit(torch.cat([features(self.model.get_image_features(pixel_values=part)) for part in parts]))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> tuple[Tensor, np.ndarray]:
        """B texts → (B, D) fp32 of length 1, on the CPU; and which are longer than CLIP reads, (B,) bool."""
        distinct = list(dict.fromkeys(texts))
        place = np.array([distinct.index(text) for text in texts])
        most = self.model.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": most, "return_tensors": "pt"}
        tokens = self.tokenizer(distinct, **options).to(self.model.device)
        cut = np.array([len(ids) > most for ids in self.tokenizer(distinct)["input_ids"]])
        found = self.model.get_text_features(**{key: tokens[key] for key in ("input_ids", "attention_mask")})
        return unit(features(found))[place], cut[place]

    def cosine(
        self, images: np.ndarray, records: Sequence[dict], prepare: Callable[[np.ndarray, int], Tensor]
    ) -> Scored:
        """Of each image and its prompt, (B,)."""
        text, cut = self.texts([record["prompt"] for record in records])
        values = (self.images(images, prepare) * text).sum(1).numpy().astype(np.float64)
        return Scored(values, {"cut": cut.astype(np.float64)})


def large(models: RewardModels) -> Clip:
    """CLIP ViT-L/14, on clipscore's weights."""
    where = models.published("clipscore", LARGE)
    return Clip(models, *where, where)


def features(found: object) -> Tensor:
    """transformers 5 answers with an object, earlier ones with the tensor."""
    return found if isinstance(found, Tensor) else found.pooler_output  # type: ignore[attr-defined]


def unit(rows: Tensor) -> Tensor:
    return functional.normalize(rows.float(), dim=-1).cpu()


def cropped(images: np.ndarray, size: int) -> Tensor:
    """The shorter side at `size` by PIL's bicubic filter, then the middle square: (B, H, W, 3) → (B, 3, size, size)."""
    found = []
    for image in map(Image.fromarray, images):
        short = min(image.size)
        wide, tall = (side * size // short for side in image.size)
        left, top = (wide - size) // 2, (tall - size) // 2
        scaled = image.resize((wide, tall), Image.Resampling.BICUBIC)
        found.append(np.asarray(scaled.crop((left, top, left + size, top + size))))
    return normalised(torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 255)


def padded(images: np.ndarray, size: int) -> Tensor:
    """The longer side at `size` and black beside it, as HPSv2 does to tensors: (B, H, W, 3) → (B, 3, size, size)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    scale = size / max(x.shape[2:])
    tall, wide = (round(side * scale) for side in x.shape[2:])
    if scale != 1:
        x = functional.interpolate(x, (tall, wide), mode="bicubic", antialias=True)
    left, top = (size - wide) // 2, (size - tall) // 2
    return normalised(functional.pad(x, (left, size - wide - left, top, size - tall - top)))


def normalised(x: Tensor) -> Tensor:
    channels = lambda values: torch.tensor(values).view(3, 1, 1)
    return (x - channels(MEAN)) / channels(STD)


@network_reward("clipscore", -100, 100, scale=1 / 30)
def clipscore(models: RewardModels) -> Scorer:
    """100 cos(image, prompt) of CLIP ViT-L/14, over 30 as flow_grpo has it.  A bag of words: it binds no attribute."""
    clip = large(models)

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        found = clip.cosine(images, records, cropped)
        return Scored(100 * found.values, found.parts)

    return score


@network_reward("pickscore", -100, 100, scale=1 / 26)
def pickscore(models: RewardModels) -> Scorer:
    """PickScore v1 (arXiv:2305.01569): e^s cos(image, prompt), over 26 as flow_grpo has it."""
    clip = Clip(models, *models.published("pickscore", PICKSCORE), models.words("pickscore", HUGE))

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        found = clip.cosine(images, records, cropped)
        return Scored(clip.length * found.values, found.parts)

    return score


@network_reward("hpsv2", -1, 1)
def hpsv2(models: RewardModels) -> Scorer:
    """HPSv2.1 (arXiv:2306.09341): cos(image, prompt); only images of the same prompt can be compared."""
    path, revision = models.published("hpsv2", HPS)
    if Path(path).is_dir():  # already under transformers' names
        clip = Clip(models, path, None, (path, None))
    else:
        clip = Clip(models, *HUGE, HUGE)
        file = path if Path(path).is_file() else hf_hub_download(path, "HPS_v2.1_compressed.pt", revision=revision)
        clip.model.load_state_dict(from_open_clip(read_weights(Path(file))["state_dict"]))
    return lambda images, records: clip.cosine(images, records, padded)


def needs_image(record: dict) -> None:
    """ValueError where the record names no picture that is there."""
    file = record.get("image")
    if not isinstance(file, str) or not Path(file).is_file():
        raise ValueError(f"its image, the file of a picture to be like, is {file!r} and not there")


@network_reward("image_similarity", -1, 1, needs=needs_image)
def image_similarity(models: RewardModels) -> Scorer:
    """cos between a picture and the one that its record names under "image", by CLIP ViT-L/14."""
    clip = large(models)
    known: dict[str, Tensor] = {}

    def score(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
        for file in {record["image"] for record in records} - known.keys():
            with Image.open(file) as image:
                known[file] = clip.images(np.asarray(image.convert("RGB"))[None], cropped)[0]
        like = torch.stack([known[record["image"]] for record in records])
        return (clip.images(images, cropped) * like).sum(1).numpy()

    return score


LINEAR_LAYERS = (0, 2, 4, 6, 7)
"""Of the aesthetic predictor and of ImageReward; their others are dropout."""


@network_reward("aesthetic")
def aesthetic(models: RewardModels) -> Scorer:
    """LAION's improved aesthetic predictor: a linear map of CLIP ViT-L/14's image embedding, about 1 to 10.

    The CLIP is clipscore's.  Its weights are no model of the hub: `sac+logos+ava1-l14-linearMSE.pth` of the repository
    christophschuhmann/improved-aesthetic-predictor, or the same as .safetensors.
    """
    if "aesthetic" not in models.weights:
        raise ValueError(
            "name its weights: --reward-models.weights aesthetic FILE, with sac+logos+ava1-l14-linearMSE.pth of "
            "github.com/christophschuhmann/improved-aesthetic-predictor"
        )
    clip = large(models)
    weight, bias = linear(read_weights(Path(models.weights["aesthetic"])))

    def score(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
        return (clip.images(images, cropped) @ weight + bias).numpy()

    return score


def read_weights(file: Path) -> dict:
    """What a file of safetensors holds, or one of torch's, of which nothing but tensors is read.

    ValueError for one that is neither: their libraries' own errors have no common type.
    """
    try:
        return load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{file} holds no weights that can be read") from error


def linear(stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Layers without activations are one: (D,) and (), of float32."""
    weight, bias = None, torch.zeros(1)
    for layer in LINEAR_LAYERS:
        each, offset = (stored[f"layers.{layer}.{name}"].float() for name in ("weight", "bias"))
        weight = each if weight is None else each @ weight
        bias = each @ bias + offset if layer else offset
    assert weight is not None
    return weight[0], bias[0]


TOWERS = {"visual.transformer.": "vision_model.encoder.", "transformer.": "text_model.encoder."}
LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
ENDS = {
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
PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""Kept transposed."""


def from_open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names of a ViT's weights → transformers' CLIPModel's; KeyError for one that is neither's."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in PROJECTIONS:
            found[PROJECTIONS[name]] = value.T.contiguous()
            continue
        tower = next((prefix for prefix in TOWERS if name.startswith(f"{prefix}resblocks.")), None)
        if tower is None:
            found[ENDS[name]] = value
            continue
        number, _, rest = name.removeprefix(f"{tower}resblocks.").partition(".")
        layer = f"{TOWERS[tower]}layers.{number}."
        part, _, kind = rest.rpartition(".")
        if rest.startswith("attn.in_proj_"):
            for projection, rows in zip("qkv", value.chunk(3)):
                found[f"{layer}self_attn.{projection}_proj.{rest.removeprefix('attn.in_proj_')}"] = rows.clone()
        else:
            found[f"{layer}{LAYERS[part]}.{kind}"] = value
    return found
