"""Text encoders of pipelines: how many prompts they read in a pass, and what of them is not needed for it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MOST_PROMPTS = 64
"""Largest number of prompts of a pass."""
MOST_NUMBERS = 2**30
"""Numbers that the prompts of a pass may need in an encoder: 2 GiB in half precision."""
T5 = ("t5", "umt5")
"""Kinds of encoders of which pipelines read the last layer, so that states of the others are not kept."""


def encoder_name(tokenizer: str) -> str:
    """Return the name of the encoder in a pipeline that reads what a tokenizer makes."""
    return tokenizer.replace("tokenizer", "text_encoder")


def prompts_per_pass(pipe: Any, text_tokens: Mapping[str, int]) -> int:
    """Return the number of prompts that every encoder of a pipeline can read at once.

    text_tokens: number of tokens that each encoder reads, by the name of its tokenizer.
    """
    encoders = ((getattr(pipe, encoder_name(name), None), tokens) for name, tokens in text_tokens.items())
    largest = max(prompt_numbers(encoder.config, tokens) for encoder, tokens in encoders if encoder is not None)
    return max(1, min(MOST_PROMPTS, MOST_NUMBERS // largest))


def prompt_numbers(config: "PreTrainedConfig", tokens: int) -> int:
    """Return how many numbers an encoder holds at most for one prompt of so many tokens, without gradients."""
    text: Any = config.get_text_config()
    states = 1 if text.model_type in T5 else text.num_hidden_layers + 1
    feed_forward = text.d_ff if text.model_type in T5 else text.intermediate_size
    # Beside what is kept: three states and three hidden layers of a block, and the mask or bias of its attention.
    of_token = (states + 3) * text.hidden_size + 3 * feed_forward
    return tokens * of_token + text.num_attention_heads * tokens**2


def remove_word_heads(pipe: Any, encoders: tuple[str, ...]) -> None:
    """Take the last layer from language models, which guesses the next word of a vocabulary of 150,000.

    Pipelines read the states before it, and the guesses for 64 prompts of 512 tokens take 10 GB.
    """
    for name in encoders:
        encoder: Any = getattr(pipe, name, None)
        if isinstance(getattr(encoder, "lm_head", None), nn.Module):
            encoder.lm_head = nn.Identity()
