"""Editing on real models: FLUX.2-klein base 4B and Qwen-Image-Edit 2511, each for one GPU.

Requests and their pictures are yours: `edits/prompts.jsonl` with `input` and `prompt` on each line.  A vision-language
model rates whether what was asked is done and all else is as it was, on a server of yours:

    afterflow train klein_edit_nft --reward-models.weights vlm_edit http://HOST:8000/v1#MODEL

The reward is zero where either rating is, so that a picture which is returned unchanged earns nothing.  Both ratings
are measured apart on held-out requests, where one that falls shows what is given up.  They are of the model that rates
in training; `--eval-rewards edit_reward` is another's judgement.

Settings are those of `klein_nft`, for Qwen-Image-Edit too, for which we know no published ones.  No recipe was run on
real weights.
"""

from dataclasses import replace

from ..algorithms.diffusion_nft import DiffusionNFT
from ..algorithms.flow_grpo import FlowGRPO
from ..data.prompts import PromptFile
from ..experiment.config import Run
from ..models.qwen_image_edit import QwenImageEdit
from .klein_z_image import FIRST_HALF, klein_flow_grpo, klein_nft

EDITS = PromptFile("edits/prompts.jsonl")
EDIT_WEIGHTS = {"vlm_edit": 1.0}
QWEN_IMAGE_EDIT = QwenImageEdit(dtype="bfloat16", size=512, picture_size=512)


def klein_edit_nft() -> Run:
    """DiffusionNFT on FLUX.2-klein base 4B: edits as a vision-language model rates them."""
    run = klein_nft()
    assert isinstance(run.algorithm, DiffusionNFT)
    return _editing(replace(run, algorithm=replace(run.algorithm, weights=EDIT_WEIGHTS)), "klein_edit_nft")


def klein_edit_flow_grpo() -> Run:
    """Flow-GRPO on FLUX.2-klein base 4B: edits as a vision-language model rates them."""
    run = klein_flow_grpo()
    assert isinstance(run.algorithm, FlowGRPO)
    return _editing(replace(run, algorithm=replace(run.algorithm, weights=EDIT_WEIGHTS)), "klein_edit_flow_grpo")


def qwen_image_edit_nft() -> Run:
    """DiffusionNFT on Qwen-Image-Edit 2511: edits as a vision-language model rates them."""
    algorithm = DiffusionNFT(EDIT_WEIGHTS, steps=10, schedule=None, times=FIRST_HALF)
    return _editing(replace(klein_nft(), algorithm=algorithm, model=QWEN_IMAGE_EDIT), "qwen_image_edit_nft")


def _editing(run: Run, name: str) -> Run:
    return run.with_options(
        data=EDITS,
        name=name,
        eval_rewards=("vlm_edit_done", "vlm_edit_preserved"),
        inference_steps=run.algorithm.steps,  # type: ignore[attr-defined]
    )
