"""VideoReward of VideoAlign (arXiv:2501.13918): three ratings of a clip, read from a Qwen2-VL-2B at three tokens.

    VQ visual quality, MQ motion quality, TA text alignment; each (x − mean) / std; overall VQ + MQ + TA

Layers, tokens, sizes and texts are those of github.com/KwaiVGI/VideoAlign (MIT), of which a user's copy of one file is
read: its instruction is long, and its authors'.  Frames are judged as they were drawn, without the video codec that
stands before theirs.  Never tried on the released weights.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .base import RewardModels, Scored, Scorer, network_reward
from .clip import read_weights
from .qwen2_vl import TOKEN, Reader, base_of, instruction, kept, size, split

PUBLISHED = ("KlingTeam/VideoReward", "4f26600130683e6f1de9f5d463887f28e8ef995c")
"""KwaiVGI/VideoReward before it was renamed."""
BASE = ("Qwen/Qwen2-VL-2B-Instruct", "895c3a49bc3fa70a340399125c650a463535e71c")
WEIGHTS = "checkpoint-11352/model.pth"
SOURCE = "github.com/KwaiVGI/VideoAlign"
DIMENSIONS = ("VQ", "MQ", "TA")
LEAST = 128 * TOKEN**2
"""Pixels of a frame."""
FRAMES = (4, 768)
"""The fewest and the most that are seen of a clip, where it has them."""
DEFAULTS = {"sample_type": "uniform", "num_frames": None}
"""Of its configuration; others are refused."""
RATE = 16.0
"""Frames a second of Wan 2.1's clips."""


@network_reward("video_align", clips=True)
def video_align(models: RewardModels) -> Scorer:
    """VideoReward's overall, unbounded, about 0 for the clips of its authors; parts VQ, MQ and TA.

    Its weights: a folder with `prompt_template.py`; what else it lacks comes from the hub.  Options: video_align_fps of
    the clips, and video_align_vq, _mq and _ta, what each counts for overall, 1 as published.
    """
    given, options = models.weights.get("video_align"), models.options
    asked = instruction(given, PUBLISHED, "prompt_template.py", ("DETAILED_PROMPT_WITH_SPECIAL_TOKEN",), SOURCE)
    data, lora, normal = settings(kept(given, PUBLISHED, "model_config.json"))
    rate = options.get("video_align_fps", RATE)
    if rate <= 0:
        raise ValueError(f"video_align_fps = {rate}: it must be positive")
    counts = np.array([options.get(f"video_align_{name.lower()}", 1.0) for name in DIMENSIONS])
    mean, std = (np.array([normal[f"{name}_{which}"] for name in DIMENSIONS]) for which in ("mean", "std"))
    stored = merged(read_weights(kept(given, PUBLISHED, WEIGHTS)), lora)
    backbone, head = split(stored, "VideoReward")
    reader = Reader(models, base_of(given, BASE), backbone, [f"<|{name}_reward|>" for name in DIMENSIONS])
    weight = head["weight"].float()

    def prepare(clips: np.ndarray) -> Tensor:
        return resized(clips[:, frames(clips.shape[1], rate, data["fps"])], data["max_frame_pixels"])

    def score(clips: np.ndarray, records: Sequence[dict]) -> Scored:
        texts = [asked.format(text_prompt=record["prompt"]) for record in records]
        rated = functional.linear(reader.states(clips, texts, prepare), weight).double()
        # The head has one output for all three tokens, or one for each.
        rated = rated[..., 0] if len(weight) == 1 else rated.diagonal(dim1=1, dim2=2)
        parts = (rated.numpy() - mean) / std
        return Scored(parts @ counts, dict(zip(DIMENSIONS, parts.T)))

    return score


def settings(file: Path) -> tuple[dict, dict, dict]:
    """How clips are shown, what the LoRA is, and how ratings are normalised; ValueError for others than are known."""
    told = json.loads(file.read_text(encoding="utf-8"))
    for part in (parts := ("data_config", "peft_lora_config", "inference_config")):
        if not isinstance(told.get(part), dict):
            raise ValueError(f"{file} has no {part}")
    data = DEFAULTS | told["data_config"]
    for name, value in (DEFAULTS | {"prompt_template_type": "detailed_special"}).items():
        if data.get(name) != value:
            raise ValueError(f"{file} says {name} = {data.get(name)!r}, and only {value!r} is known")
    return data, *(told[part] for part in parts[1:])


def frames(many: int, rate: float, seen: float) -> list[int]:
    """Which of so many frames are seen, where a second has `rate` of them and `seen` should be: evenly, first and last.

    ValueError for a clip of one.
    """
    least, most = FRAMES[0], min(FRAMES[1], many) // 2 * 2
    if most < 2:
        raise ValueError("a clip needs at least two frames")
    return torch.linspace(0, many - 1, 2 * round(min(max(many / rate * seen, least), most) / 2)).round().int().tolist()


def resized(clips: np.ndarray, most: int) -> Tensor:
    """uint8 (B, F, H, W, 3) → (B, F, 3, h, w) in [0, 255], whole numbers, by torch's bicubic filter."""
    x = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float()
    tall_wide = size(x.shape[3], x.shape[4], LEAST, most)
    scaled = functional.interpolate(x.flatten(0, 1), tall_wide, mode="bicubic", antialias=True)
    return scaled.clamp(0, 255).round().unflatten(0, x.shape[:2])


def merged(stored: Mapping[str, Tensor], lora: Mapping) -> dict[str, Tensor]:
    """The weights of a model in peft's wrapping, with its LoRA in them: W + α / r · B A."""
    scale = lora["lora_alpha"] / (lora["lora_r"] ** (0.5 if lora.get("use_rslora") else 1))
    found: dict[str, Tensor] = {}
    for name, value in stored.items():
        if ".lora_" in name:
            continue
        layer = name.removesuffix(".base_layer.weight")
        if layer != name:
            down, up = (stored[f"{layer}.lora_{half}.default.weight"].float() for half in "AB")
            value = value.float() + scale * up @ down
        found[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = value
    return found
