"""FLUX.1-Kontext: what is drawn of a picture and of a text alone, what is saved, and what is refused."""

import copy
import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext as stock_module
from PIL import Image
from safetensors.torch import load_file, save_file

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli.main import main
from afterflow.data.prompts import PromptFile
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import estimate_cost
from afterflow.experiment.execute import execute
from afterflow.models.adapters import Full, LoRA, attach
from afterflow.models.families import pretrained, usual_guidance
from afterflow.models.flux import Flux
from afterflow.models.flux_kontext import FluxKontext
from afterflow.models.generate import decode_groups, encode_records, solve_ode
from afterflow.models.lora.files import COMFYUI, read_lora, write_lora
from afterflow.models.lora.layer_names import SAME_LAYERS
from afterflow.models.lora.pair_files import PAIR_FAMILIES
from afterflow.models.packing import pack_latents
from afterflow.models.wrappers import guided
from afterflow.system.errors import InputError
from afterflow.system.input_pictures import check_inputs, png_address, read_input
from tinies import built, keep_blocks

ROOT = Path(__file__).parents[2]
DIFFUSERS = "pytorch_lora_weights.safetensors"
JPEG = {"jpeg_compressibility": 1.0}
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return built("flux_kontext", tmp_path_factory.mktemp("kontext"))


@pytest.fixture(scope="module")
def loaded(config):
    """To be copied and not changed."""
    return config.load()


def records(height=32, width=32, edits=True):
    """Two requests, each about a picture of its own."""
    made = []
    for i, prompt in enumerate(("make it a red heart", "remove the sign")):
        draws = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(draws).resize((width, height), Image.Resampling.BICUBIC))
        made.append({"prompt": prompt} | ({"input": png_address(picture)} if edits else {}))
    return made


def noise_for(model):
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))


def our_latents(model, asked, guidance, steps):
    velocity = guided(model.velocity(model.module), guidance, model.combine)
    noise = noise_for(model)[:, None]
    return solve_ode(velocity, encode_records(model, asked), noise, model.schedule.times(steps))


def our_images(model, asked, guidance, steps):
    return decode_groups(model, our_latents(model, asked, guidance, steps))[:, 0].astype(int)


def stock_images(model, asked, guidance, steps, lora=None, auto_resize=False, **parts):
    """What a user gets who knows nothing of us, one request at a time."""
    pipe = FluxKontextPipeline.from_pretrained(model.folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    (height, width), images = model.drawn_size, []
    for record, start in zip(asked, noise_for(model)):
        made = pipe(
            image=Image.fromarray(read_input(record["input"])) if "input" in record else None,
            prompt=record["prompt"],
            negative_prompt="",
            true_cfg_scale=guidance,
            guidance_scale=model.config.embedded_guidance,
            num_inference_steps=steps,
            latents=pack_latents(start[None]),
            max_sequence_length=model.config.max_sequence_length,
            height=height,
            width=width,
            max_area=height * width,
            _auto_resize=auto_resize,
            output_type="np",
        )
        images.append(np.rint(255 * made[0][0]))
    return np.stack(images)


def assert_alike(ours, stock):
    """One grey level where rounding to a byte falls the other way."""
    assert np.abs(ours - stock).max() <= 1 and (ours != stock).mean() < 0.01


@pytest.mark.parametrize(
    "steps, guidance, edits, width",
    [
        (1, 1.0, True, 32),
        (1, 1.0, False, 32),
        (3, 1.0, True, 48),
        (3, 4.0, True, 32),
        (3, 4.0, False, 32),
    ],
)
def test_the_ode_draws_what_the_stock_pipeline_draws(config, steps, guidance, edits, width):
    model, asked = replace(config, width=width).load(), records(width=width, edits=edits)
    ours = our_images(model, asked, guidance, steps)
    assert ours.shape == (2, 32, width, 3) and ours.std() > 5
    assert_alike(ours, stock_images(model, asked, guidance, steps))
    without = [{"prompt": record["prompt"]} for record in asked]
    assert ((ours != our_images(model, without, guidance, steps)).mean() > 0.1) == edits
    made = model.stock_latents(encode_records(model, asked), noise_for(model), steps, guidance)
    torch.testing.assert_close(made, our_latents(model, asked, guidance, steps)[:, 0], atol=2e-4, rtol=1e-3)


def test_in_a_size_of_its_training_the_pipeline_scales_a_picture_as_we_do(loaded, monkeypatch):
    monkeypatch.setattr(stock_module, "PREFERRED_KONTEXT_RESOLUTIONS", [(32, 32)])
    asked = records(64, 64)
    ours = our_images(loaded, asked, 1.0, 2)
    assert_alike(ours, stock_images(loaded, asked, 1.0, 2, auto_resize=True))
    kept = stock_images(loaded, asked, 1.0, 2)  # twice the size of what is drawn
    assert np.abs(ours - kept).max() > 1


@pytest.mark.parametrize("rank, alpha", [(4, 8), (8, 3)])
def test_a_saved_lora_draws_the_same_in_the_stock_pipeline(loaded, tmp_path, rank, alpha):
    model, asked = copy.deepcopy(loaded), records()
    for parameter in attach(model, LoRA(rank, alpha)).values():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    model.save_lora(tmp_path / "lora")
    ours, stock = our_images(model, asked, 1.0, 2), stock_images(model, asked, 1.0, 2, tmp_path / "lora")
    assert_alike(ours, stock)
    exact = alpha == 2 * rank
    trained = stock_images(model, asked, 1.0, 2, transformer=model.module)
    assert np.abs(trained - stock).max() <= (not exact) and (trained != stock).mean() < 1e-3
    assert np.abs(ours - our_images(loaded, asked, 1.0, 2)).mean() > 0.5
    again = copy.deepcopy(loaded)
    again.load_lora(tmp_path / "lora")
    assert np.abs(ours - our_images(again, asked, 1.0, 2)).max() <= (not exact)


def test_a_full_fine_tune_is_a_pipeline_of_its_own(loaded, tmp_path):
    model, asked = copy.deepcopy(loaded), records()
    with torch.no_grad():
        for parameter in attach(model, Full()).values():
            parameter.mul_(1.05)
    model.save_pipeline(tmp_path / "model", model.module)
    again = FluxKontext(str(tmp_path / "model"), size=32, max_sequence_length=16).load()
    assert_alike(our_images(model, asked, 1.0, 2), stock_images(again, asked, 1.0, 2))


def test_other_programs_know_its_layers_by_the_names_of_flux(loaded, tmp_path):
    model = copy.deepcopy(loaded)
    for parameter in attach(model, LoRA(4, 8)).values():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    model.save_lora(tmp_path / "kontext")
    lora = read_lora(tmp_path / "kontext")
    assert (lora.family, lora.rank, lora.alpha) == ("FluxKontext", 4, 8)
    write_lora(tmp_path / "flux", lora.layers, "Flux", lora.alpha)
    for file in (DIFFUSERS, COMFYUI):
        ours, flux = (load_file(tmp_path / name / file) for name in ("kontext", "flux"))
        assert ours.keys() == flux.keys() and all(torch.equal(ours[key], flux[key]) for key in ours)


@pytest.mark.parametrize("family, first", [pair for pair in SAME_LAYERS.items() if pair[0] not in PAIR_FAMILIES])
def test_a_file_that_says_no_family_is_of_the_first_with_its_layers(tinies, tmp_path, family, first):
    config = next(config for config in tinies.values() if type(config).__name__ == first)
    model = config.load()
    for parameter in attach(model, LoRA(2, 2)).values():
        torch.nn.init.normal_(parameter)
    model.save_lora(tmp_path / "lora")
    save_file(load_file(tmp_path / "lora" / DIFFUSERS), tmp_path / "theirs.safetensors")
    assert read_lora(tmp_path / "theirs.safetensors").family == first
    assert read_lora(tmp_path / "theirs.safetensors", family).family == family


def test_the_folder_says_which_family_it_is(config):
    found = pretrained(config.path, "bfloat16", {"size": 32})
    assert type(found) is FluxKontext and found.embedded_guidance == 2.5 and usual_guidance(config.path) == 1.0
    with pytest.raises(InputError, match="is a FluxKontextPipeline; this model needs a FluxPipeline"):
        Flux(config.path).load()


def prompt_file(file, lines):
    file.write_text("\n".join(map(json.dumps, lines)))
    return PromptFile(str(file))


def test_prompts_that_it_cannot_draw_are_refused_in_one_sentence(config, tmp_path):
    one, other = records()
    two = [{"prompt": "both", "input": [one["input"], other["input"]]}]
    for lines, said in (
        (two, "prompt 'both' has 2 input pictures, and FluxKontextPipeline takes 1; name fewer under input"),
        ([one, {"prompt": "plain"}], "prompt 'plain' has 0 input pictures and prompt 'make it a red heart' has 1"),
    ):
        run = Run(FlowGRPO(JPEG), prompt_file(tmp_path / "list.jsonl", lines), config, name="bad")
        with pytest.raises(InputError, match=said) as caught:
            execute(run, "bad")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="2 input pictures, and FluxKontextPipeline takes 1"):
        encode_records(config.load(), two)
    assert check_inputs([one], "may", "X", 1) == 1 and check_inputs([], "may", "X", 1) == 0


def test_it_trains_on_texts_alone_and_a_picture_is_in_the_plan(config, tmp_path):
    flops = []
    for name, edits in (("edits", True), ("texts", False)):
        data = prompt_file(tmp_path / f"{name}.jsonl", records(edits=edits))
        run = Run(FlowGRPO(JPEG, steps=2, group=2), data, config, LoRA(2, 4), name=name)
        run = run.with_options(batch=2, chunk=4, iterations=1, retained_rows=0, sample_every=0, guidance_scale=3.0)
        flops.append(estimate_cost(run).flops["forward only"])
        line = json.loads((execute(run, name).folder / "metrics.jsonl").read_text().splitlines()[0])
        assert line["ratio_max"] == line["ratio_mean"] == 1.0 and line["grad_norm"] > 0
    assert flops[0] > 1.1 * flops[1]


def test_the_released_configuration_is_planned_without_weights(tmp_path, capsys):
    released = runpy.run_path(str(ROOT / "bench" / "released.py"))
    released["write_configurations"](released["FLUX_KONTEXT"], tmp_path / "kontext")
    model = FluxKontext(str(tmp_path / "kontext"), size=1024).load("meta")
    assert model.latent_shape == (16, 128, 128) and model.text_shape == (512, 4096, 768)
    assert sum(parameter.numel() for parameter in model.module.parameters()) == pytest.approx(11.9e9, rel=0.01)
    keep_blocks(tmp_path / "kontext", num_layers=2, num_single_layers=2)
    prompt_file(tmp_path / "edits.jsonl", records(64, 64))
    words = ["--base", str(tmp_path / "kontext"), "--prompts", str(tmp_path / "edits.jsonl"), "--model.size", "512"]
    assert main(["train", "flux_mix_grpo", "--plan", *words]) == 0
    assert "frozen and trained weights" in capsys.readouterr().out
