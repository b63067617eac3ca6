"""Rewards read off a Qwen2-VL (arXiv:2409.12191) at tokens of their own: what HPSv3 and VideoReward have in common.

    patches → vision tower → in the place of their tokens → language model → states at the reward's tokens

Their authors hand embeddings to the language model past transformers' own forward, so a token's position is its number
in all three axes of M-RoPE, pictures included.  They trained that way; positions on the picture's grid, which
transformers would give, score otherwise.
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from .base import RewardModels
from .clip import normalised

PATCH, PAIR = 14, 2
"""Pixels of a patch's side; two frames make a patch, and two by two patches a token."""
TOKEN = PATCH * PAIR
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{seen}<|vision_end|>{asked}<|im_end|>\n<|im_start|>assistant\n"
)
"""As Qwen2-VL's own template puts one picture and one text."""


class Reader:
    """A Qwen2-VL without its head, its tokenizer, and the K tokens at which it is read."""

    def __init__(
        self, models: RewardModels, base: tuple[str, str | None], stored: Mapping[str, Tensor], tokens: Sequence[str]
    ) -> None:
        """base: where its configuration and tokenizer are; ValueError where the weights are not of their shape."""
        from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel

        path, revision = base[0], base[1] or "main"
        self.tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, padding_side="right")
        self.tokenizer.add_tokens(list(tokens), special_tokens=True)
        self.tokens: list[int] = self.tokenizer.convert_tokens_to_ids(list(tokens))
        # Any: transformers' types say of a configuration that it may be None or a dict.
        config: Any = Qwen2VLConfig.from_pretrained(path, revision=revision)
        config.text_config.vocab_size = len(self.tokenizer)
        with torch.device("meta"):
            expected = Qwen2VLModel(config).state_dict()
        for name in sorted(expected.keys() | stored.keys()):
            here, there = (tuple(each[name].shape) if name in each else "none" for each in (stored, expected))
            if here != there:
                raise ValueError(f"its weights do not fit {path}: {name} is {here}, and should be {there}")
        model: Any = Qwen2VLModel.from_pretrained(
            None, config=config, state_dict=dict(stored), dtype=getattr(torch, models.dtype)
        )
        self.model, self.batch = model.to(models.on).eval().requires_grad_(False), models.batch

    def states(self, shown: np.ndarray, asked: Sequence[str], prepare: Callable[[np.ndarray], Tensor]) -> Tensor:
        """B pictures or clips, and B texts that have its tokens → last states (B, K, D), fp32, on the CPU."""
        rows = [slice(i, i + self.batch) for i in range(0, len(shown), self.batch)]
        return torch.cat([self.states_of(prepare(shown[each]), asked[each]) for each in rows])

    @torch.no_grad()
    def states_of(self, frames: Tensor, asked: Sequence[str]) -> Tensor:
        """(B, F, 3, H, W) in [0, 255] → (B, K, D), in one pass."""
        pixels, grid = patches(frames)
        # A clip's tokens have another name, but what is seen takes the place of either.
        seen = "<|image_pad|>" * (math.prod(grid) // PAIR**2)
        texts = [CHAT.format(seen=seen, asked=text) for text in asked]
        told = self.tokenizer(texts, padding=True, return_tensors="pt")
        B, L = told.input_ids.shape
        at = torch.isin(told.input_ids, torch.tensor(self.tokens))
        if told.input_ids[at].tolist() != self.tokens * B:
            names = self.tokenizer.convert_ids_to_tokens(self.tokens)
            raise ValueError(f"instruction and prompt must have {', '.join(names)} once each, in this order")
        # What fills a shorter text stands behind it, where a causal model's other tokens do not see it.
        found = self.model(
            input_ids=told.input_ids.to(self.model.device),
            position_ids=torch.arange(L, device=self.model.device).expand(3, B, L),
            pixel_values=pixels.to(self.model.device, self.model.dtype),
            image_grid_thw=torch.tensor([grid] * B, device=self.model.device),
            use_cache=False,
        )
        return found.last_hidden_state[at.to(self.model.device)].view(B, len(self.tokens), -1).float().cpu()


def patches(frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """(B, F, 3, H, W) in [0, 255] → (B·T·h·w, D) as Qwen2-VL reads them, and T, h, w; a picture is shown twice."""
    if frames.shape[1] == 1:
        frames = frames.expand(-1, PAIR, -1, -1, -1)
    B, F, C, H, W = frames.shape
    T, h, w = F // PAIR, H // PATCH, W // PATCH
    x = normalised(frames / 255).reshape(B, T, PAIR, C, h // PAIR, PAIR, PATCH, w // PAIR, PAIR, PATCH)
    x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)  # patches of one token are neighbours
    return x.reshape(B * T * h * w, -1), (T, h, w)


def size(tall: int, wide: int, least: int, most: int) -> tuple[int, int]:
    """The multiples of 28 that keep a picture's shape best with so many pixels, as Qwen's own code has them."""
    found = max(TOKEN, round(tall / TOKEN) * TOKEN), max(TOKEN, round(wide / TOKEN) * TOKEN)
    if math.prod(found) > most:
        scale = math.sqrt(tall * wide / most)
        return math.floor(tall / scale / TOKEN) * TOKEN, math.floor(wide / scale / TOKEN) * TOKEN
    if math.prod(found) < least:
        scale = math.sqrt(least / (tall * wide))
        return math.ceil(tall * scale / TOKEN) * TOKEN, math.ceil(wide * scale / TOKEN) * TOKEN
    return found


PARTS = {"model.visual.": "visual.", "visual.": "visual.", "model.language_model.": "language_model."}
PARTS |= {"model.": "language_model."}
"""Of a checkpoint, as newer and older versions of transformers call them → of a Qwen2VLModel; the first that fits."""


def split(stored: Mapping[str, Tensor], reward: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the Qwen2-VL, but for the head of its words, and the reward's own; ValueError without either."""
    backbone: dict[str, Tensor] = {}
    for name, value in stored.items():
        part = next((part for part in PARTS if name.startswith(part)), None)
        if part is not None:
            backbone[PARTS[part] + name.removeprefix(part)] = value
    head = {name.removeprefix("rm_head."): value for name, value in stored.items() if name.startswith("rm_head.")}
    if not backbone or not head:
        raise ValueError(f"it is no checkpoint of {reward}: it lacks a Qwen2-VL or rm_head")
    return backbone, head


def kept(given: str | None, published: tuple[str, str], name: str) -> Path:
    """A file of the folder that is given, and of the published repository where that lacks it; or of another one."""
    if given is not None and Path(given, name).is_file():
        return Path(given, name)
    path, revision = published if given is None or Path(given).is_dir() else (given, None)
    return Path(hf_hub_download(path, name, revision=revision))


def base_of(given: str | None, published: tuple[str, str]) -> tuple[str, str | None]:
    """Where configuration and tokenizer are: a folder of weights may have its own."""
    return (given, None) if given is not None and Path(given, "config.json").is_file() else published


def instruction(given: str | None, published: tuple[str, str], file: str, names: Sequence[str], source: str) -> str:
    """What a file of the authors' repository assigns to those names, one after another.  It is read and not run."""
    try:
        found = kept(given, published, Path(file).name)
    except EntryNotFoundError as error:
        raise ValueError(
            f"its instruction is a text of its authors, which is not part of afterflow: put {file} of {source} into a "
            "folder, and name that; what it lacks of the weights comes from the hub"
        ) from error
    texts = literals(found)
    text = "".join(texts.get(name, "") for name in names)
    if not texts.keys() >= set(names) or "{text_prompt}" not in text:
        raise ValueError(f"{found} does not assign the instruction to {' and '.join(names)}; take {file} of {source}")
    return text


def literals(file: Path) -> dict[str, str]:
    """The names to which a file of Python assigns a text as it stands."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except SyntaxError as error:
        raise ValueError(f"{file} is no file of Python: {error.msg}") from error
    found: dict[str, str] = {}
    for line in body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                found[name] = text
    return found
