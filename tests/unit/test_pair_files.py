"""Which of two files is the LoRA of high noise, by names as trainers and runs write them."""

from pathlib import Path

import pytest

from afterflow.models.lora.pair_files import noise_files, sorted_pair
from afterflow.recipes import RECIPES


def paths(*stems):
    return [Path(f"{stem}.safetensors") for stem in stems]


@pytest.mark.parametrize("name", ["wan_flow_grpo", "highres_flow", "slow_flow", "lower", "Flow", *RECIPES])
def test_what_is_exported_under_any_name_is_read_back(name):
    high, low = noise_files(Path(f"{name}.safetensors"))
    assert sorted_pair([high, low]) == sorted_pair([low, high]) == (high, low)


@pytest.mark.parametrize(
    "high, low",
    [
        *[("wan22_high_noise", "wan22_low_noise"), ("HIGH", "LOW"), ("WanHighNoise", "WanLowNoise")],
        *[("my-highnoise-2", "my-lownoise-2"), ("wanhigh", "wanlow"), ("flow.high.v1", "flow.low.v1")],
        *[("FlowHigh", "FlowLow"), ("a_high_14B", "a_low_14B")],
    ],
)
def test_names_of_other_trainers_are_told_apart(high, low):
    assert sorted_pair(paths(low, high)) == tuple(paths(high, low))


@pytest.mark.parametrize("stems", [("a", "b"), ("high", "higher"), ("flow", "glow"), ("high_low", "low"), ("high",)])
def test_files_that_do_not_say_it_are_no_pair(stems):
    assert sorted_pair(paths(*stems)) is None
