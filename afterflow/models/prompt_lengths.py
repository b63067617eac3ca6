"""Prompts that are longer than what a text encoder reads: how many, by which encoder, and what it reads of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..system.text_files import read_json

EXAMPLE = 160
"""Largest number of characters of an example."""
MOST_HEAD = 32
"""Largest number of tokens that a chat has before its prompt."""


@dataclass(frozen=True)
class TextLimit:
    """What one text encoder of a pipeline reads of a prompt."""

    encoder: str
    """Name of the encoder in the pipeline."""
    tokenizer: Path
    """Folder of its tokenizer."""
    tokens: int
    """Number of tokens that it reads, those that mark start and end among them."""
    in_chat: bool = False
    """Whether a prompt is a message in a chat, whose beginning counts among the tokens."""


@dataclass(frozen=True)
class CutPrompts:
    """The prompts of which an encoder does not read all."""

    encoder: str
    """Name of the encoder."""
    tokens: int
    """Number of tokens that it reads."""
    prompts: int
    """Number of prompts that are longer."""
    total: int
    """Number of all prompts."""
    example: str
    """What it reads of the first, with … for the rest."""

    def sentence(self) -> str:
        """Say how many prompts are cut, by which encoder, and where one of them is."""
        return (
            f"{self.prompts} of {self.total} prompts are longer than the {self.tokens} tokens that {self.encoder} "
            f"reads; it reads {self.example!r} of one"
        )


def clip_tokens(folder: Path) -> int:
    """Return the number of tokens that the first encoder of a pipeline, a CLIP, reads."""
    return read_json(folder / "text_encoder" / "config.json")["max_position_embeddings"]


@lru_cache(maxsize=8)
def cut_prompts(limits: tuple[TextLimit, ...], texts: tuple[str, ...]) -> tuple[CutPrompts, ...]:
    """Return for each encoder that cuts one of the texts what it cuts."""
    return tuple(cut for limit in limits if (cut := cut_by(limit, texts)) is not None)


def cut_by(limit: TextLimit, texts: Sequence[str]) -> CutPrompts | None:
    """Return what one encoder cuts of the texts; None where it reads all of each."""
    candidates = [text for text in texts if may_be_longer(text, limit.tokens - (MOST_HEAD if limit.in_chat else 0))]
    if not candidates:
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(limit.tokenizer)
    tokenizer.model_max_length = int(1e9)  # else it would warn of each text
    head = chat_head(tokenizer) if limit.in_chat else ""
    longer = [text for text in candidates if len(tokenizer(head + text)["input_ids"]) > limit.tokens]
    if not longer:
        return None
    options = {"truncation": True, "max_length": limit.tokens, "return_offsets_mapping": True}
    read = tokenizer(head + longer[0], **options)["offset_mapping"]
    example = (head + longer[0])[len(head) : max(end for _, end in read)]
    if len(example) > EXAMPLE:
        example = f"{example[: EXAMPLE // 2]} … {example[-EXAMPLE // 2 :]}"
    tokens = limit.tokens - (len(tokenizer(head)["input_ids"]) if head else 0)
    return CutPrompts(limit.encoder, tokens, len(longer), len(texts), f"{example}…")


def chat_head(tokenizer: Any) -> str:
    """Return what a tokenizer's chat has before the text of a user's only message."""
    mark = "the prompt"
    return tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False).partition(mark)[0]


def may_be_longer(text: str, tokens: int) -> bool:
    """Whether a text can have more than so many tokens: of ASCII, a token has at least a character."""
    return not text.isascii() or len(text) + 2 > tokens
