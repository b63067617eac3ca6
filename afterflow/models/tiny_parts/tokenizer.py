"""A tokenizer of the shapes world: one token for each of its words, one for each character of a sign.

The characters of a sign are upper case and words are lower case, so nothing is folded: `A` on a sign and the
article `a` are different tokens. It is a WordLevel model in transformers' plain wrapper. CLIPTokenizer of
transformers 5 cannot hold it: it takes only the vocabulary from a tokenizer.json and rebuilds its own
lower-casing byte-pair model around it, so that words become <unk> and signs lose their case.
"""

import string
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ...envs.shapes.world import COLORS, RELATIONS, SHAPES

MAX_LENGTH = 16
"""Tokens of a prompt with start and end: exactly those of `a sign that says "`, eight characters and `"`."""

# CLIP pools at the first <eos>, unless its id is 2: then, for the sake of old checkpoints, at the highest id.
PAD, BOS, UNK, EOS = SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")
PAD_ID, BOS_ID, UNK_ID, EOS_ID = range(len(SPECIAL))

_FRAME = ("a", "an", "the", "picture", "sign", "of", "that", "says", "and", "with", '"', ",", ".")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_PATTERN = r"[A-Z]?[a-z]+|[A-Z0-9]|[^\sA-Za-z0-9]"


def vocabulary(more: Sequence[str] = ()) -> dict[str, int]:
    """Return every token with its id: special tokens first, the characters of signs and then further words last."""
    plurals = [f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES]
    relations = " ".join(RELATIONS).split()
    words = [*_FRAME, *_NUMBERS, *COLORS, *SHAPES, *plurals, *relations]
    characters = [*string.ascii_uppercase, *string.digits]
    tokens = dict.fromkeys([*SPECIAL, *words, *characters, *more])
    return {token: index for index, token in enumerate(tokens)}


def make_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer that frames prompts by <bos> and <eos>, at most 16 ids with truncation.

    more: words that it knows besides those of the still world.
    """
    model = Tokenizer(WordLevel(vocabulary(more), unk_token=UNK))
    model.pre_tokenizer = Split(Regex(_PATTERN), behavior="removed", invert=True)
    model.post_processor = TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=[(BOS, BOS_ID), (EOS, EOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
    )
