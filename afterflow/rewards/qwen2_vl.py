"""Rewards read off a Qwen2-VL (arXiv:2409.12191) at tokens of their own: HPSv3, VideoReward and EditReward.

    patches → vision tower → in the place of their tokens → language model → states at the reward's tokens

Their authors hand embeddings to the language model past transformers' own forward.  A token's position is therefore its
number in all three axes of M-RoPE, pictures included.  They trained that way; positions on the picture's grid, which
transformers would give, score otherwise.
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from ..system.errors import InputError
from .base import RewardModels
from .clip import normalize_pixels

PATCH, PAIR = 14, 2
"""Pixels of a patch's side; two frames make a patch, and two by two patches a token."""
TOKEN = PATCH * PAIR
CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{seen}{text}<|im_end|>\n<|im_start|>assistant\n"
)
"""Qwen2-VL's own template for pictures and a text after them."""
PICTURE = "<|vision_start|>{tokens}<|vision_end|>"
"""A picture in it."""


class Qwen2VLReader:
    """A Qwen2-VL, or a Qwen2.5-VL, without its head; its tokenizer, and the K tokens at which it is read."""

    def __init__(
        self,
        models: RewardModels,
        base: tuple[str, str | None],
        stored: Mapping[str, Tensor],
        tokens: Sequence[str],
        kind: Literal["2", "2.5"] = "2",
    ) -> None:
        """Load the model; raise InputError where the weights are not of its shape.

        Args:
            models: says where it runs.
            base: path and revision of its configuration and tokenizer.
            stored: its weights.
            tokens: the K tokens at which it is read.
            kind: version of the model.
        """
        import transformers

        prefix = {"2": "Qwen2VL", "2.5": "Qwen2_5_VL"}[kind]
        config_class, model_class = (getattr(transformers, f"{prefix}{part}") for part in ("Config", "Model"))
        path, revision = base[0], base[1] or "main"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path, revision=revision, padding_side="right")
        self.tokenizer.add_tokens(list(tokens), special_tokens=True)
        self.tokens: list[int] = self.tokenizer.convert_tokens_to_ids(list(tokens))
        # Any: transformers' types say of a configuration that it may be None or a dict.
        config: Any = config_class.from_pretrained(path, revision=revision)
        config.text_config.vocab_size = len(self.tokenizer)
        with torch.device("meta"):
            expected = model_class(config).state_dict()
        for name in sorted(expected.keys() | stored.keys()):
            shape, wanted = (tuple(of[name].shape) if name in of else "none" for of in (stored, expected))
            if shape != wanted:
                raise InputError(f"its weights do not fit {path}: {name} is {shape}, and should be {wanted}")
        model: Any = model_class.from_pretrained(
            None, config=config, state_dict=dict(stored), dtype=getattr(torch, models.dtype)
        )
        self.model, self.batch = model.to(models.torch_device).eval().requires_grad_(False), models.batch

    def states(self, shown: np.ndarray, texts: Sequence[str], prepare: Callable[[np.ndarray], Tensor]) -> Tensor:
        """Return the last states at the K tokens of B texts, with B pictures or clips: (B, K, D), fp32, on the CPU."""
        return self.states_of_several([shown], texts, prepare)

    def states_of_several(
        self, shown: Sequence[np.ndarray], texts: Sequence[str], prepare: Callable[[np.ndarray], Tensor]
    ) -> Tensor:
        """Return the last states at the K tokens of B texts, each after N pictures: (B, K, D), fp32, on the CPU.

        Args:
            shown: N arrays of B pictures or clips, in the order in which they are seen.
            texts: B texts.
            prepare: makes frames (B, F, 3, H, W) in [0, 255] of pictures or clips.
        """
        parts = [slice(i, i + self.batch) for i in range(0, len(texts), self.batch)]
        return torch.cat([self.forward([prepare(one[part]) for one in shown], texts[part]) for part in parts])

    @torch.no_grad()
    def forward(self, frames: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """Return the states of N times frames (B, F, 3, H, W) in [0, 255] and B texts, (B, K, D), in one pass.

        Raises ValueError where a text does not have the K tokens once, in their order.
        """
        patches, grids = zip(*map(patchify, frames))
        # Of one row after another, as its pictures come in its text.
        pixels = torch.cat([rows.unflatten(0, (len(texts), -1)) for rows in patches], 1).flatten(0, 1)
        # A clip's tokens have another name, but what is seen takes the place of either.
        tokens_of = ["<|image_pad|>" * (math.prod(grid) // PAIR**2) for grid in grids]
        seen = "".join(PICTURE.format(tokens=tokens) for tokens in tokens_of)
        prompts = [CHAT_TEMPLATE.format(seen=seen, text=text) for text in texts]
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt")
        B, L = tokens.input_ids.shape
        at = torch.isin(tokens.input_ids, torch.tensor(self.tokens))
        if tokens.input_ids[at].tolist() != self.tokens * B:
            names = self.tokenizer.convert_ids_to_tokens(self.tokens)
            raise ValueError(f"instruction and prompt must have {', '.join(names)} once each, in this order")
        # What fills a shorter text stands behind it, where a causal model's other tokens do not see it.
        output = self.model(
            input_ids=tokens.input_ids.to(self.model.device),
            position_ids=torch.arange(L, device=self.model.device).expand(3, B, L),
            pixel_values=pixels.to(self.model.device, self.model.dtype),
            image_grid_thw=torch.tensor(grids * B, device=self.model.device),
            use_cache=False,
        )
        return output.last_hidden_state[at.to(self.model.device)].view(B, len(self.tokens), -1).float().cpu()


def patchify(frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Cut frames (B, F, 3, H, W) in [0, 255] → (B·T·h·w, D), as Qwen2-VL reads them, and (T, h, w).

    A picture is shown twice, as a clip of two frames.
    """
    if frames.shape[1] == 1:
        frames = frames.expand(-1, PAIR, -1, -1, -1)
    B, F, C, H, W = frames.shape
    T, h, w = F // PAIR, H // PATCH, W // PATCH
    x = normalize_pixels(frames / 255).reshape(B, T, PAIR, C, h // PAIR, PAIR, PATCH, w // PAIR, PAIR, PATCH)
    x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)  # patches of one token are neighbours
    return x.reshape(B * T * h * w, -1), (T, h, w)


def fit_size(tall: int, wide: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the multiples of 28 that keep a picture's shape best between so many pixels, as in Qwen's own code."""
    size = max(TOKEN, round(tall / TOKEN) * TOKEN), max(TOKEN, round(wide / TOKEN) * TOKEN)
    if math.prod(size) > max_pixels:
        scale = math.sqrt(tall * wide / max_pixels)
        return math.floor(tall / scale / TOKEN) * TOKEN, math.floor(wide / scale / TOKEN) * TOKEN
    if math.prod(size) < min_pixels:
        scale = math.sqrt(min_pixels / (tall * wide))
        return math.ceil(tall * scale / TOKEN) * TOKEN, math.ceil(wide * scale / TOKEN) * TOKEN
    return size


_PREFIXES = {"model.visual.": "visual.", "visual.": "visual.", "model.language_model.": "language_model."}
_PREFIXES |= {"model.": "language_model."}
"""Prefixes of newer and older checkpoints of transformers → of a Qwen2VLModel; the first that fits."""


def split_checkpoint(stored: Mapping[str, Tensor], reward: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the Qwen2-VL, without the head of its words, and those of the reward's head or heads.

    Raises InputError where either is missing.
    """
    backbone: dict[str, Tensor] = {}
    for name, value in stored.items():
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is not None:
            backbone[_PREFIXES[prefix] + name.removeprefix(prefix)] = value
    heads = ("rm_head.", "rm_heads.")
    head = {name.partition(".")[2]: value for name, value in stored.items() if name.startswith(heads)}
    if not backbone or not head:
        raise InputError(f"it is no checkpoint of {reward}: it lacks a Qwen2-VL or rm_head")
    return backbone, head


@dataclass(frozen=True)
class WeightSource:
    """Where the files of a reward are."""

    given: str | None
    """The folder or the repository that a user names for its weights."""
    published: tuple[str, str]
    """The published repository and its revision."""

    def file(self, name: str) -> Path:
        """Return a file of the folder that is given; what it lacks comes from the published repository."""
        given = self.given
        if given is not None and Path(given, name).is_file():
            return Path(given, name)
        path, revision = self.published if given is None or Path(given).is_dir() else (given, None)
        return Path(hf_hub_download(path, name, revision=revision))

    def base(self, published: tuple[str, str]) -> tuple[str, str | None]:
        """Return where configuration and tokenizer are, because a folder of weights may have its own."""
        given = self.given
        return (given, None) if given is not None and Path(given, "config.json").is_file() else published

    def instruction(self, file: str, names: Sequence[str], repository: str) -> str:
        """Return what a file of the authors' repository assigns to names, with {text_prompt} in it.

        Raises InputError where the file is not there, or does not assign an instruction with {text_prompt}.
        """
        text = self.text(file, names, repository)
        if "{text_prompt}" not in text:
            wanted = " and ".join(names)
            raise InputError(
                f"{Path(file).name} does not assign the instruction to {wanted}, which has {{text_prompt}} in it; take "
                f"{file} of {repository}"
            )
        return text

    def text(self, file: str, names: Sequence[str], repository: str) -> str:
        """Return what a file of the authors' repository assigns to names, one after another.  It is read and not run.

        Raises InputError where the file is not there, or assigns no text to one of them.
        """
        try:
            path = self.file(Path(file).name)
        except EntryNotFoundError as error:
            raise InputError(
                f"its instruction is a text of its authors, which is not part of afterflow: put {file} of {repository} "
                "into a folder, and name that; what it lacks of the weights comes from the hub"
            ) from error
        texts = assigned_texts(path)
        if not texts.keys() >= set(names):
            wanted = " and ".join(names)
            raise InputError(f"{path} does not assign the instruction to {wanted}; take {file} of {repository}")
        return "".join(texts[name] for name in names)


def assigned_texts(file: Path) -> dict[str, str]:
    """Return the names to which a file of Python assigns a text as it stands; raise InputError where it is none."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except SyntaxError as error:
        raise InputError(f"{file} is no file of Python: {error.msg}") from error
    texts: dict[str, str] = {}
    for line in body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                texts[name] = text
    return texts
