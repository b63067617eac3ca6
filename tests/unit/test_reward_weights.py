"""The weights and options that rewards read are the ones that they state, and no others are taken without effect."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from afterflow.rewards.base import REWARD_OPTIONS, Reward, RewardModels, network_reward
from afterflow.rewards.registry import REWARDS, check_read, check_rewards, find_reward, load_reward
from afterflow.system.errors import ConfigError

NETWORKS = [name for name in REWARDS if find_reward(name).load is not None]


def test_every_option_is_read_by_a_reward_that_states_it():
    assert {option for name in REWARDS for option in find_reward(name).options} == set(REWARD_OPTIONS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_asks_for_the_weights_that_it_states_alone(name, monkeypatch, tmp_path):
    asked = set()

    class Recorder(dict):
        def __contains__(self, key):
            asked.add(key)
            return True

        def __getitem__(self, key):
            asked.add(key)
            return str(tmp_path / "nothing" / key)

        def get(self, key, default=None):
            return self[key]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reward = find_reward(name)
    with pytest.raises(Exception):  # noqa: B017 - nothing is there, and each library says so by another error
        reward.load(RewardModels(weights=Recorder(nothing="x"), batch=7))
    asked -= {"nothing"}
    assert asked and asked <= set(reward.weights_read)


def named(*names):
    return {name: find_reward(name) for name in names}


@pytest.mark.parametrize(
    "rewards, weights, said",
    [
        (["geneval_hf_strict"], "geneval_hf_strict", "reads those of geneval_hf and clipscore, so name these"),
        (["geneval_official"], "geneval_official", "reads those of geneval and clipscore, so name these"),
        (["soft_tifa_gm"], "soft_tifa_gm", "reads those of soft_tifa, so name these"),
        (["vlm_edit_done"], "vlm_edit_done", "reads those of vlm_edit, so name these"),
        (["image_similarity"], "image_similarity", "reads those of clipscore, so name these"),
        (["clip_preservation"], "clip_preservation", "reads those of clipscore, so name these"),
        (["jpeg_compressibility"], "jpeg_compressibility", "has no weights of its own; leave it out"),
        (["ocr", "pickscore"], "ocr", "has no weights of its own; leave it out"),
        (["hpsv2"], "clipscore", "is called 'clipscore'; there are hpsv2"),
        (["geneval_hf"], "geneval_hf_strict", "did you mean geneval_hf"),
        (["shapes_strict"], "clipscore", "is called 'clipscore', and none reads weights"),
    ],
)
def test_weights_that_nothing_reads_are_refused_with_the_name_that_is_read(rewards, weights, said):
    with pytest.raises(ConfigError, match=said):
        check_read(named(*rewards), RewardModels(weights={weights: "x"}))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_that_are_read_are_taken(name):
    for read in find_reward(name).weights_read:
        check_read(named(name, "jpeg_compressibility"), RewardModels(weights={read: "x"}))
        if read != name:
            served = RewardModels(weights={read: "x"}, servers={name: "http://x"})
            with pytest.raises(ConfigError, match=f"what reads {read} is scored by a service"):
                check_read(named(name), served)


def test_an_option_of_what_a_service_scores_is_refused():
    options = {"geneval_threshold": 0.5}
    served = RewardModels(options=options, servers={"geneval_hf": "http://x"})
    with pytest.raises(ConfigError, match="what reads geneval_threshold is scored by a service"):
        check_read(named("geneval_hf"), served)
    check_read(named("geneval_hf", "geneval_hf_strict"), served)


def test_a_users_network_reads_its_own_weights_or_those_that_it_states():
    own = network_reward("theirs")(lambda models: lambda images, records: images.mean((1, 2, 3)))
    check_read({"theirs": own}, RewardModels(weights={"theirs": "x"}))
    check_read({"theirs": replace(own, weights=("clipscore",))}, RewardModels(weights={"clipscore": "x"}))
    with pytest.raises(ConfigError, match="theirs has no weights of its own; leave it out"):
        check_read({"theirs": Reward("theirs", own.score)}, RewardModels(weights={"theirs": "x"}))


def test_a_run_is_told_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="so name these"):
        check_rewards(["geneval_hf_strict"], RewardModels(weights={"geneval_hf_strict": "nothing/there"}))


def cut_file(folder):
    save_file({"a": torch.zeros(999)}, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("no"), AttributeError("gone"), EOFError(), OSError("none")])
def test_every_error_of_a_loader_is_one_sentence(error, monkeypatch):
    def load(models):
        raise error

    monkeypatch.setitem(REWARDS, "clipscore", replace(find_reward("clipscore"), load=load))
    with pytest.raises(ConfigError, match=r"reward clipscore could not be loaded: .+; --reward-models.weights clips"):
        load_reward("clipscore", RewardModels(batch=9))


def test_cut_weights_are_one_sentence(tmp_path):
    from tinies import clip

    cut_file(clip(tmp_path))
    with pytest.raises(ConfigError, match=r"reward pickscore could not be loaded: .*Safetensor"):
        load_reward("pickscore", RewardModels(weights={"pickscore": str(tmp_path)}))
