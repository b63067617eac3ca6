"""Names that a library would leave out without a word: each meets something, or the nearest are named."""

from types import SimpleNamespace

import pytest
import torch

from afterflow.models.adapters import LoRA, attach, check_targets
from afterflow.models.sd3 import SD3Model
from afterflow.rewards.base import RewardModels
from afterflow.rewards.registry import check_rewards
from afterflow.system.errors import ConfigError
from tinies import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_that_a_family_adapts_by_itself_are_there(tinies, family):
    model = tinies[family].load("meta")
    check_targets(model.module, model.lora_targets)


@pytest.mark.parametrize("known", [(), ("to_q",), ("attn.to_v", "to_out.0")])
@pytest.mark.parametrize(
    "target, sentence",
    [
        ("to_kk", "no layer of this model (tune.targets) is called 'to_kk'; did you mean to_k?"),
        ("to_q ", "is called 'to_q '; did you mean to_q?"),
        ("", "is called ''"),
        ("o_q", "is called 'o_q'; did you mean to_q"),
        ("all-linear", "is called 'all-linear'"),
        (".*to_q", "is called '.*to_q'"),
        ("attn", "'attn' names transformer_blocks.0.attn, of the kind Attention"),
        ("to_out", "write a longer name, such as to_out.0"),
        ("pos_embed.proj", "of the kind Conv2d; a LoRA adapts Linear layers"),
    ],
)
def test_a_target_that_peft_would_leave_out_or_stumble_over_is_refused(tinies, known, target, sentence):
    model = tinies["sd3"].load("meta")
    with pytest.raises(ConfigError) as refused:
        attach(model, LoRA(rank=2, alpha=2, targets=(*known, target)))
    assert sentence in str(refused.value)
    assert not hasattr(model.module, "peft_config")


def test_every_target_that_is_taken_is_trained(tinies):
    model = tinies["sd3"].load("meta")
    targets = ("to_q", "attn.to_v", "ff.net.2")
    trained = attach(model, LoRA(rank=2, alpha=2, targets=targets))
    for target in targets:
        assert any(f".{target}.lora_A" in name for name in trained), target


@pytest.mark.parametrize(
    "models, sentence",
    [
        (RewardModels(weights={"hpsv2": "x"}), "reward of this run (reward_models.weights) is called 'hpsv2'"),
        (RewardModels(options={"geneval_threshold": 0.5}), "no reward of this run reads geneval_threshold"),
        (RewardModels(options={"video_align_fps": 8.0}), "no reward of this run reads video_align_fps"),
    ],
)
def test_weights_and_options_of_rewards_that_a_run_has_not_are_refused(models, sentence):
    with pytest.raises(ConfigError) as refused:
        check_rewards(["jpeg_compressibility"], models)
    assert sentence in str(refused.value)


def test_sd35_medium_adapts_the_191_layers_that_flow_grpo_adapts():
    """The layers of attn2, which 13 of its 24 blocks have, are adapted where they are asked for."""
    from diffusers import SD3Transformer2DModel

    sizes = dict(num_layers=24, attention_head_dim=4, num_attention_heads=2, caption_projection_dim=8)
    counts = {}
    for targets in ((), tuple(target.removeprefix("attn.") for target in SD3Model.lora_targets)):
        with torch.device("meta"):
            network = SD3Transformer2DModel(**sizes, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm")
        parameters = attach(SimpleNamespace(module=network, lora_targets=SD3Model.lora_targets), LoRA(targets=targets))
        counts[targets] = len(parameters) // 2
    assert list(counts.values()) == [191, 243]
