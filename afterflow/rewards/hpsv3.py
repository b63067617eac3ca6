"""HPSv3 (arXiv:2508.03789): what people prefer, read by three layers from a Qwen2-VL-7B at the token <|Reward|>.

Layers, tokens, sizes and texts are those of github.com/MizzenAI/HPSv3 (MIT), of which a user's copy of one file is
read: its instruction is long, and its authors'.  Never tried on the released weights.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .base import RewardModels, Scored, Scorer, network_reward
from .canaries import CAPTIONED
from .clip import read_weights
from .qwen2_vl import Qwen2VLReader, WeightSource, fit_size, split_checkpoint

HPSV3 = ("MizzenAI/HPSv3", "4f81e3e09edd82fe3c5f636444c721b592a735ca")
HPSV3_BASE = ("Qwen/Qwen2-VL-7B-Instruct", "eed13092ef92e448dd6875b2a00151bd3f7db0ac")
HPSV3_TEXTS = ("INSTRUCTION", "prompt_with_special_token")
HPSV3_PIXELS = 256 * 28 * 28
"""Pixels of every picture, as nearly as its shape allows."""
HPSV3_LAYERS = (0, 3, 5)
"""The linear layers of the head; its other layers are ReLU and dropout."""


@network_reward("hpsv3", canary=CAPTIONED)
def hpsv3(models: RewardModels) -> Scorer:
    """Score HPSv3's μ, unbounded, good pictures about 10; part `sigma` is how unsure it is.  About 16 GB in bfloat16.

    Its weights: a folder with `data_collator_qwen.py`; what else it lacks comes from the hub.
    """
    source = WeightSource(models.weights.get("hpsv3"), HPSV3)
    repository_file = "hpsv3/dataset/data_collator_qwen.py"
    instruction = source.instruction(repository_file, HPSV3_TEXTS, "github.com/MizzenAI/HPSv3")
    backbone, head = split_checkpoint(read_weights(source.file("HPSv3.safetensors")), "HPSv3")
    reader = Qwen2VLReader(models, source.base(HPSV3_BASE), backbone, ("<|Reward|>",))
    rate = read_head(head)

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        texts = [instruction.format(text_prompt=record["prompt"]) for record in records]
        mu, log_sigma = rate(reader.states(images, texts, resize_images)[:, 0]).unbind(1)
        return Scored(mu.numpy(), {"sigma": log_sigma.exp().numpy()})

    return score


def read_head(stored: Mapping[str, Tensor], name: str = "") -> Callable[[Tensor], Tensor]:
    """Return a head of three layers as a function: states (B, D) → μ and log σ, (B, 2) in double precision.

    Args:
        stored: its weights.
        name: what their names begin with.
    """
    layers = [tuple(stored[f"{name}{i}.{part}"].float() for part in ("weight", "bias")) for i in HPSV3_LAYERS]

    def rate(x: Tensor) -> Tensor:
        for weight, bias in layers[:-1]:
            x = functional.linear(x, weight, bias).relu()
        return functional.linear(x, *layers[-1]).double()

    return rate


def resize_images(images: np.ndarray) -> Tensor:
    """Resize uint8 (B, H, W, 3) by PIL's bicubic filter → (B, 1, 3, h, w) in [0, 255], of about 200 704 pixels."""
    tall, wide = fit_size(images.shape[1], images.shape[2], HPSV3_PIXELS, HPSV3_PIXELS)
    scaled = [Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in scaled])).permute(0, 3, 1, 2)[:, None]
