"""EditReward (arXiv:2509.26346): what people prefer among edits, by two heads on a Qwen2.5-VL-7B at <|Reward|>.

The model sees the picture before and after the edit, once with an instruction about the request and once with one
about quality.  Each head has one of them, and the score is their mean.  Layers, token, sizes and order are those of
github.com/TIGER-AI-Lab/EditReward, of which a user's copy of two files is read: the instructions are its authors'.
Its other model, on MiMo-VL, is not known here.  Never tried on the released weights.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..system.errors import ConfigError
from .base import RewardModels, Scored, Scorer, network_reward
from .canaries import EDITED
from .clip import read_weights
from .edited import check_edit, inputs_as_drawn
from .hpsv3 import read_head, resize_images
from .qwen2_vl import Qwen2VLReader, WeightSource, split_checkpoint

EDIT_REWARD_NAME = "edit_reward"
EDIT_REWARD = ("TIGER-Lab/EditReward-Qwen2.5-VL-7B", "main")
EDIT_REWARD_BASE = ("Qwen/Qwen2.5-VL-7B-Instruct", "cc594898137f460bfe9f0759e9844b3ce807cfb5")
INSTRUCTIONS = {"done": "INSTRUCTION_EDIT_FOLLOWING", "quality": "INSTRUCTION_EDIT_QUALITY"}
"""Part of the score → name of its instruction; their heads have this order."""
REPOSITORY = "github.com/TIGER-AI-Lab/EditReward"


@network_reward(EDIT_REWARD_NAME, needs=check_edit, canary=EDITED)
def edit_reward(models: RewardModels) -> Scorer:
    """Score EditReward's μ, unbounded; parts are those of both heads, and `sigma`.  About 17 GB in bfloat16.

    Its weights: a folder with model.safetensors, and `prompts.py` and `data_collator_qwen_edit.py` of its authors.
    """
    if EDIT_REWARD_NAME not in models.weights:
        raise ConfigError(
            f"name its weights: --reward-models.weights {EDIT_REWARD_NAME} FOLDER, with model.safetensors of "
            f"{EDIT_REWARD[0]}, and EditReward/dataset/prompts.py and data_collator_qwen_edit.py of {REPOSITORY}"
        )
    source = WeightSource(models.weights[EDIT_REWARD_NAME], EDIT_REWARD)
    instructions = {
        part: source.instruction("EditReward/dataset/prompts.py", (name,), REPOSITORY)
        for part, name in INSTRUCTIONS.items()
    }
    ending = source.text("EditReward/dataset/data_collator_qwen_edit.py", ("prompt_with_special_token",), REPOSITORY)
    backbone, heads = split_checkpoint(read_weights(source.file("model.safetensors")), "EditReward")
    reader = Qwen2VLReader(models, source.base(EDIT_REWARD_BASE), backbone, ("<|Reward|>",), "2.5")
    parts = {
        part: (instruction + ending, read_head(heads, f"head_{i}."))
        for i, (part, instruction) in enumerate(instructions.items())
    }

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        shown = [inputs_as_drawn(records, *images.shape[1:3]), images]
        rated = {}
        for part, (text, rate) in parts.items():
            texts = [text.format(text_prompt=record["prompt"]) for record in records]
            rated[part] = rate(reader.states_of_several(shown, texts, resize_images)[:, 0])
        mu, log_sigma = torch.stack(list(rated.values())).mean(0).unbind(1)
        means = {part: rating[:, 0].numpy() for part, rating in rated.items()}
        return Scored(mu.numpy(), means | {"sigma": log_sigma.exp().numpy()})

    return score
