"""Random generators named by what they are for, so that a run resumes anywhere without stored state."""

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on the key alone: (seed, iteration, "noise", prompt), say."""
    return torch.Generator().manual_seed(number(*key))


def number(*key: int | str) -> int:
    """A seed for other libraries, 0 <= n < 2^63, by the same rule."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1
