"""VideoReward of VideoAlign (arXiv:2501.13918): three ratings of a clip, read from a Qwen2-VL-2B at three tokens.

    VQ visual quality, MQ motion quality, TA text alignment; each (x − mean) / std; overall VQ + MQ + TA

Layers, tokens, sizes and texts are those of github.com/KwaiVGI/VideoAlign (MIT), of which a user's copy of one file is
read: its instruction is long, and its authors'.  Frames are judged as they were drawn, without the video codec that
stands before theirs.  Never tried on the released weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..system.errors import ConfigError, InputError
from ..system.text_files import read_json
from .base import RewardModels, Scored, Scorer, network_reward
from .canaries import MOVING
from .clip import read_weights
from .qwen2_vl import TOKEN, Qwen2VLReader, WeightSource, fit_size, split_checkpoint

VIDEO_REWARD = ("KlingTeam/VideoReward", "4f26600130683e6f1de9f5d463887f28e8ef995c")
"""KwaiVGI/VideoReward before it was renamed."""
VIDEO_REWARD_BASE = ("Qwen/Qwen2-VL-2B-Instruct", "895c3a49bc3fa70a340399125c650a463535e71c")
VIDEO_REWARD_TEXTS = ("DETAILED_PROMPT_WITH_SPECIAL_TOKEN",)
DIMENSIONS = ("VQ", "MQ", "TA")
MIN_FRAME_PIXELS = 128 * TOKEN**2
"""Smallest size of a frame, in pixels."""
MIN_FRAMES, MAX_FRAMES = 4, 768
"""Fewest and most frames that are seen of a clip, where it has them."""
DATA_DEFAULTS = {"sample_type": "uniform", "num_frames": None}
"""The settings of its configuration that are supported; others are refused."""
CLIP_FPS = 16.0
"""Frames a second of Wan 2.1's clips."""


VIDEO_OPTIONS = ("video_align_fps", "video_align_vq", "video_align_mq", "video_align_ta")


@network_reward("video_align", clips=True, canary=MOVING, options=VIDEO_OPTIONS)
def video_align(models: RewardModels) -> Scorer:
    """Score VideoReward's overall rating, unbounded, about 0 for the clips of its authors; parts VQ, MQ and TA.

    Its weights: a folder with `prompt_template.py`; what else it lacks comes from the hub.  Options: video_align_fps of
    the clips, and video_align_vq, _mq and _ta, what each counts for overall, 1 as published.
    """
    source, options = WeightSource(models.weights.get("video_align"), VIDEO_REWARD), models.options
    instruction = source.instruction("prompt_template.py", VIDEO_REWARD_TEXTS, "github.com/KwaiVGI/VideoAlign")
    data, lora, normal = read_settings(source.file("model_config.json"))
    fps = options.get("video_align_fps", CLIP_FPS)
    if fps <= 0:
        raise ConfigError(f"video_align_fps = {fps}: it must be positive")
    importance = np.array([options.get(f"video_align_{name.lower()}", 1.0) for name in DIMENSIONS])
    mean, std = (np.array([normal[f"{name}_{which}"] for name in DIMENSIONS]) for which in ("mean", "std"))
    stored = fold_lora(read_weights(source.file("checkpoint-11352/model.pth")), lora)
    backbone, head = split_checkpoint(stored, "VideoReward")
    tokens = [f"<|{name}_reward|>" for name in DIMENSIONS]
    reader = Qwen2VLReader(models, source.base(VIDEO_REWARD_BASE), backbone, tokens)
    weight = head["weight"].float()

    def prepare(clips: np.ndarray) -> Tensor:
        return resize_clips(clips[:, frame_indices(clips.shape[1], fps, data["fps"])], data["max_frame_pixels"])

    def score(clips: np.ndarray, records: Sequence[dict]) -> Scored:
        texts = [instruction.format(text_prompt=record["prompt"]) for record in records]
        rated = functional.linear(reader.states(clips, texts, prepare), weight).double()
        # The head has one output for all three tokens, or one for each.
        rated = rated[..., 0] if len(weight) == 1 else rated.diagonal(dim1=1, dim2=2)
        parts = (rated.numpy() - mean) / std
        return Scored(parts @ importance, dict(zip(DIMENSIONS, parts.T)))

    return score


def read_settings(file: Path) -> tuple[dict, dict, dict]:
    """Return how clips are shown, what the LoRA is, and how ratings are normalised; InputError for other settings."""
    config = read_json(file)
    for part in (parts := ("data_config", "peft_lora_config", "inference_config")):
        if not isinstance(config.get(part), dict):
            raise InputError(f"{file} has no {part}")
    data = DATA_DEFAULTS | config["data_config"]
    for name, value in (DATA_DEFAULTS | {"prompt_template_type": "detailed_special"}).items():
        if data.get(name) != value:
            raise InputError(f"{file} says {name} = {data.get(name)!r}, and only {value!r} is known")
    return data, *(config[part] for part in parts[1:])


def frame_indices(frames: int, fps: float, seen_fps: float) -> list[int]:
    """Return which frames of a clip are seen, `seen_fps` a second of its `fps`: evenly, the first and the last too.

    Raises ValueError for a clip of one frame.
    """
    highest = min(MAX_FRAMES, frames) // 2 * 2
    if highest < 2:
        raise ValueError("a clip needs at least two frames")
    count = 2 * round(min(max(frames / fps * seen_fps, MIN_FRAMES), highest) / 2)
    return torch.linspace(0, frames - 1, count).round().int().tolist()


def resize_clips(clips: np.ndarray, max_pixels: int) -> Tensor:
    """Resize uint8 (B, F, H, W, 3) by torch's bicubic filter → (B, F, 3, h, w) in [0, 255], whole numbers."""
    x = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float()
    tall_wide = fit_size(x.shape[3], x.shape[4], MIN_FRAME_PIXELS, max_pixels)
    scaled = functional.interpolate(x.flatten(0, 1), tall_wide, mode="bicubic", antialias=True)
    return scaled.clamp(0, 255).round().unflatten(0, x.shape[:2])


def fold_lora(stored: Mapping[str, Tensor], lora: Mapping) -> dict[str, Tensor]:
    """Return the weights of a model in peft's wrapping, with its LoRA in them: W + α / r · B A."""
    scale = lora["lora_alpha"] / (lora["lora_r"] ** (0.5 if lora.get("use_rslora") else 1))
    folded: dict[str, Tensor] = {}
    for name, value in stored.items():
        if ".lora_" in name:
            continue
        layer = name.removesuffix(".base_layer.weight")
        if layer != name:
            down, up = (stored[f"{layer}.lora_{half}.default.weight"].float() for half in "AB")
            value = value.float() + scale * up @ down
        folded[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = value
    return folded
