import json

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from afterflow.train.checkpoint import WeightState, load_checkpoint
from afterflow.train.ema import Ema
from forked import Forked
from several import ALGORITHMS, main, named
from toy import MLP, optimize


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process and two found, by rank; the two are started as torchrun starts them, by forking."""
    folder = tmp_path_factory.mktemp("several")
    for place in ("one", "two"):
        (folder / place).mkdir()
    AcceleratorState._reset_state(reset_partial_state=True)  # of the tests before
    main(folder / "one")  # one process is this one: another takes seconds to start
    AcceleratorState._reset_state(reset_partial_state=True)
    launched = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork")
    launch = elastic_launch(launched, main)
    assert Forked(lambda: launch(folder / "two") and None).wait(300) == 0
    read = lambda place, rank, count: json.loads((folder / place / f"{rank}_of_{count}.json").read_text())
    return folder, read("one", 0, 1), [read("two", rank, 2) for rank in (0, 1)]


@pytest.mark.parametrize("case", [*ALGORITHMS, "nothing to train on"])
def test_two_processes_do_what_one_does_to_the_last_bit(found, case):
    _, alone, (first, second) = found
    assert first[case]["weights"] == second[case]["weights"] == alone[case]["weights"]
    assert first[case]["metrics"] == second[case]["metrics"]
    for mine, others in zip(alone[case]["metrics"], first[case]["metrics"], strict=True):
        assert others == pytest.approx(mine, rel=1e-12, abs=1e-12)
    fresh = {name: p.tolist() for name, p in MLP().named_parameters()}
    assert alone[case]["weights"] != fresh


def test_a_reward_that_fails_in_one_process_stops_all(found):
    _, _, (first, second) = found
    assert first["a reward that fails"] == "TrainingStopped: process 1: the reward's server is gone"
    assert second["a reward that fails"] == "ConnectionError: the reward's server is gone"


def test_a_loss_that_is_not_finite_in_one_process_stops_all(found):
    _, _, (first, second) = found
    assert first["a loss that is not finite"] == second["a loss that is not finite"]
    assert first["a loss that is not finite"].startswith("TrainingStopped: step 0: ")


def test_processes_encode_a_share_of_the_images_each_and_get_all(found):
    _, alone, (first, second) = found
    assert first["encoded"]["all"] == second["encoded"]["all"] == alone["encoded"]["all"]
    assert (first["encoded"]["mine"], second["encoded"]["mine"]) == ([0, 2, 4], [1, 3])
    assert second["encoded, one fails"] == "InputError: 3 cannot be read"
    assert first["encoded, one fails"] == "TrainingStopped: process 1: 3 cannot be read"


@pytest.mark.parametrize(
    "case",
    [
        "shards",
        "shards, zero2",
        "shards, nothing to train on",
        "shards of NFT",
        "shards of V-GRPO, nothing to train on",
        "shards of SFT",
    ],
)
def test_sharded_weights_are_trained_alike(found, case):
    _, alone, (first, second) = found
    assert "weights" not in second[case]  # the first process alone has them whole
    for name, value in alone[case]["weights"].items():
        torch.testing.assert_close(torch.tensor(first[case]["weights"][name]), torch.tensor(value), rtol=0, atol=1e-6)
    for mine, one, other in zip(alone[case]["metrics"], first[case]["metrics"], second[case]["metrics"], strict=True):
        assert one == other == pytest.approx(mine, rel=1e-5, abs=1e-6)
    now, averaged, again = (torch.tensor(each) for each in first[case]["outputs"])
    assert torch.equal(now, again) and not torch.allclose(now, averaged, atol=1e-5)
    for mine, ours in zip(alone[case]["outputs"], (now, averaged, again), strict=True):
        torch.testing.assert_close(ours, torch.tensor(mine), rtol=0, atol=1e-5)


def test_shards_are_put_together_by_one_process(found):
    folder, _, (first, _) = found
    model = MLP(seed=1)
    optimizer, ema = optimize(model), Ema(named(model), 0.9)
    saved = folder / "two" / "checkpoints" / "step_000002"
    assert {file.name for file in saved.glob("weights.*")} == {"weights.0.safetensors", "weights.1.safetensors"}
    assert load_checkpoint(saved, WeightState(named(model), optimizer, ema)) == 3
    assert {name: p.tolist() for name, p in named(model).items()} == first["shards"]["weights"]
    whole = folder / "one" / "checkpoints" / "step_000002"
    other, other_ema = MLP(seed=1), Ema(named(MLP()), 0.9)
    other_optimizer = optimize(other)
    load_checkpoint(whole, WeightState(named(other), other_optimizer, other_ema))
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], other_optimizer.state[q]["exp_avg"])
    for name, value in ema.values.items():
        torch.testing.assert_close(value, other_ema.values[name], rtol=0, atol=1e-6)


def test_a_shard_that_is_missing_is_noticed(found, tmp_path):
    folder, _, _ = found
    saved = folder / "two" / "tied" / "checkpoints" / "step_000002"
    (saved / "weights.1.safetensors").unlink()
    model = MLP()
    with pytest.raises(ValueError, match=r"is damaged: weights.1.safetensors is missing"):
        load_checkpoint(saved, WeightState(named(model), optimize(model)))
