"""HPSv3 (arXiv:2508.03789): what people prefer, read by three layers from a Qwen2-VL-7B at the token <|Reward|>.

Layers, tokens, sizes and texts are those of github.com/MizzenAI/HPSv3 (MIT), of which a user's copy of one file is
read: its instruction is long, and its authors'.  Never tried on the released weights.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .base import RewardModels, Scored, Scorer, network_reward
from .clip import read_weights
from .qwen2_vl import Reader, base_of, instruction, kept, size, split

PUBLISHED = ("MizzenAI/HPSv3", "4f81e3e09edd82fe3c5f636444c721b592a735ca")
BASE = ("Qwen/Qwen2-VL-7B-Instruct", "eed13092ef92e448dd6875b2a00151bd3f7db0ac")
SOURCE = "github.com/MizzenAI/HPSv3"
TEXTS = "hpsv3/dataset/data_collator_qwen.py"
PIXELS = 256 * 28 * 28
"""Of every picture, as nearly as its shape allows."""
LAYERS = (0, 3, 5)
"""Of the head; its others are ReLU and dropout."""


@network_reward("hpsv3")
def hpsv3(models: RewardModels) -> Scorer:
    """HPSv3's μ, unbounded, good pictures about 10; part `sigma` is how unsure it is.  About 16 GB in bfloat16.

    Its weights: a folder with `data_collator_qwen.py`; what else it lacks comes from the hub.
    """
    given = models.weights.get("hpsv3")
    asked = instruction(given, PUBLISHED, TEXTS, ("INSTRUCTION", "prompt_with_special_token"), SOURCE)
    backbone, head = split(read_weights(kept(given, PUBLISHED, "HPSv3.safetensors")), "HPSv3")
    reader = Reader(models, base_of(given, BASE), backbone, ("<|Reward|>",))
    layers = [(head[f"{i}.weight"].float(), head[f"{i}.bias"].float()) for i in LAYERS]

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        x = reader.states(images, [asked.format(text_prompt=record["prompt"]) for record in records], resized)[:, 0]
        for weight, bias in layers[:-1]:
            x = functional.linear(x, weight, bias).relu()
        mu, log_sigma = functional.linear(x, *layers[-1]).double().unbind(1)
        return Scored(mu.numpy(), {"sigma": log_sigma.exp().numpy()})

    return score


def resized(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) → (B, 1, 3, h, w) in [0, 255], of about 200 704 pixels, by PIL's bicubic filter."""
    tall, wide = size(images.shape[1], images.shape[2], PIXELS, PIXELS)
    scaled = [Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in scaled])).permute(0, 3, 1, 2)[:, None]
