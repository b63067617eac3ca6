"""Merged LoRAs against what their weights add up to."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import load, save_lora
from afterflow.cli.main import main
from afterflow.models.adapters import LoRA, attach
from afterflow.models.lora.factors import LoRAFactors, fuse_factors, nearest_factors, weighted_sum
from afterflow.models.lora.files import COMFYUI, StoredLoRA, read_lora, write_lora
from afterflow.models.lora.merge import LoRAMerge
from afterflow.sampling.conditioning import condition


def factors(rank, out=12, into=10, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return LoRAFactors(torch.randn(rank, into, generator=draws), torch.randn(out, rank, generator=draws))


def lora(seed, rank=3, layers=("a", "b")):
    found = {name: factors(rank, seed=seed + 10 * i) for i, name in enumerate(layers)}
    return StoredLoRA(f"lora_{seed}", found, rank, alpha=rank)


def merge(loras, weights, how, density, rank, seed):
    folders = tuple(lora.source for lora in loras)
    return LoRAMerge(folders, tuple(weights), rank, how, density, seed).merged(loras)


def test_a_linear_merge_is_exact_at_the_sum_of_ranks():
    loras, weights = [lora(1), lora(2, rank=2)], [0.3, -1.2]
    layers, error = merge(loras, weights, "linear", 0.5, None, 0)
    for name, found in layers.items():
        assert len(found.A) == 5
        expected = sum(w * each.layers[name].delta for w, each in zip(weights, loras))
        torch.testing.assert_close(found.delta, expected)
    assert error < 1e-6


def test_averaging_the_factors_is_another_matrix():
    """What released code does, (1/K²) Σ B_i A_j: right only where the A's coincide."""
    one, other = factors(3, seed=1), factors(3, seed=2)
    mean = weighted_sum([(one, 0.5), (other, 0.5)]).delta
    by_factor = LoRAFactors((one.A + other.A) / 2, (one.B + other.B) / 2).delta
    assert (by_factor - mean).norm() > 0.5 * mean.norm()
    shared = LoRAFactors(one.A, other.B)
    torch.testing.assert_close(
        LoRAFactors(one.A, (one.B + other.B) / 2).delta, weighted_sum([(one, 0.5), (shared, 0.5)]).delta
    )


def test_a_lower_rank_is_the_nearest_there_is():
    loras = [lora(1), lora(2)]
    layers, error = merge(loras, [1.0, 1.0], "linear", 0.5, 4, 0)
    lost = whole = 0.0
    for name, found in layers.items():
        delta = loras[0].layers[name].delta + loras[1].layers[name].delta
        singular = torch.linalg.svdvals(delta)
        assert len(found.A) == 4
        assert (delta - found.delta).norm().item() == pytest.approx(singular[4:].norm().item(), rel=1e-4)
        lost, whole = lost + singular[4:].square().sum(), whole + singular.square().sum()
    assert error == pytest.approx((lost / whole).sqrt().item(), rel=1e-4)
    assert torch.linalg.matrix_rank(nearest_factors(factors(5).delta, 2).delta) == 2


def test_a_layer_that_one_lora_lacks_is_the_other_s_alone():
    loras = [lora(1), lora(2, layers=("a",))]
    layers, _ = merge(loras, [0.5, 0.5], "linear", 0.5, None, 0)
    torch.testing.assert_close(layers["b"].delta, 0.5 * loras[0].layers["b"].delta)
    assert {len(found.A) for found in layers.values()} == {6}


@pytest.mark.parametrize("how", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_pruning_merges_keep_everything_at_density_one_and_repeat_by_their_seed(how):
    one = [lora(1, rank=2), lora(1, rank=2)]  # of equal matrices no sign is in the minority
    weights = [1.0, 1.0] if "ties" in how else [0.5, 0.5]  # ties takes the mean by itself
    full, _ = merge(one, weights, how, 1.0, 10, 0)
    expected = one[0].layers["a"].delta
    torch.testing.assert_close(full["a"].delta, expected, atol=1e-4, rtol=1e-4)
    two = [lora(1), lora(2)]
    state = torch.get_rng_state()
    a, b, c = (merge(two, [0.5, 0.5], how, 0.5, 10, seed)[0]["a"].delta for seed in (0, 0, 1))
    assert torch.equal(a, b) and torch.equal(state, torch.get_rng_state())
    assert torch.equal(a, c) != how.startswith("dare")
    assert not torch.allclose(a, merge(two, [0.5, 0.5], "linear", 0.5, None, 0)[0]["a"].delta, atol=0.1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def velocity(model):
    cond = condition(model.encode(["a"]), model.encode([""]), [{"prompt": "a"}])
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.velocity(model.module)(x, torch.tensor([0.6]), cond)


def test_the_merged_file_draws_what_both_adapters_together_draw(deep_pipeline, capsys):
    save_lora(deep_pipeline, "a", 1, 4)
    save_lora(deep_pipeline, "b", 2, 2)
    assert main(["merge", "a", "b", "--weights", "0.7", "0.4", "--out", "both"]) == 0
    assert "rank 6, 47 layers; what its rank cannot hold is 0.0% of the merge" in capsys.readouterr().out
    ours = load(deep_pipeline)
    ours.load_lora("both")
    stock = load(deep_pipeline)
    for name in ("a", "b"):
        stock.load_lora(name, name)
    stock.pipe.set_adapters(["a", "b"], [0.7, 0.4])
    torch.testing.assert_close(velocity(ours), velocity(stock), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(velocity(ours), velocity(load(deep_pipeline)), atol=1e-2)


@pytest.mark.parametrize("how", ["linear", "ties", "dare_ties", "magnitude_prune"])
def test_by_default_a_lora_merged_with_itself_stays_what_it_is(deep_pipeline, how):
    save_lora(deep_pipeline, "a", 1, 4)
    LoRAMerge(("a", "a"), how=how, density=1.0).write(Path("twice"))
    one, twice = read_lora("a"), read_lora("twice")
    assert one.family == twice.family == "SD3" and Path("twice", COMFYUI).is_file()
    for name, factors in one.layers.items():
        torch.testing.assert_close(twice.layers[name].delta, factors.delta, atol=1e-4, rtol=1e-3)


def test_a_merge_can_be_trained_on(deep_pipeline):
    save_lora(deep_pipeline, "a", 1, 4)
    save_lora(deep_pipeline, "b", 2, 4)
    assert main(["merge", "a", "b", "--rank", "4", "--out", "both"]) == 0
    model = load(deep_pipeline)
    parameters = attach(model, LoRA(rank=4, alpha=4, start="both"))
    assert len(parameters) == 2 * 47 and parameters[next(iter(parameters))].shape[0] == 4


def test_merges_that_cannot_be_are_refused(deep_pipeline, capsys):
    save_lora(deep_pipeline, "a", 1, 4)
    tensors = load_file("a/pytorch_lora_weights.safetensors")
    other = {name: torch.cat([t, t], 1) if "lora_A" in name else t for name, t in tensors.items()}
    half = dict(list(tensors.items())[:1])
    for name, content in (("wide", other), ("half", half)):
        (Path(name)).mkdir()
        save_file(content, f"{name}/pytorch_lora_weights.safetensors")
    write_lora("other", {"blocks.0.attn1.to_q": factors(2)}, "Wan")
    for words, sentence in (
        (["a"], "a merge of 1 LoRAs: name at least two"),
        (["a", "b"], "LoRA b: no pytorch_lora_weights.safetensors"),
        (["a", "a", "--weights", "1"], "1 numbers for 2 LoRAs"),
        (["a", "a", "--rank", "0"], "rank = 0"),
        (["a", "a", "--density", "0"], "density = 0"),
        (["a", "wide"], "LoRAs of different bases cannot be merged"),
        (["a", "half"], "only one of its two factors"),
        (["a", "other"], "have no layer in common"),
    ):
        try:
            code = main(["merge", *words])
        except SystemExit as stop:  # tyro's, for an option that cannot be
            code = stop.code
        assert code == 2 and sentence in " ".join(capsys.readouterr().err.split())


def test_layers_below_each_other_become_one_lora_in_blocks():
    """The second of three is missing, and the last is twice as wide."""
    parts = {0: factors(2, out=4, seed=1), 2: factors(3, out=8, seed=2)}
    fused = fuse_factors(parts, (1, 1, 2))
    assert fused.A.shape == (5, 10) and fused.B.shape == (16, 5)
    torch.testing.assert_close(fused.delta, torch.cat([parts[0].delta, torch.zeros(4, 10), parts[2].delta]))


def test_each_seed_leaves_out_other_entries():
    two = [lora(1, layers=("a",)), lora(2, layers=("a",))]
    found = [merge(two, [0.5, 0.5], "dare_linear", 0.5, 10, seed)[0]["a"].delta for seed in range(80)]
    assert len(torch.stack(found).flatten(1).unique(dim=0)) == 80
