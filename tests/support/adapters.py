"""LoRAs that change what a model draws."""

import copy
from functools import cache
from pathlib import Path

import torch

from afterflow.models.adapters import LoRA, attach
from afterflow.models.sd3 import SD3, SD3Model


def save_lora(pipeline, folder, seed, rank=4):
    """A LoRA of random factors, alpha 8, for the pipeline in a folder; where it was saved."""
    model, draws = load(pipeline), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attach(model, LoRA(rank=rank, alpha=8)).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    model.save_lora(folder)
    return str(folder)


def load(pipeline) -> SD3Model:
    """A model of its own: a copy of one that was loaded once, for a copy takes a fraction of the time."""
    return copy.deepcopy(loaded_once(str(pipeline), Path(pipeline).resolve()))


@cache
def loaded_once(pipeline, place) -> SD3Model:
    return SD3(pipeline, max_sequence_length=0).load()
