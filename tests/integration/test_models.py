"""Every family: what we draw is what the stock pipeline draws, and every method trains it."""

import copy
import json
import re
import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from safetensors.torch import load_file

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.forward_process import learns_from_finished
from afterflow.algorithms.sft import SFT
from afterflow.cli import push
from afterflow.data.images import ShapesImages
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.setup import TrainingSetup
from afterflow.models.adapters import Full, LoRA, attach
from afterflow.models.families import FAMILIES as CONFIGURATIONS
from afterflow.models.families import pretrained, usual_guidance
from afterflow.models.generate import decode_groups, encode_records, solve_ode
from afterflow.models.pipeline import Model
from afterflow.models.pipeline_files import PARTS, copy_part, download, pipeline_class
from afterflow.models.wan import Wan
from afterflow.models.z_image import of_one_length
from afterflow.recipes.editing_shapes import TINY_KLEIN
from afterflow.recipes.moving import TINY_WAN
from afterflow.sampling.conditioning import condition
from afterflow.sampling.schedules import DynamicShift, Flux2Shift, LinearShift, SD3Grid
from afterflow.system.errors import ConfigError, InputError
from small_runs import JPEG, METHODS, STEPS, frames_of, in_this_half, small_run
from tinies import FAMILIES, built, flux2_klein, saved

PROMPTS = ["a picture of a red heart and a blue circle", "a sign"]
SECOND_LORA = ({}, {"weight_name": "pytorch_lora_weights_2.safetensors", "load_into_transformer_2": True})
pytestmark = pytest.mark.usefixtures("own_folder")


@cache
def untouched(config):
    """The model before any training, to be copied and not changed, and what it is asked for."""
    model = config.load()
    return model, encode_records(model, [{"prompt": prompt} for prompt in PROMPTS])


def loaded(config):
    """A copy of the model, on the grid that its stock pipeline takes with Euler's steps."""
    model = copy.deepcopy(untouched(config)[0])
    if isinstance(config, Wan):
        model.schedule = SD3Grid(3.0)
    return model


def our_images(model, noise, guidance):
    embedding = model.encode([*PROMPTS, ""])
    records = [{"prompt": prompt} for prompt in PROMPTS]
    cond = condition(embedding.rows(slice(-1)), embedding.rows(slice(-1, None)), records)
    velocity = model.guide(model.velocity(model.module), guidance)
    return decode_groups(model, solve_ode(velocity, cond, noise[:, None], model.schedule.times(STEPS)))[:, 0]


def stock_images(folder, config, noise, guidance, lora=None, **parts):
    """What a user gets who knows nothing of us."""
    kind = getattr(diffusers, pipeline_class(folder))
    absent = {"text_encoder_3": None, "tokenizer_3": None} if "StableDiffusion3" in kind.__name__ else {}
    pipe = kind.from_pretrained(folder, **absent, **parts)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        for more in SECOND_LORA if pipe.config.get("boundary_ratio") else ({},):
            pipe.load_lora_weights(lora, **more)
    latents = noise
    if "Wan" in kind.__name__:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        size = {"height": config.height, "width": config.width, "num_frames": config.frames}
    else:
        size = {"height": 32, "width": config.width or 32}
    if "FluxP" in kind.__name__ or "Qwen" in kind.__name__:
        latents = pipe._pack_latents(noise, *noise.shape)
        told = {"negative_prompt": [""] * len(PROMPTS), "true_cfg_scale": guidance}
        told |= {"guidance_scale": config.embedded_guidance} if "Flux" in kind.__name__ else {}
    elif "ZImage" in kind.__name__:
        told = {"guidance_scale": guidance - 1, "cfg_normalization": config.guidance_cap}
    else:
        told = {"guidance_scale": guidance}
    if getattr(config, "guidance_scale_2", None) is not None:
        told |= {"guidance_scale_2": config.guidance_scale_2}
    made = pipe(
        prompt=list(PROMPTS),  # Z-Image writes into it
        num_inference_steps=STEPS,
        latents=latents,
        max_sequence_length=config.max_sequence_length,
        output_type="np",
        **size,
        **told,
    )
    return np.rint(255 * made[0]).astype(np.uint8)


def noise_for(model):
    return torch.randn(len(PROMPTS), *model.latent_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_ode_draws_what_the_stock_pipeline_draws(tinies, name, guidance):
    model = loaded(tinies[name])
    ours = our_images(model, noise_for(model), guidance)
    stock = stock_images(model.folder, tinies[name], noise_for(model), guidance)
    assert ours.std() > 5
    # One grey level where rounding to a byte falls the other way.
    assert np.abs(ours.astype(int) - stock).max() <= 1
    assert (ours != stock).mean() < 0.01


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_ode_draws_what_wan_2_2_draws_with_one_network(tmp_path, guidance):
    """Its network is told a time for every token, and its autoencoder has statistics of its own."""
    config = built("wan_ti2v", tmp_path / "pipeline")
    model = loaded(config)
    assert model.latent_shape == (6, 2, 2, 2)
    ours = our_images(model, noise_for(model), guidance)
    stock = stock_images(model.folder, config, noise_for(model), guidance)
    assert ours.std() > 5 and np.abs(ours.astype(int) - stock).max() <= 1
    clips = model.encode_images(ours)
    assert clips.shape == noise_for(model).shape and clips.isfinite().all()
    before = (tmp_path / "pipeline/vae/config.json").read_text()
    (tmp_path / "pipeline/vae/config.json").write_text(re.sub(r'"latents_mean": \[.*?\],', "", before, flags=re.S))
    with pytest.raises(InputError, match="6 channels and 16 numbers in latents_mean; it is of an old layout"):
        config.load()


@pytest.mark.parametrize("rank, alpha", [(4, 8), (8, 3)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_lora_draws_the_same_in_the_stock_pipeline(tinies, name, tmp_path, rank, alpha):
    """The scale alpha / rank is in the file's weights, exactly if it is a power of two, else rounded once."""
    model = loaded(tinies[name])
    for parameter in attach(model, LoRA(rank, alpha)).values():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    model.save_lora(tmp_path / "lora")
    ours = our_images(model, noise_for(model), 1.0)
    stock = stock_images(model.folder, tinies[name], noise_for(model), 1.0, tmp_path / "lora")
    parts = model.network_parts(model.module)
    trained = stock_images(model.folder, tinies[name], noise_for(model), 1.0, **parts)
    exact = alpha == 2 * rank
    assert np.abs(trained.astype(int) - stock).max() <= (not exact) and (trained != stock).mean() < 1e-3
    untouched = stock_images(model.folder, tinies[name], noise_for(model), 1.0)
    assert np.abs(ours.astype(int) - stock).max() <= 1 and (ours != stock).mean() < 0.01
    assert np.abs(ours.astype(int) - untouched).mean() > 0.3
    again = loaded(tinies[name])
    again.load_lora(tmp_path / "lora")
    drawn = our_images(again, noise_for(model), 1.0)
    assert np.abs(ours.astype(int) - drawn).max() <= (not exact) and (ours != drawn).mean() < 1e-3


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "sd3"])
def test_a_full_fine_tune_is_a_pipeline_of_its_own(tinies, name, tmp_path):
    model = loaded(tinies[name])
    with torch.no_grad():
        for parameter in attach(model, Full()).values():
            parameter.mul_(1.05)
    model.save_pipeline(tmp_path / "model", model.module)
    ours = our_images(model, noise_for(model), 1.0)
    stock = stock_images(tmp_path / "model", tinies[name], noise_for(model), 1.0)
    assert np.abs(ours.astype(int) - stock).max() <= 1


@pytest.mark.parametrize("name", ["sd3", "wan_pair", "qwen_image_edit", "wan_image"])
def test_a_full_fine_tune_keeps_the_files_of_all_other_parts(name, tmp_path, monkeypatch):
    """None of them is loaded: a processor would ask for torchvision, and encoders for gigabytes."""
    config = replace(saved(name), dtype="bfloat16")
    model, base = config.load(), Path(config.path)
    trained = attach(model, Full())
    monkeypatch.setattr(Model, "pipeline", lambda *_, **__: pytest.fail("a part is loaded"))
    model.save_pipeline(tmp_path / "model", model.module)
    monkeypatch.undo()
    files = {file.relative_to(base) for file in base.glob("*/*")}
    others = {file for file in files if file.parts[0] not in model.network_parts(model.module)}
    assert {file.parts[0] for file in others} >= {"vae", "text_encoder", "tokenizer", "scheduler"}
    assert all((tmp_path / "model" / file).read_bytes() == (base / file).read_bytes() for file in others)
    with push.without_paths(tmp_path / "model") as copy:
        uploaded = {file.relative_to(copy) for file in copy.rglob("*") if file.is_file()}
    assert uploaded == {file.relative_to(tmp_path / "model") for file in tmp_path.glob("model/**/*") if file.is_file()}
    again = replace(config, path=str(tmp_path / "model"), dtype="float32").load()
    assert all(torch.equal(trained[name], p) for name, p in again.module.named_parameters())


@pytest.mark.parametrize("weights", [True, False])
def test_the_cache_is_asked_without_the_network(weights, monkeypatch, tmp_path):
    """By the libraries' own option: no connection is opened."""
    # Of the second the hub's library may ask for a list of agents, whatever it downloads.
    asks = "diffusers.pipelines.pipeline_utils.model_info" if weights else "socket.getaddrinfo"
    for opens in ("socket.socket.connect", asks):
        monkeypatch.setattr(opens, lambda *_, **__: pytest.fail("a connection is opened"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError):
        download("owner/model", None, weights, from_cache=True)


def test_push_knows_every_file_that_parts_of_pipelines_write():
    """By the names that transformers has for its files, and those that its tokenizers have."""
    names = ("CONFIG_NAME", "GENERATION_CONFIG_NAME", "IMAGE_PROCESSOR_NAME", "VIDEO_PROCESSOR_NAME", "PROCESSOR_NAME")
    written = {getattr(transformers.utils, name) for name in (*names, "SAFE_WEIGHTS_INDEX_NAME")}
    written |= {transformers.utils.hub.LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE}
    assert {"processor_config.json", "video_preprocessor_config.json"} < written <= set(push.CONFIGURATIONS)
    tokenizers = [getattr(transformers, name) for name in PARTS["transformers"] if "Tokenizer" in name]
    vocabularies = {file for kind in tokenizers for file in kind.vocab_files_names.values()}
    base = transformers.tokenization_utils_base
    vocabularies |= {getattr(base, name) for name in dir(base) if name.endswith("_FILE")}
    assert "merges.txt" in vocabularies and vocabularies <= {*push.CONFIGURATIONS, *push.AS_THEY_ARE}


def test_a_part_is_copied_without_weights_in_other_formats(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "blob").write_text("weights")
    for name in ("config.json", "model.bin", ".hidden"):
        (tmp_path / "part" / name).write_text(name)
    copy_part(tmp_path / "part", tmp_path / "old")
    assert {file.name for file in (tmp_path / "old").iterdir()} == {"config.json", "model.bin"}
    (tmp_path / "part" / "model.safetensors").symlink_to(tmp_path / "blob")  # as in the hub's cache
    copy_part(tmp_path / "part", tmp_path / "new")
    copied = {file.name: file.is_symlink() for file in (tmp_path / "new").iterdir()}
    assert copied == {"config.json": False, "model.safetensors": False}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_is_decoded_alike_however_many_are_decoded_with_it(tinies, name, monkeypatch):
    """Or two processes, which decode fewer at once, would score other pictures than one does."""
    monkeypatch.setattr("afterflow.models.vae.to_uint8", lambda x: x.numpy())  # before rounding hides it
    model = tinies[name].load()
    latents = torch.randn(19, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    together = model.decode(latents)
    for count in (1, 3, 8, 17):
        assert (model.decode(latents[:count]) == together[:count]).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_wide_picture_is_not_a_tall_one(tinies, name):
    config = replace(tinies[name], width=48)
    model = loaded(config)
    ours = our_images(model, noise_for(model), 4.0)
    assert ours.shape[-3:] == (32, 48, 3)
    pixels = np.zeros((1, *ours.shape[1:]), np.uint8)
    assert model.encode_images(pixels).shape[1:] == model.latent_shape
    assert np.abs(ours.astype(int) - stock_images(model.folder, config, noise_for(model), 4.0)).max() <= 1
    cond = encode_records(model, [{"prompt": prompt} for prompt in PROMPTS])
    assert model.stock_latents(cond, noise_for(model), STEPS, 4.0).shape == noise_for(model).shape


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_draws_nearly_the_same(tinies, name):
    """Parts that diffusers keeps in fp32 must not make the whole input fp32."""
    exact, half = (replace(tinies[name], dtype=dtype).load() for dtype in ("float32", "bfloat16"))
    x, t = noise_for(exact), torch.full((2,), 0.6)
    fields = []
    for model in (exact, half):
        cond = encode_records(model, [{"prompt": prompt} for prompt in PROMPTS])
        with torch.no_grad():
            fields.append(model.velocity(model.module)(x, t, cond).float())
    assert (fields[0] - fields[1]).norm() < 0.1 * fields[0].norm()


@pytest.mark.parametrize("name, dtype", [("sd3", "bfloat16"), ("flux2_klein", "float16"), ("wan", "bfloat16")])
def test_the_autoencoder_is_what_its_file_holds_in_every_precision(tinies, name, dtype):
    exact, half = (replace(tinies[name], dtype=each).load() for each in ("float32", dtype))
    stored = load_file(half.folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert half.module.dtype == getattr(torch, dtype)
    assert all(torch.equal(x, stored[name]) for name, x in half.vae.state_dict().items())
    assert half.image_key == exact.image_key


def test_without_a_schedule_of_its_own_a_rollout_takes_the_models(tinies):
    run = Run(FlowGRPO(JPEG, schedule=None), ShapesPrompts(count=4), tinies["flux"], name="own")
    setup = TrainingSetup.build(run, False)
    learning = Run(SFT(shift=None), ShapesImages(count=4), tinies["flux"], name="shift")
    assert TrainingSetup.build(learning, False).algorithm.shift == DynamicShift(64).warp
    assert setup.algorithm.schedule == setup.model.schedule == DynamicShift(64)
    assert setup.algorithm.plan(0, torch.Generator()).times.tolist() == setup.model.schedule.times(10).tolist()


def test_images_do_not_teach_a_model_of_longer_clips(tinies):
    run = Run(SFT(), ShapesImages(count=2, tags=("counting",)), tinies["wan"], name="long").with_options(batch=2)
    with pytest.raises(ValueError, match=r"set model.frames, 1 for images"):
        execute(run, "long")


def test_rows_of_a_batch_do_not_see_each_others_padding(tinies):
    """Qwen-Image pads prompts to the longest of a batch; a short one draws the same beside a long one."""
    model = tinies["qwen_image"].load()
    x, t = noise_for(model), torch.full((2,), 0.6)
    velocity = model.velocity(model.module)
    with torch.no_grad():
        both = velocity(x, t, encode_records(model, [{"prompt": prompt} for prompt in PROMPTS]))
        alone = velocity(x[1:], t[1:], encode_records(model, [{"prompt": PROMPTS[1]}]))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)


def test_prompts_of_any_length_pass_z_image_alike(tinies):
    """Its network fills prompts up to the longest of a batch; a short one draws the same beside a long one."""
    model = tinies["z_image"].load()
    x, t = noise_for(model), torch.full((2,), 0.6)
    velocity = model.velocity(model.module)
    cond = encode_records(model, [{"prompt": prompt} for prompt in PROMPTS])
    lengths = cond.positive.mask.sum(1).tolist()
    assert lengths[0] > 32 >= lengths[1] and not of_one_length(cond)
    with torch.no_grad():
        both = velocity(x, t, cond)
        assert torch.equal(both[1:], velocity(x[1:], t[1:], cond[torch.tensor([1])]))
        assert torch.equal(both, velocity(x.flip(0), t, cond[torch.tensor([1, 0])]).flip(0))


def test_z_image_guides_with_a_limit_as_its_own_pipeline_does(tinies):
    config = replace(tinies["z_image"], guidance_cap=0.9)
    model, free = loaded(config), loaded(tinies["z_image"])
    ours = our_images(model, noise_for(model), 4.0)
    assert np.abs(ours.astype(int) - stock_images(model.folder, config, noise_for(model), 4.0)).max() <= 1
    assert np.abs(ours.astype(int) - our_images(free, noise_for(model), 4.0)).max() > 1


def test_a_distilled_klein_draws_without_guidance(tmp_path, tinies):
    with torch.random.fork_rng():
        config = flux2_klein(tmp_path / "distilled", is_distilled=True)
    model, base = config.load(), tinies["flux2_klein"].load()
    assert (usual_guidance(config.path), usual_guidance(tinies["flux2_klein"].path)) == (1.0, 4.0)
    assert (model.schedule.usual_steps, base.schedule.usual_steps) == (4, 50)
    ours = our_images(model, noise_for(model), 1.0)
    assert np.abs(ours.astype(int) - stock_images(model.folder, config, noise_for(model), 1.0)).max() <= 1
    with pytest.raises(ConfigError, match="guidance scale 3: the model is distilled"):
        model.guided_velocity(3.0, 2)
    run = Run(FlowGRPO(JPEG), ShapesPrompts(count=4), config, name="guided").with_options(guidance_scale=3.0)
    with pytest.raises(ConfigError, match="take 1, or its base model"):
        execute(run, "guided")


@pytest.mark.parametrize("tokens", [64, 1024, 4300, 4301, 16384])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_schedule_of_klein_is_its_pipelines(tokens, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
    torch.testing.assert_close(Flux2Shift(tokens).times(steps), scheduler.sigmas, atol=1e-6, rtol=0)


def test_wan_is_trained_on_the_grid_of_its_own_scheduler(tinies):
    """UniPC starts a thousandth below pure noise; ours starts at it."""
    model = tinies["wan"].load()
    assert model.schedule == LinearShift(3.0)
    model.pipe.scheduler.set_timesteps(20)
    torch.testing.assert_close(model.schedule.times(20), model.pipe.scheduler.sigmas, atol=3e-3, rtol=0)


def test_a_pipeline_is_recognised_by_its_index(tinies):
    for config in tinies.values():
        assert type(pretrained(config.path, "float32", {})) is type(config)
    with pytest.raises(ValueError, match="Wan has no such option"):
        pretrained(tinies["wan"].path, "float32", {"size": 64})


def test_a_shipped_pipeline_draws_in_the_size_that_it_was_trained_at():
    for model in (TINY_WAN, TINY_KLEIN):
        assert pretrained(model.path, "float32", {}) == model and usual_guidance(model.path) == 1.0
        longer = pretrained(model.path, "float32", {"max_sequence_length": 20, "revision": None})
        assert longer == replace(model, max_sequence_length=20)


def test_there_is_a_released_model_of_every_family_to_count_and_to_try():
    """bench/memory.py and bench/real_layers.py go through it."""
    models = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "released.py"))["RELEASED"].values()
    assert {model.config for model in models} == set(CONFIGURATIONS)
    for model in models:
        family = CONFIGURATIONS[model.config]
        assert model.files["model_index.json"]["_class_name"] in (family.stock, *family.also)
        assert model.edits or family.takes_pictures != "must"


@pytest.mark.parametrize(
    "name, wrong, said",
    [
        ("sd3", {"size": 30}, "multiples of 8 pixels, say 24 or 32"),
        ("flux", {"size": 30}, "multiples of 4 pixels, say 28 or 32"),
        ("flux", {"width": 30}, "width = 30: this model draws multiples of 4 pixels"),
        ("flux2_klein", {"size": 30}, "multiples of 4 pixels, say 28 or 32"),
        ("z_image", {"width": 30}, "width = 30: this model draws multiples of 4 pixels"),
        ("qwen_image", {"size": 40}, "multiples of 16 pixels, say 32 or 48"),
        ("wan", {"width": 40}, "width = 40"),
        ("wan", {"frames": 4}, "say 1 or 5"),
        ("wan", {"max_sequence_length": 0}, "Wan reads 1 to 512 tokens"),
    ],
)
def test_a_size_that_a_model_cannot_draw_is_refused(tinies, name, wrong, said):
    with pytest.raises(ValueError, match=said):
        replace(tinies[name], **wrong).load()


def test_no_family_reads_more_tokens_than_its_pipeline_takes(tinies):
    for config in tinies.values():
        most = 1024 if type(config).__name__.startswith("QwenImage") else 512
        replace(config, max_sequence_length=most).load("meta")
        with pytest.raises(ValueError, match=rf"max_sequence_length = {most + 1}: .* reads . to {most} tokens"):
            replace(config, max_sequence_length=most + 1).load("meta")


@pytest.mark.parametrize("name", FAMILIES)
def test_one_pass_has_the_gradient_of_two(tinies, name):
    """Under guidance, with a KL, and with activations that are computed again in the backward pass."""
    options = dict(iterations=2, batch=2, chunk=4, learning_rate=1e-2, sample_every=0, guidance_scale=3.0)
    algorithm, data = replace(METHODS["flow_grpo"], beta=0.1), ShapesPrompts(count=4, tags=("counting",))
    run = Run(algorithm, data, tinies[name], LoRA(rank=2, alpha=4), name="two").with_options(**options)
    lines = {}
    for way, more in {
        "two": {"retained_rows": 0},
        "one": {},
        "again": {"gradient_checkpointing": True},
    }.items():
        folder = execute(run.with_options(name=way, **more), way).folder
        lines[way] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for way in ("one", "again"):
        assert lines[way][0]["ratio_max"] == 1.0
        for made, expected in zip(lines[way], lines["two"], strict=True):
            for metric in ("grad_norm", "policy_loss", "reward"):
                assert made[metric] == pytest.approx(expected[metric], rel=1e-3, abs=1e-6), (way, metric)
        assert lines[way][0]["grad_norm"] == pytest.approx(lines["two"][0]["grad_norm"], rel=2e-6)


def in_this_run(name, method):
    """Half of the matrix: two runs train every method on every family once.  One method trains on all in both."""
    return method == "flow_grpo" or in_this_half(list(FAMILIES).index(name) + list(METHODS).index(method))


CELLS = [(name, method) for name in FAMILIES for method in METHODS if in_this_run(name, method)]


def test_two_runs_cover_the_matrix(monkeypatch):
    halves = []
    for half in "01":
        monkeypatch.setenv("AFTERFLOW_MATRIX", half)
        halves.append({(name, method) for name in FAMILIES for method in METHODS if in_this_run(name, method)})
    assert halves[0] | halves[1] == {(name, method) for name in FAMILIES for method in METHODS}
    assert all({method for _, method in half} == set(METHODS) for half in halves)


@pytest.mark.parametrize("name, method", CELLS)
def test_every_method_trains_every_family(tinies, name, method):
    algorithm, config = METHODS[method], frames_of(method, tinies[name])
    # Without retained rows, so that the rollout is replayed.
    run = small_run(method, config, name="cell", inference_steps=2, retained_rows=0)
    # Pictures are drawn by every method alike, so one method draws them.
    run = run.with_options(sample_every=2 if method == "flow_grpo" else 0)
    folder = execute(run, "cell").folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["grad_norm"] > 0
    if "ratio_max" in lines[0]:
        assert lines[0]["ratio_max"] == lines[0]["ratio_mean"] == 1.0
    else:
        assert method in ("sft", "soar", "dpo", "flow_opd") or learns_from_finished(algorithm)
    before, cond = untouched(config)
    trained = copy.deepcopy(before)
    trained.load_lora(folder / "lora")
    x, t = noise_for(trained), torch.tensor([0.95, 0.5])  # of a pair, a time of either network
    with torch.no_grad():
        moved = trained.velocity(trained.module)(x, t, cond) - before.velocity(before.module)(x, t, cond)
    assert moved.isfinite().all() and moved.abs().max() > 1e-4
    if run.logging.sample_every:
        sheets = sorted(path.name for path in (folder / "samples").iterdir())
        assert ("step_000000.gif" in sheets) == (len(trained.latent_shape) == 4)
