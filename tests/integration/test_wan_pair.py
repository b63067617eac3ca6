"""Wan 2.2 A14B: two networks, of which each computes its own times, is trained there alone, and has its own LoRA."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from afterflow.algorithms.awm import AWM
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.windows import SlidingWindow
from afterflow.cli.main import main
from afterflow.data.images import ShapesImages
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import estimate_cost
from afterflow.experiment.execute import execute
from afterflow.experiment.model_card import usage
from afterflow.experiment.network_counts import network_counts
from afterflow.experiment.setup import TrainingSetup
from afterflow.models.adapters import LoRA, attach
from afterflow.models.base import blocks
from afterflow.models.experts import EXPERTS, Experts
from afterflow.models.families import pretrained, usual_guidance
from afterflow.models.generate import encode_records, solve_ode
from afterflow.models.lora.files import lora_digest, lora_files, read_lora
from afterflow.models.lora.merge import LoRAMerge
from afterflow.models.wan import Wan
from afterflow.models.wan_pair import WanPair
from afterflow.sampling.schedules import LinearShift, SD3Grid
from afterflow.sampling.training_times import TrainingTimes
from afterflow.system.errors import ConfigError, InputError
from tinies import WAN_VAE, built, keep_blocks, wan_network, wan_pipeline

JPEG = {"jpeg_compressibility": 1.0}
RECORDS = [{"prompt": "a red heart and a blue circle"}, {"prompt": "a sign"}]
FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights_2.safetensors")
COMFYUI = ("comfyui_high_noise.safetensors", "comfyui_low_noise.safetensors")
SECOND = {"weight_name": FILES[1], "load_into_transformer_2": True}
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The tiny pair; two of four steps are those of each network."""
    return built("wan_pair", tmp_path_factory.mktemp("pair"))


def adapted(config, tune=None):
    """The model with random LoRAs."""
    model, draws = config.load(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attach(model, tune or LoRA(rank=4, alpha=6)).values():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return model


def noise_of(model, rows=2):
    return torch.randn(rows, *model.latent_shape, generator=torch.Generator().manual_seed(1))


def prompts_of(model, rows=2):
    return encode_records(model, [RECORDS[i % 2] for i in range(rows)])


# What is drawn


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("guidance, second", [(1.0, None), (1.0, 3.0), (4.0, None), (4.0, 2.5), (4.0, 1.0), (3.0, 4.0)])
def test_latents_are_those_of_the_stock_pipeline(pair, steps, guidance, second):
    """After one step, of the first network alone, and after steps of both; each under its own guidance."""
    model = replace(pair, guidance_scale_2=second).load()
    cond, noise = prompts_of(model), noise_of(model)
    model.schedule = SD3Grid(3.0)
    ours = solve_ode(model.guided_velocity(guidance, 2), cond, noise[:, None], model.schedule.times(steps))[:, 0]
    stock = WanPipeline.from_pretrained(pair.path, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    stock.set_progress_bar_config(disable=True)
    drawn = stock(
        [record["prompt"] for record in RECORDS],
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_scale_2=second,
        latents=noise,
        max_sequence_length=16,
        output_type="latent",
    ).frames
    torch.testing.assert_close(ours, drawn, atol=1e-4, rtol=1e-4)
    if steps == 4 and guidance > 1 and second is not None:
        alike = pair.load().guided_velocity(guidance, 2)
        assert not torch.allclose(
            ours, solve_ode(alike, cond, noise[:, None], model.schedule.times(4))[:, 0], atol=1e-3
        )


@pytest.mark.parametrize("t", [[0.9, 0.3, 0.875, 0.8, 1.0], [0.9, 0.95], [0.1, 0.2, 0.874]])
def test_each_row_is_computed_by_the_network_of_its_time(pair, t):
    model, t = pair.load(), torch.tensor(t)
    x, cond = noise_of(model, len(t)), prompts_of(model, len(t))
    low = model.low_noise(t)
    assert low.tolist() == [time < 0.875 for time in t.tolist()]
    with torch.no_grad():
        together = model.velocity(model.module)(x, t, cond)
        for network, rows in zip(model.module.networks, (~low, low)):
            if rows.any():
                alone = model.velocity(network)(x[rows], t[rows], cond[rows.nonzero()[:, 0]])
                assert torch.equal(together[rows], alone)


def test_rows_of_one_network_give_the_other_no_gradient(pair):
    model = adapted(pair)
    x, cond = noise_of(model), prompts_of(model)
    for time, used in ((0.9, EXPERTS[0]), (0.5, EXPERTS[1])):
        model.module.zero_grad()
        model.velocity(model.module)(x, torch.full((2,), time), cond).sum().backward()
        having = {name for name, p in model.module.named_parameters() if p.grad is not None}
        assert having and all(name.startswith(f"{used}.") for name in having)


def test_a_network_that_another_process_needs_runs_without_effect(pair):
    """Where weights are sharded; its gradient is zero then, and what is computed stays the same."""
    model = adapted(pair)
    x, t, cond = noise_of(model), torch.tensor([0.9, 0.95]), prompts_of(model)
    alone = model.velocity(model.module)(x, t, cond)
    model.module.all_needed = lambda needed: [True, True]
    together = model.velocity(model.module)(x, t, cond)
    assert torch.equal(together, alone)
    together.sum().backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters() if p.requires_grad}
    assert all(
        grad is not None and bool(grad.any()) == name.startswith("transformer.") for name, grad in gradients.items()
    )


def test_both_networks_have_blocks_and_adapters(pair):
    model = pair.load()
    assert len(list(blocks(model.module))) == 2
    parameters = attach(model, LoRA(rank=2, alpha=4))
    halves = [{name.removeprefix(f"{e}.") for name in parameters if name.startswith(f"{e}.")} for e in EXPERTS]
    assert halves[0] == halves[1] and 2 * len(halves[0]) == len(parameters)
    with pytest.raises(ConfigError, match="no layer of this model"):
        attach(pair.load(), LoRA(targets=("transformer_2.blocks.0.attn1.to_q",)))


# What is trained


def run_of(config, algorithm, name="run", **options):
    run = Run(algorithm, ShapesPrompts(count=4, tags=("counting",)), config, LoRA(rank=2, alpha=4), name=name)
    options = {"weight_decay": 0.1, "ema_decay": None, "sample_every": 0, "inference_steps": 2} | options
    return run.with_options(**{"iterations": 2, "batch": 2, "chunk": 4, "learning_rate": 1e-2} | options)


def lines_of(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def first_weights(run):
    """What is trained, by name, before training."""
    setup = TrainingSetup.build(replace(run, name="untrained"), False)
    return {name: p.detach().clone() for name, p in setup.weights.parameters.items()}


def last_weights(folder):
    return load_file(max((Path(folder) / "checkpoints").iterdir()) / "weights.safetensors")


GRID = LinearShift(3.0)  # whose four steps begin at 1, 0.9, 0.75 and 0.5
EARLY, LATE = TrainingTimes(count=2, span=(0.0, 0.5)), TrainingTimes(count=2, span=(0.5, 1.0))
ONE_SIDED = {
    "a window of early steps": (MixGRPO(JPEG, steps=4, group=2, window=SlidingWindow(width=2)), 0),
    "early steps alone": (FlowGRPO(JPEG, steps=4, group=2, window=2, window_range=(0, 2), schedule=GRID), 0),
    "a late step": (FlowGRPO(JPEG, steps=4, group=2, window=1, window_range=(2, 3), schedule=GRID), 1),
    "early times of finished images": (AWM(JPEG, steps=4, group=2, times=EARLY, schedule=GRID), 0),
    "late times of finished images": (AWM(JPEG, steps=4, group=2, times=LATE, schedule=GRID), 1),
}


@pytest.mark.parametrize("retained", [None, 0])
@pytest.mark.parametrize("case", ONE_SIDED)
def test_steps_of_one_network_train_it_alone(pair, case, retained):
    """The other's LoRA keeps every bit, whatever weight decay would do to it."""
    algorithm, used = ONE_SIDED[case]
    run = run_of(pair, algorithm, retained_rows=retained)
    before, folder = first_weights(run), execute(run, "run").folder
    after = last_weights(folder)
    assert after.keys() == before.keys()
    for name, value in before.items():
        if name.startswith(f"{EXPERTS[1 - used]}."):
            assert torch.equal(after[name], value), name
    changed = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert changed and lines_of(folder)[0]["grad_norm"] > 0
    stored = load_file(folder / "lora" / FILES[1 - used])
    assert not any(value.any() for name, value in stored.items() if "lora_B" in name)
    assert any(value.any() for name, value in load_file(folder / "lora" / FILES[used]).items() if "lora_B" in name)


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 3.0}, {"mixed_precision": "bf16"}, {"grad_partitions": 2}])
def test_steps_of_both_train_both_at_a_ratio_of_one(pair, options, monkeypatch):
    """Rows of the two networks are in microbatches of their own, so a replay has the shape of the rollout."""
    split, counts = Experts._split, []

    def noted(self, timestep):
        order, rows = split(self, timestep)
        counts.append(tuple(rows))
        return order, rows

    monkeypatch.setattr(Experts, "_split", noted)
    run = run_of(pair, FlowGRPO(JPEG, steps=4, group=4, beta=0.01), retained_rows=0, chunk=8, **options)
    folder = execute(run, "run").folder
    assert lines_of(folder)[0]["ratio_max"] == 1.0
    assert lines_of(folder)[0]["ratio_mean"] == pytest.approx(1.0, abs=1e-12)
    whole = 8 * (2 if "guidance_scale" in options else 1)
    assert set(counts) == {(whole, 0), (0, whole)}
    for file in FILES:
        assert any(value.any() for name, value in load_file(folder / "lora" / file).items() if "lora_B" in name)


def test_two_passes_have_the_gradient_of_one(pair):
    lines = {}
    for name, options in {"two": {"retained_rows": 0}, "one": {}, "again": {"gradient_checkpointing": True}}.items():
        run = run_of(pair, FlowGRPO(JPEG, steps=4, group=4, beta=0.1), name, guidance_scale=3.0, **options)
        lines[name] = lines_of(execute(run, "run").folder)[0]["grad_norm"]
    assert lines["one"] == pytest.approx(lines["two"], rel=1e-5)
    assert lines["again"] == pytest.approx(lines["one"], rel=1e-5)


@pytest.mark.parametrize("case", ["a window of early steps", "early times of finished images"])
def test_a_resumed_run_is_the_whole_one_to_the_last_bit(pair, case):
    """The optimizer has no averages of a network that was not trained yet."""
    algorithm = ONE_SIDED[case][0]
    if isinstance(algorithm, MixGRPO):  # over the boundary in the third iteration
        algorithm = replace(algorithm, steps=5, window=SlidingWindow(width=2, every=2))
    whole = run_of(pair, algorithm, "whole", save_every=1).with_options(iterations=4)
    execute(whole, "run")
    execute(run_of(pair, algorithm, save_every=1), "run")
    assert main(["train", "--extend", "runs/run", "--iterations", "4"]) == 0
    found, expected = last_weights("runs/run"), last_weights("runs/whole")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    if isinstance(algorithm, MixGRPO):
        before = first_weights(whole)
        second = [name for name in before if name.startswith(EXPERTS[1])]
        assert any(not torch.equal(found[name], before[name]) for name in second)


def test_a_lora_is_trained_on_as_it_was(pair, tmp_path):
    model = adapted(pair)
    model.save_lora(tmp_path / "lora")
    again = pair.load()
    found = attach(again, LoRA(rank=4, alpha=6, start=str(tmp_path / "lora")))
    expected = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)
    assert {net.peft_config["default"].lora_alpha for net in again.module.networks} == {6}


def test_images_teach_both_networks(pair):
    """Times of a batch lie on both sides of the boundary."""
    images = ShapesImages(count=16, tags=("counting",))
    run = Run(SFT(), images, replace(pair, frames=1), LoRA(rank=2, alpha=4), name="run")
    run = run.with_options(iterations=2, batch=16, chunk=16, learning_rate=1e-2, sample_every=0)
    folder = execute(run, "run").folder
    for file in FILES:
        assert any(value.any() for name, value in load_file(folder / "lora" / file).items() if "lora_B" in name)


def number_of_weights(config):
    return sum(weights.numel() for weights in config.load("meta").module.parameters())


def test_a_plan_of_the_released_pair_counts_both_networks_without_weights(pair, tmp_path, monkeypatch):
    """In the shapes of Wan 2.2 A14B, which are the defaults of diffusers' class."""
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    shutil.copytree(pair.path, tmp_path / "a14b")
    without_weights(tmp_path / "a14b")
    for part in EXPERTS:
        (tmp_path / "a14b" / part / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    config = WanPair(str(tmp_path / "a14b"), height=32, width=32, frames=5, dtype="bfloat16", max_sequence_length=16)
    assert number_of_weights(config) == pytest.approx(2 * 14.29e9, rel=1e-3)
    for part in EXPERTS:
        keep_blocks(tmp_path / "a14b", part, num_layers=4)
    run = run_of(config, FlowGRPO(JPEG, steps=4, group=2, beta=0.0))
    counts = network_counts(run)
    assert counts.frozen == 2 * number_of_weights(config)
    assert counts.trained == 2 * 4 * 8 * 2 * (5120 + 5120)  # A and B of rank 2 in 8 layers of 4 blocks of each
    cost = estimate_cost(run)
    assert cost.memory["frozen and trained weights"] == counts.weights > counts.frozen
    assert cost.memory["gradients, Adam and EMA"] == 12 * counts.trained
    # A row is computed by one of the two: two FLOPs for each of its weights and tokens at the most.
    tokens = 2 * 2 * 2
    assert counts.forward < 1.1 * 2 * (counts.frozen / 4) * (tokens + 16) * run.batches.chunk


# Files of LoRAs


def test_a_user_of_diffusers_loads_both_files_in_two_lines(pair, tmp_path):
    """With alpha unlike rank; the card of a run says the lines."""
    model = adapted(pair, LoRA(rank=8, alpha=3))
    model.save_lora(tmp_path / "lora")
    assert {file.name for file in (tmp_path / "lora").iterdir()} == {*FILES, *COMFYUI}
    stock = WanPipeline.from_pretrained(pair.path)
    stock.load_lora_weights(tmp_path / "lora")
    stock.load_lora_weights(tmp_path / "lora", **SECOND)
    x, cond = noise_of(model), prompts_of(model)
    text = cond.embedding().sequence
    with torch.no_grad():
        for time, network in ((0.9, stock.transformer), (0.5, stock.transformer_2)):
            t = torch.full((2,), time)
            theirs = network(x, 1000 * t, text, return_dict=False)[0]
            torch.testing.assert_close(model.velocity(model.module)(x, t, cond), theirs, atol=1e-4, rtol=1e-4)
    lines = "\n".join(usage(run_of(pair, FlowGRPO(JPEG)), tmp_path / "lora"))
    assert 'weight_name="pytorch_lora_weights_2.safetensors", load_into_transformer_2=True)' in lines.replace("'", '"')
    assert f"copy `{COMFYUI[0]}` and `{COMFYUI[1]}`" in lines


def same(found, expected):
    assert found.layers.keys() == expected.layers.keys()
    for layer, factors in expected.layers.items():
        assert torch.equal(found.layers[layer].A, factors.A) and torch.equal(found.layers[layer].B, factors.B), layer


def test_a_pair_of_files_is_written_for_comfyui_and_read_back(pair, tmp_path, capsys):
    model = adapted(pair)
    model.save_lora(tmp_path / "lora")
    lora = read_lora(tmp_path / "lora")
    assert (lora.rank, lora.alpha, lora.family) == (4, 6, "WanPair")
    assert {layer.split(".")[0] for layer in lora.layers} == set(EXPERTS)
    out = tmp_path / "comfy" / "mine.safetensors"
    assert main(["export", str(tmp_path / "lora"), "--out", str(out)]) == 0
    made = [out.with_name(f"mine_{noise}_noise.safetensors") for noise in ("high", "low")]
    assert f"{made[0]} and {made[1]}: 16 layers, rank 4" in capsys.readouterr().out.replace("\n", "")
    for file, expert in zip(made, EXPERTS):
        tensors = load_file(file)
        factors = lora.layers[f"{expert}.blocks.0.attn1.to_q"]
        assert torch.equal(tensors["lora_unet_blocks_0_self_attn_q.lora_up.weight"], factors.B)
        with safe_open(file, "pt") as stored:
            assert json.loads(stored.metadata()["afterflow"])["expert"] == expert
    same(read_lora(tmp_path / "comfy"), lora)
    same(read_lora(tmp_path / "comfy", "WanPair"), lora)
    assert main(["export", str(tmp_path / "comfy"), "--to", "diffusers", "--out", str(tmp_path / "back")]) == 0
    same(read_lora(tmp_path / "back"), lora)


def test_the_files_of_another_trainer_act_as_they_did_there(pair, tmp_path):
    """Named by high and low, without our metadata, of two ranks."""
    draws = torch.Generator().manual_seed(0)
    stored = {}
    for noise, rank in (("HIGH", 3), ("LOW", 5)):
        A, B = torch.randn(rank, 24, generator=draws), torch.randn(24, rank, generator=draws)
        key = "diffusion_model.blocks.0.self_attn.q"
        tensors = {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B, f"{key}.alpha": torch.tensor(1.0)}
        save_file(tensors, tmp_path / f"theirs_{noise}.safetensors")
        stored[noise] = B @ A / rank
    model = pair.load()
    model.load_lora(tmp_path)
    for expert, noise in zip(EXPERTS, ("HIGH", "LOW")):
        layer = model.module.get_submodule(f"{expert}.blocks.0.attn1.to_q")
        torch.testing.assert_close(layer.get_delta_weight("default"), stored[noise], atol=1e-5, rtol=1e-5)


def test_pairs_are_merged_network_by_network_and_told_apart_by_both_files(pair, tmp_path):
    for name in ("a", "b"):
        adapted(pair).save_lora(tmp_path / name)
    sources = [str(tmp_path / name) for name in ("a", "b")]
    one = read_lora(sources[0])
    LoRAMerge(tuple(sources)).write(tmp_path / "both")
    both = read_lora(tmp_path / "both", "WanPair")
    for layer, factors in one.layers.items():
        torch.testing.assert_close(both.layers[layer].delta, factors.delta, atol=1e-5, rtol=1e-5)
    before = lora_digest(sources[0])
    assert before == lora_digest(sources[1]) and len(lora_files(sources[0])) == 2
    tensors = {name: 2 * value for name, value in load_file(tmp_path / "a" / FILES[1]).items()}
    save_file(tensors, tmp_path / "a" / FILES[1])
    assert lora_digest(sources[0]) != before


# What cannot be


def loras(pair, tmp_path):
    """Folders of a pair's LoRA, of one network's, and of a single Wan's."""
    adapted(pair).save_lora(tmp_path / "pair")
    (tmp_path / "half").mkdir()
    shutil.copy(tmp_path / "pair" / FILES[0], tmp_path / "half")
    wan = built("wan", tmp_path / "wan")
    adapted(wan).save_lora(tmp_path / "single")
    return wan


def test_a_lora_of_one_network_is_no_lora_of_a_pair(pair, tmp_path):
    loras(pair, tmp_path)
    for source in ("half", "single", f"pair/{FILES[0]}", f"pair/{COMFYUI[1]}"):
        with pytest.raises(
            InputError, match="is of one network, and the model has two, which need one each"
        ) as refused:
            pair.load("meta").load_lora(tmp_path / source)
        assert FILES[1] in str(refused.value) and "\n" not in str(refused.value)


def test_a_lora_of_a_pair_is_no_lora_of_one_network(pair, tmp_path, capsys):
    model = loras(pair, tmp_path).load()
    with pytest.raises(InputError, match=r"it is of a pair of transformers .* and this model has one; take the model"):
        model.load_lora(tmp_path / "pair")
    for source in ("half", f"pair/{FILES[1]}", f"pair/{COMFYUI[0]}"):
        with pytest.raises(
            InputError, match=r"one of the two transformers that Wan 2\.2 A14B has, and both are needed"
        ):
            model.load_lora(tmp_path / source)
    assert main(["export", str(tmp_path / "half")]) != 0
    assert "both are needed" in capsys.readouterr().err


def test_files_of_a_pair_that_do_not_belong_together_are_refused(pair, tmp_path):
    loras(pair, tmp_path)
    for file, other in ((FILES[0], FILES[1]), (FILES[1], FILES[0])):
        (tmp_path / "swapped").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "pair" / file, tmp_path / "swapped" / other)
    with pytest.raises(InputError, match="the file for transformer is of transformer_2; exchange the names"):
        read_lora(tmp_path / "swapped")
    tensors = load_file(tmp_path / "pair" / FILES[1])
    few = {name: value for name, value in tensors.items() if "attn1.to_q" not in name}
    save_file(few, tmp_path / "pair" / FILES[1])
    with pytest.raises(InputError, match="to_q is in one of its two files alone"):
        read_lora(tmp_path / "pair")


def changed(folder, **values):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def without_weights(folder):
    """The pipeline, of which only configurations are there: what is refused is refused before weights are fetched."""
    for file in folder.rglob("*.safetensors"):
        file.unlink()


@pytest.mark.parametrize("boundary", [0, 1, 1.5, -0.1, True, "0.9"])
def test_a_boundary_that_is_no_time_is_refused_before_weights_are_there(tmp_path, boundary):
    config = built("wan_pair", tmp_path / "pair")
    without_weights(tmp_path / "pair")
    changed(tmp_path / "pair", boundary_ratio=boundary)
    with pytest.raises(InputError, match=re.escape(f"boundary_ratio in its model_index.json is {boundary!r}")):
        config.load()


def test_pairs_that_are_none_are_refused_before_weights_are_there(tmp_path):
    config = built("wan_pair", tmp_path / "pair")
    without_weights(tmp_path / "pair")
    with pytest.raises(InputError, match=r"has two transformers, as Wan 2\.2 A14B does; take it as the family WanPair"):
        Wan(config.path, height=32, width=32, frames=5).load()
    changed(tmp_path / "pair", transformer_2=[None, None])
    with pytest.raises(InputError, match="has a boundary_ratio and no transformer_2; download the whole pipeline"):
        config.load()
    wan = built("wan", tmp_path / "wan")
    without_weights(tmp_path / "wan")
    with pytest.raises(InputError, match="has no boundary_ratio and so one transformer; take it as the family Wan"):
        WanPair(wan.path, height=32, width=32, frames=5).load()
    odd = wan_pipeline(WAN_VAE, 16, transformer_2=wan_network(16, width=24), boundary_ratio=0.875)
    odd.save_pretrained(tmp_path / "odd")
    without_weights(tmp_path / "odd")
    with pytest.raises(
        InputError, match="attention_head_dim is 12 in transformer and 24 in transformer_2; the two must"
    ):
        WanPair(str(tmp_path / "odd"), height=32, width=32, frames=5).load()
    for part in EXPERTS:
        file = tmp_path / "odd" / part / "config.json"
        values = {"attention_head_dim": 12, "in_channels": 36}
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(InputError, match="take 36 channels and its autoencoder has 16, as a pair from image to video"):
        WanPair(str(tmp_path / "odd"), height=32, width=32, frames=5).load()
    changed(
        tmp_path / "odd",
        _class_name="WanImageToVideoPipeline",
        image_encoder=[None, None],
        image_processor=[None, None],
    )
    with pytest.raises(InputError, match=r"appends its picture to the channels, as Wan 2\.1 and Wan 2\.2 A14B do"):
        pretrained(str(tmp_path / "odd"), "float32", {"height": 32, "width": 32, "frames": 5}).load()


def test_a_pair_is_recognised_and_its_second_guidance_is_a_number(pair, tmp_path):
    found = pretrained(pair.path, "float32", {"guidance_scale_2": 3.0})
    assert type(found) is WanPair and found.guidance_scale_2 == 3.0 and usual_guidance(pair.path) == 4.0
    wan = built("wan", tmp_path / "wan")
    assert type(pretrained(wan.path, "float32", {})) is Wan
    with pytest.raises(ConfigError, match="Wan has no such option"):
        pretrained(wan.path, "float32", {"guidance_scale_2": 3.0})
    with pytest.raises(ConfigError, match=r"model\.guidance_scale_2 = -1: 0 or more"):
        replace(pair, guidance_scale_2=-1)


def test_a_pair_is_made_again_from_its_configuration(pair):
    module = pair.load().module
    again = Experts.from_config(module.config)
    again.load_state_dict(module.state_dict())
    assert again.boundary == module.boundary == 0.875
