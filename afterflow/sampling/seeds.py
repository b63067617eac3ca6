"""Random generators named by what they are for, so that a run resumes anywhere without stored state."""

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator that depends on the key alone, for example (seed, iteration, "noise", prompt)."""
    return torch.Generator().manual_seed(number(*key))


def number(*key: int | str) -> int:
    """Return a seed that depends on the key alone, 0 <= n < 2^63, for other libraries too."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1
