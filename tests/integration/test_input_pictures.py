"""Prompts about pictures: what is drawn, learnt and kept, and what is refused."""

import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as qwen_edit
from huggingface_hub import ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import AutoTokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from afterflow.algorithms.diffusion_nft import DiffusionNFT
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.sft import SFT
from afterflow.cli.main import main
from afterflow.cli.train import Parts
from afterflow.cli.vote import stored_pictures
from afterflow.data.edits import EditImages, EditPrompts
from afterflow.data.image_folders import list_images
from afterflow.data.images import HubImages, ImageFolder
from afterflow.data.pairs import HubPairs, PairFolder
from afterflow.data.prompts import PromptFile
from afterflow.evaluation.image_store import add_images
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import estimate_cost
from afterflow.experiment.doctor import ANYTHING, trial_records
from afterflow.experiment.execute import execute
from afterflow.experiment.prompt_checks import check_input_pictures
from afterflow.models.families import FAMILIES, pretrained
from afterflow.models.flux2_klein import Flux2Klein
from afterflow.models.generate import decode_groups, encode_records, read_inputs, solve_ode
from afterflow.models.packing import pack_latents
from afterflow.models.pipeline import Model
from afterflow.models.qwen_image_edit import resized
from afterflow.models.wan import Wan
from afterflow.models.wan_image import WanImage, WanImageModel
from afterflow.models.wrappers import guided
from afterflow.recipes import RECIPES
from afterflow.recipes.editing_shapes import TINY_KLEIN
from afterflow.rewards.votes.judge import Votes
from afterflow.sampling.schedules import SD3Grid
from afterflow.system.errors import ConfigError, InputError
from afterflow.system.input_pictures import check_inputs, input_names, locate_inputs, png_address, read_input
from afterflow.system.own_folders import MAKER
from afterflow.system.pictures import fit_picture, picture_digest
from tinies import built

pytestmark = pytest.mark.usefixtures("own_folder")
STEPS = 3
EDITS = ("eval", "owner/model", "--suite", "edits", "--prompts", "7")
JPEG = {"jpeg_compressibility": 1.0}
EDITING = FlowGRPO({"edits_strict": 1.0}, steps=3, group=2)


def picture(seed, size=64):
    """A picture of smooth blobs, uint8 (size, size, 3)."""
    draws = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(draws).resize((size, size), Image.Resampling.BICUBIC))


def edits(folder, count=4, inputs=1, size=64):
    """A folder of edits: metadata.jsonl with inputs, prompts and targets."""
    folder.mkdir()
    lines = []
    for i in range(count):
        names = [f"in_{i}_{n}.png" for n in range(inputs)]
        for n, name in enumerate(names):
            Image.fromarray(picture(10 * i + n, size)).save(folder / name)
        Image.fromarray(picture(100 + i, size)).save(folder / f"out_{i}.png")
        prompt = f"make it {'brighter' if i % 2 else 'darker'}"
        lines.append({"input": names[0] if inputs == 1 else names, "prompt": prompt, "target": f"out_{i}.png"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def prompts_of(folder):
    """The prompts of a folder of edits, as a list beside it."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "list.jsonl").write_text(
        "\n".join(json.dumps({k: line[k] for k in ("input", "prompt")}) for line in lines)
    )
    return str(folder / "list.jsonl")


def records(count=2, inputs=1):
    addresses = [[png_address(picture(10 * i + n)) for n in range(inputs)] for i in range(count)]
    return [{"prompt": f"edit {i}", "input": of[0] if inputs == 1 else of} for i, of in enumerate(addresses)]


@pytest.fixture(scope="module")
def klein(tinies):
    return replace(tinies["flux2_klein"], size=64)


@pytest.mark.parametrize("guidance, inputs", [(1.0, 1), (4.0, 2)])
def test_the_ode_draws_of_pictures_what_the_stock_pipeline_draws(klein, guidance, inputs):
    model, asked = klein.load(), records(inputs=inputs)
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = encode_records(model, asked)
    velocity = guided(model.velocity(model.module), guidance, model.combine)
    latents = solve_ode(velocity, cond, noise[:, None], model.schedule.times(STEPS))
    ours = decode_groups(model, latents)[:, 0]
    pipe = getattr(diffusers, model.stock).from_pretrained(model.folder)
    pipe.set_progress_bar_config(disable=True)
    for row, record in enumerate(asked):
        told = {"num_inference_steps": STEPS, "guidance_scale": guidance, "height": 64, "width": 64}
        pictures = [Image.fromarray(read_input(name)) for name in input_names(record)]
        told |= {"latents": noise[row : row + 1], "max_sequence_length": klein.max_sequence_length}
        stock = np.rint(255 * pipe(image=pictures, prompt=record["prompt"], output_type="np", **told)[0][0])
        assert np.abs(ours[row].astype(int) - stock).max() <= 1 and (ours[row] != stock).mean() < 0.01
    without = encode_records(model, [{"prompt": record["prompt"]} for record in asked])
    plain = decode_groups(model, solve_ode(velocity, without, noise[:, None], model.schedule.times(STEPS)))[:, 0]
    assert (ours != plain).mean() > 0.1
    made = model.stock_latents(cond, noise, STEPS, guidance)
    torch.testing.assert_close(made, latents[:, 0], atol=2e-4, rtol=1e-3)


def stock_editor(model):
    """The stock pipeline, with the processor that transformers loads with torchvision alone."""
    processor = object.__new__(Qwen2VLProcessor)
    processor.tokenizer = AutoTokenizer.from_pretrained(model.folder / "tokenizer")
    processor.image_processor = Qwen2VLImageProcessorPil.from_pretrained(model.folder / "processor")
    processor.video_processor, processor.chat_template = None, None
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id, processor.video_token_id = processor.tokenizer.convert_tokens_to_ids(
        [processor.image_token, processor.video_token]
    )
    pipe = getattr(diffusers, model.stock).from_pretrained(model.folder, processor=processor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance, inputs, width", [(1.0, 1, None), (4.0, 2, None), (4.0, 1, 64)])
def test_the_ode_edits_as_stock_qwen_image_edit_does(tmp_path, monkeypatch, guidance, inputs, width):
    """Prompts are read with their pictures, in a batch as one by one; the empty prompt too."""
    monkeypatch.setattr(qwen_edit, "VAE_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(qwen_edit, "CONDITION_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr("afterflow.models.qwen_image_edit.READER_SIZE", 64)
    config = replace(built("qwen_image_edit", tmp_path / "pipeline"), width=width)
    model, about = config.load(), records(inputs=inputs)
    about[1]["prompt"] += " and more"
    height, wide = model.drawn_size
    for record in about:
        names = [png_address(fit_picture(read_input(name), 2 * height, 2 * wide)) for name in input_names(record)]
        record["input"] = names[0] if inputs == 1 else names
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = encode_records(model, about)
    assert len(cond.negative.sequence) == 2
    velocity = guided(model.velocity(model.module), guidance, model.combine)
    latents = solve_ode(velocity, cond, noise[:, None], model.schedule.times(STEPS))
    ours = decode_groups(model, latents)[:, 0]
    pipe = stock_editor(model)
    for row, record in enumerate(about):
        told = {"num_inference_steps": STEPS, "true_cfg_scale": guidance, "height": height, "width": wide}
        told |= {"negative_prompt": ""} if guidance > 1 else {}
        pictures = [Image.fromarray(read_input(name)) for name in input_names(record)]
        packed = pack_latents(noise[row : row + 1])
        stock = pipe(image=pictures, prompt=record["prompt"], latents=packed, output_type="np", **told)[0][0]
        assert np.abs(ours[row].astype(int) - np.rint(255 * stock)).max() <= 1
    other = [record | {"input": records(4, inputs)[3]["input"]} for record in about]
    assert not torch.allclose(encode_records(model, other).positive.sequence, cond.positive.sequence, atol=1e-3)
    torch.testing.assert_close(model.stock_latents(cond, noise, STEPS, guidance), latents[:, 0], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_ode_moves_a_picture_as_stock_wan_does(tmp_path, guidance):
    """The first frame is the picture's, whatever noise it starts from, and the network is told so token by token."""
    config = built("wan_image", tmp_path / "pipeline")
    model, about = config.load(), records()
    model.schedule = SD3Grid(3.0)
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = encode_records(model, about)
    velocity = guided(model.velocity(model.module), guidance, model.combine)
    latents = solve_ode(velocity, cond, noise[:, None], model.schedule.times(STEPS))
    pictures = cond.positive.pictures[cond.texts][:, 0]
    torch.testing.assert_close(latents[:, 0, :, :1], pictures, atol=1e-5, rtol=1e-4)
    ours = decode_groups(model, latents)[:, 0]
    pipe = getattr(diffusers, model.stock).from_pretrained(model.folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    told = {"num_inference_steps": STEPS, "guidance_scale": guidance, "height": 32, "width": 32, "num_frames": 5}
    told |= {"max_sequence_length": 16, "output_type": "np"}
    for row, record in enumerate(about):
        picture = Image.fromarray(fit_picture(read_input(record["input"]), 32, 32))
        # Encoded, because it reads prompts with ftfy, which may not be there.
        told |= {"prompt_embeds": cond.positive.sequence[row : row + 1]}
        told |= {"negative_prompt_embeds": cond.negative.sequence}
        stock = pipe(image=picture, latents=noise[row : row + 1], **told)[0][0]
        assert np.abs(ours[row].astype(int) - np.rint(255 * stock)).max() <= 1


def test_wan_learns_from_a_first_frame(tmp_path):
    folder = edits(tmp_path / "edits")
    config = built("wan_image", tmp_path / "pipeline")
    algorithm = FlowGRPO(JPEG, steps=STEPS, group=2, beta=0.01)
    run = Run(algorithm, PromptFile(str(folder / "metadata.jsonl")), config, name="moved")
    run = run.with_options(iterations=1, batch=2, chunk=4, sample_every=1, inference_steps=2, retained_rows=0)
    line = json.loads((execute(run, "moved").folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["ratio_max"] == 1.0 and line["grad_norm"] > 0


def test_a_dropped_prompt_keeps_its_picture(klein):
    model = klein.load()
    cond = encode_records(model, records())
    dropped = cond.dropped(torch.tensor([True, False]))
    assert torch.equal(dropped.embedding().pictures, cond.embedding().pictures)
    assert torch.equal(dropped.embedding().sequence[0], cond.negative.sequence[0])
    assert dropped.records() == cond.records() == dropped.unprompted().records()


@pytest.fixture
def editors(klein, tmp_path, monkeypatch):
    """The families that edit, by name."""
    monkeypatch.setattr("afterflow.models.qwen_image_edit.READER_SIZE", 64)
    built_here = {"qwen": "qwen_image_edit", "kontext": "flux_kontext"}
    return {"klein": klein} | {name: built(kind, tmp_path / kind) for name, kind in built_here.items()}


@pytest.mark.parametrize(
    "name, inputs, method",
    [
        *[("klein", 1, "sft"), ("klein", 2, "flow_grpo"), ("klein", 1, "nft")],
        *[("kontext", 1, "sft"), ("kontext", 1, "flow_grpo"), ("kontext", 1, "nft")],
        *[("qwen", 1, "sft"), ("qwen", 1, "flow_grpo")],
    ],
)
def test_methods_learn_from_pictures(editors, tmp_path, name, inputs, method):
    config, folder = editors[name], edits(tmp_path / "edits", inputs=inputs)
    algorithm = {
        "sft": SFT(dropout=0.5),
        "flow_grpo": FlowGRPO(JPEG, steps=STEPS, group=2, beta=0.01),
        "nft": DiffusionNFT(JPEG, steps=STEPS, group=2),
    }[method]
    data = ImageFolder(str(folder)) if method == "sft" else PromptFile(str(folder / "metadata.jsonl"))
    run = Run(algorithm, data, config, name="edits")
    run = run.with_options(iterations=2, batch=2, chunk=4, learning_rate=1e-2, sample_every=2, inference_steps=2)
    run = run.with_options(retained_rows=0, guidance_scale=1.0 if method == "nft" else 3.0)
    lines = (execute(run, "edits").folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["grad_norm"] > 0
    if method == "flow_grpo":
        assert json.loads(lines[0])["ratio_max"] == 1.0


def left_of(sheet, images, scale=1):
    """Which pictures, uint8 (H, W, 3), stand in the first row of cells of a sheet."""
    H, W = images[0].shape[:2]
    row = [
        sheet[6 : 6 + H * scale : scale, 6 + i * (W * scale + 6) :][:, : W * scale : scale] for i in range(len(images))
    ]
    return [bool((cell == image).all()) for cell, image in zip(row, images)]


def test_sample_draws_about_the_pictures_that_are_named(klein, tmp_path, capsys):
    own, other = picture(1), picture(2)
    Image.fromarray(own).save(tmp_path / "own.png")
    Image.fromarray(other).save(tmp_path / "other.png")
    sheets = []
    for name in ("own.png", "other.png"):
        words = [klein.path, "make it red", "--size", "64", "-n", "1", "--steps", "2", "--out", f"{name}.sheet.png"]
        assert main(["sample", *words, "--input", str(tmp_path / name)]) == 0
        sheets.append(np.asarray(Image.open(f"{name}.sheet.png")))
    assert left_of(sheets[0], [own], 1) == [True] and left_of(sheets[1], [other], 1) == [True]
    assert (sheets[0][6:70, 76:140] != sheets[1][6:70, 76:140]).any(), "the same noise, about another picture"
    assert main(["sample", klein.path, "make it red", "--size", "64", "--input", "absent.png"]) == 2
    assert "absent.png" in capsys.readouterr().err


def test_sheets_show_what_an_edit_began_with(klein, tmp_path):
    folder = edits(tmp_path / "edits")
    run = Run(FlowGRPO(JPEG, steps=STEPS, group=2), PromptFile(prompts_of(folder)), klein, name="sheets")
    run = run.with_options(batch=2, chunk=4, iterations=1, sample_every=1, inference_steps=2)
    execute(run)
    sheet = np.asarray(Image.open("runs/sheets/samples/step_000000.png"))
    assert left_of(sheet, [picture(0)], 96 // 64) == [True]
    assert sheet.shape[1] == 6 + 10 * (64 + 6), "two prompts of five cells in a row"
    assert ModelCard.load("runs/sheets/lora/README.md").data.pipeline_tag == "image-to-image"


def test_a_suite_of_edits_is_shown_as_before_base_and_tuned(klein, tmp_path):
    folder = edits(tmp_path / "edits")
    words = ["--suite", "drawbench", "--prompts-from", prompts_of(folder), "--rewards", "jpeg_compressibility"]
    words += ["--against", klein.path, "--size", 64, "--images", 1, "--steps", 2, "--grid", "grid.png", "--guidance", 1]
    assert main(["eval", klein.path, *map(str, words)]) == 0
    stored = np.asarray(Image.open("evals/drawbench/tuned/00000/samples/0000.png"))
    sheet = np.asarray(Image.open("grid.png"))
    cells = [sheet[6:70, 6 + i * 68 :][:, :64] for i in range(3)]
    assert (cells[0] == picture(0)).all() and (cells[1] == stored).all() and (cells[2] == stored).all()
    assert (sheet[70:74, 6:200] == 255).all(), "no line under scores that are no verdicts"


def test_a_plan_counts_the_tokens_of_input_pictures(klein, tmp_path):
    folder = edits(tmp_path / "edits")
    texts = tmp_path / "texts.txt"
    texts.write_text("a\nb\nc\nd\n")
    flops = []
    for data in (PromptFile(str(folder / "metadata.jsonl")), PromptFile(str(texts))):
        run = Run(FlowGRPO(JPEG, steps=STEPS, group=2), data, klein, name="plan").with_options(batch=2, iterations=1)
        flops.append(estimate_cost(run).flops["forward only"])
    assert flops[0] > 1.1 * flops[1]


def test_a_model_of_texts_takes_no_pictures_and_one_of_pictures_needs_them():
    with pytest.raises(InputError, match="prompt 'edit 0' has an input picture, and FluxPipeline draws from text"):
        check_inputs(records(), "never", "FluxPipeline")
    with pytest.raises(InputError, match="prompt 'plain' has no input picture, and X edits pictures; name one"):
        check_inputs([*records(), {"prompt": "plain"}], "must", "X")
    with pytest.raises(InputError, match="prompt 'plain' has 0 input pictures and prompt 'edit 0' has 1"):
        check_inputs([*records(), {"prompt": "plain"}], "may", "X")
    assert check_inputs(records(inputs=2), "must", "X") == 2 and check_inputs([{"prompt": "a"}], "may", "X") == 0
    assert {kind.takes_pictures for kind in FAMILIES.values()} == {"never", "may", "must"}
    with pytest.raises(InputError, match="prompt 'edit 0' has 2 input pictures, and X takes 1; name fewer under input"):
        check_inputs(records(inputs=2), "must", "X", WanImageModel.most_pictures)


@pytest.mark.parametrize(
    "value, said",
    [
        (3, "input = 3; it names a picture"),
        ([""], "it names a picture, or a list"),
        ({"a": 1}, "it names a picture, or a list"),
        ("absent.png", "absent.png is not there"),
        ("../outside.png", "leads out of"),
        ("/etc/hostname", "leads out of|is not there"),
        ("data:image/png;base64,!!!", "not base64"),
        ("data:image/png;base64,é", "not base64"),
        ("data:image/svg+xml;base64,AAAA", "of data addresses only data:image/png;base64, is read"),
        ("data:image/png;base64,AAAA", "not a readable PNG"),
        ("text.png", "not a readable image"),
    ],
)
def test_an_input_that_cannot_be_used_is_refused_in_one_sentence(klein, tmp_path, value, said):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "text.png").write_text("no picture")
    Image.fromarray(picture(0)).save(tmp_path / "outside.png")
    (folder / "list.jsonl").write_text(json.dumps({"prompt": "brighter", "input": value}))
    run = Run(FlowGRPO(JPEG), PromptFile(str(folder / "list.jsonl")), klein, name="bad")
    with pytest.raises(InputError, match=said) as caught:
        execute(run, "bad")
    assert "\n" not in str(caught.value)


def test_people_are_not_asked_about_edits_whose_beginning_they_do_not_see(klein, tmp_path):
    data = PromptFile(prompts_of(edits(tmp_path / "edits")))
    run = Run(PrefGRPO(steps=STEPS, group=2), data, klein, judge=Votes("runs/votes"), name="votes")
    with pytest.raises(InputError, match="its page does not show what an edit began with"):
        execute(run.with_options(batch=2, chunk=4, iterations=1))
    store = tmp_path / "store"
    add_images(store, 0, records(1)[0], np.stack([picture(1), picture(2)]))
    with pytest.raises(InputError, match="about an input picture, which the page does not show"):
        stored_pictures(store, store)


def test_a_target_that_is_its_input_is_refused(klein, tmp_path):
    folder = edits(tmp_path / "edits")
    (folder / "out_1.png").write_bytes((folder / "in_1_0.png").read_bytes())
    run = Run(SFT(), ImageFolder(str(folder)), klein, name="same").with_options(batch=2, chunk=4)
    with pytest.raises(InputError, match=r"metadata.jsonl:2: the input .*in_1_0.png is the same picture as its target"):
        execute(run, "same")


@pytest.mark.parametrize("kind", ["json", "tar", "parquet"])
def test_a_target_that_is_its_input_is_refused_in_every_layout(tmp_path, kind):
    Image.fromarray(picture(0)).save(tmp_path / "in.png")
    record, content = {"caption": "make it red", "input": "in.png"}, (tmp_path / "in.png").read_bytes()
    if kind == "json":
        shutil.copy(tmp_path / "in.png", tmp_path / "out.png")
        (tmp_path / "out.json").write_text(json.dumps(record))
    elif kind == "tar":
        with tarfile.open(tmp_path / "data.tar", "w") as tar:
            for name, data in (("out.png", content), ("out.json", json.dumps(record).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        table = {"image": [content], **{name: [value] for name, value in record.items()}}
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(table), tmp_path / "data.parquet")
    with pytest.raises(InputError, match=r"the input .*in.png is the same picture as its target"):
        list(ImageFolder(str(tmp_path), caption="caption").images(0, (64, 64)))


def test_a_line_names_the_picture_to_learn_from_once(tmp_path):
    for i, name in enumerate(("a", "b")):
        Image.fromarray(picture(i)).save(tmp_path / f"{name}.png")
    for beside in ({}, {"input": "a.png"}):
        line = {"file_name": "a.png", "target": "b.png", "text": "make it blue"} | beside
        (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
        with pytest.raises(InputError, match=r'metadata.jsonl:1: "file_name" and "target" both name'):
            list_images(tmp_path, "text")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "target": "cat", "text": "a cat"}))
    assert len(list_images(tmp_path, "text").entries) == 1, "a label"


def test_wan_from_a_picture_draws_at_least_one_frame_more(tmp_path):
    config = built("wan_image", tmp_path / "pipeline")
    with pytest.raises(ConfigError, match="frames = 1: the first frame is given"):
        replace(config, frames=1).load("meta")


def test_a_lowest_reward_that_cannot_be_given_is_told_before_weights_are_read(klein, tmp_path, monkeypatch):
    folder = edits(tmp_path / "edits")
    data = ImageFolder(str(folder), min_reward={"pixel_preservation": 0.5})
    run = Run(SFT(), data, klein, name="masks").with_options(batch=2, chunk=4)
    check_input_pictures(replace(run, data=replace(data, min_size=8)), [])  # some may be left out
    monkeypatch.setattr(Flux2Klein, "load", lambda self, device="cpu": pytest.fail("weights are read"))
    with pytest.raises(InputError, match=r"mask.*; min_reward pixel_preservation needs that"):
        execute(run, "masks")


@pytest.mark.parametrize(
    "changed", [{"data": EditImages(count=70), "algorithm": SFT()}, {"data": EditPrompts(), "algorithm": EDITING}]
)
def test_the_editing_world_is_drawn_in_its_size_which_is_told_before_weights_are_read(monkeypatch, changed):
    run = replace(Run(SFT(), EditImages(), TINY_KLEIN, name="size"), **changed)
    run = run.with_options(model=replace(TINY_KLEIN, size=32), batch=2, chunk=4)
    load = Flux2Klein.load
    read = lambda self, device="cpu": load(self, "meta") if device == "meta" else pytest.fail("weights are read")
    monkeypatch.setattr(Flux2Klein, "load", read)
    with pytest.raises(ConfigError, match=r"64 x 64 px, and tiny_klein draws 32 x 32; add --model\.size 64"):
        execute(run, "size")


def test_a_picture_is_not_replaced_by_its_edit(tmp_path, capsys):
    drawn = PngInfo()
    drawn.add_text("Software", MAKER)
    Image.fromarray(picture(0)).save("grid.png", pnginfo=drawn)
    assert main(["sample", "tiny_klein", "make it red", "--input", "./grid.png"]) == 2
    assert "--out grid.png: it is the input" in capsys.readouterr().err


def test_a_shipped_base_keeps_its_size_in_a_recipe_of_its_family():
    for name, recipe in (("tiny_klein", "klein_edit_nft"), ("tiny", "sd35_soar"), ("tiny_wan", "wan_branch_grpo")):
        base = Parts(base=name).put_into(RECIPES[recipe]()).model
        assert replace(base, dtype="float32") == pretrained(name, "float32", {})


def test_a_text_model_refuses_a_folder_of_edits_before_weights_are_read(tinies, tmp_path):
    folder = edits(tmp_path / "edits")
    run = Run(FlowGRPO(JPEG), PromptFile(str(folder / "metadata.jsonl")), tinies["flux"], name="text")
    with pytest.raises(InputError, match="draws from text alone; take a model that edits"):
        execute(run, "text")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_archive_names_no_picture_outside_of_its_folder(tmp_path, kind):
    outside, folder = tmp_path / "outside.png", tmp_path / "data"
    folder.mkdir()
    Image.fromarray(picture(0)).save(outside)
    row = {"text": "brighter", "input": str(outside)}
    if kind == "tar":
        with tarfile.open(folder / "a.tar", "w") as tar:
            for name, data in (("x.png", outside.read_bytes()), ("x.json", json.dumps(row).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = {"image": [outside.read_bytes()], **{name: [value] for name, value in row.items()}}
        parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
    with pytest.raises(InputError, match=r"leads out of|is not there"):
        ImageFolder(str(folder)).listing()


def test_an_empty_input_is_none_and_a_list_of_the_hub_names_no_file():
    assert input_names({"prompt": "a", "input": ""}) == ()
    with pytest.raises(InputError, match=r"row 3: input 'a.png' is a file's name"):
        locate_inputs({"prompt": "a", "input": "a.png"}, None, "row 3")
    with pytest.raises(InputError, match=r"row 3: prompt 'a': input = 3"):
        locate_inputs({"prompt": "a", "input": 3}, None, "row 3")


def test_wan_from_a_picture_loads_the_folder_of_wan_from_text(tmp_path):
    """The released folder may name either pipeline."""
    config = built("wan_ti2v", tmp_path / "pipeline")
    options = {name: getattr(config, name) for name in ("height", "width", "frames", "max_sequence_length")}
    model = WanImage(config.path, **options).load()
    assert type(model.pipe).__name__ == "WanImageToVideoPipeline"
    assert encode_records(model, records()).positive.pictures.shape == (2, 1, 6, 1, 2, 2)


def test_a_request_about_several_pictures_is_read_once(klein, monkeypatch):
    model, seen = klein.load(), []
    encode = Model.encode
    monkeypatch.setattr(Model, "encode", lambda self, texts: seen.append(list(texts)) or encode(self, texts))
    about = [record | {"prompt": "the same"} for record in records(3)]
    cond = encode_records(model, about)
    assert seen == [["the same", ""]] and len(cond.positive.sequence) == 3
    assert not torch.equal(cond.positive.pictures[0], cond.positive.pictures[1])


@pytest.mark.parametrize("value, said", [("../outside.png", "leads out of"), ("absent.png", "absent.png is not there")])
def test_a_pair_names_no_picture_outside_of_its_folder(tmp_path, value, said):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("a", "b", "../outside"):
        Image.fromarray(picture(len(name))).save(folder / f"{name}.png")
    line = {"prompt": "brighter", "chosen": "a.png", "rejected": "b.png", "input": value}
    (folder / "pairs.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=rf"pairs.jsonl:1: .*{said}.*; correct input"):
        PairFolder(str(folder)).pair_listing()


@pytest.mark.parametrize("source, listing", [(HubImages, "listing"), (HubPairs, "pair_listing")])
def test_a_data_set_names_no_file_of_this_machine(tmp_path, monkeypatch, source, listing):
    datasets = pytest.importorskip("datasets")
    data = tmp_path / "data"
    data.mkdir()
    encoded = {"bytes": (edits(tmp_path / "edits") / "out_0.png").read_bytes(), "path": None}
    row = {"image": encoded, "caption": "brighter", "input": str(tmp_path / "edits" / "in_0_0.png")}
    row |= {"jpg_0": encoded, "jpg_1": encoded, "label_0": 1.0, "chosen": encoded, "rejected": encoded}
    features = {name: datasets.Image() for name in row if isinstance(row[name], dict)}
    rows = datasets.Dataset.from_list([row])
    for name, feature in features.items():
        rows = rows.cast_column(name, feature)
    for module in ("images", "pairs"):
        monkeypatch.setattr(f"afterflow.data.{module}.load_hub_dataset", lambda *about: rows)
    with pytest.raises(InputError, match=r"\[0\]: input '.*' is a file's name, and here only data:"):
        getattr(source("owner/name"), listing)()


@pytest.mark.parametrize(
    "family, words, said",
    [
        ("qwen_image_edit", ["sample", "owner/model", "make it red"], "has no input picture, and QwenImageEditPlus"),
        ("flux", ["sample", "owner/model", "make it red", "--input", "in.png"], "FluxPipeline draws from text alone"),
        ("flux_kontext", ["sample", "owner/model", "red", "--input", *["in.png"] * 2], "KontextPipeline takes 1"),
        ("flux2_klein", ["sample", "owner/model", "red", "--size", "30"], "draws multiples of"),
        ("qwen_image_edit", ["eval", "owner/model"], "has no input picture, and QwenImageEditPlus"),
        (
            "flux2_klein",
            ["eval", "owner/model", "--suite", "drawbench", "--prompts-from", "cut.jsonl", "--rewards", *JPEG],
            "not a readable image",
        ),
        ("flux", [*EDITS], "FluxPipeline draws from text alone"),
        ("flux2_klein", [*EDITS, "--size", "32"], "judges 64 x 64 px, and owner/model draws 32 x 32"),
    ],
)
def test_sample_and_eval_refuse_before_weights_are_fetched(tinies, tmp_path, monkeypatch, capsys, family, words, said):
    def download(path, revision, weights):
        assert not weights, "weights are fetched"
        return tinies[family].path if family in tinies else built(family, tmp_path / "pipeline").path

    monkeypatch.setattr("afterflow.models.pipeline_files.download", download)
    Image.fromarray(picture(0)).save("in.png")
    Path("cut.png").write_bytes(b"no picture")
    Path("cut.jsonl").write_text(json.dumps({"prompt": "make it red", "input": "cut.png"}))
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_the_pipeline_of_wan_5b_begins_with_a_picture_where_prompts_have_one(tmp_path, monkeypatch):
    """The released folder is of the pipeline from text."""
    folder, config = edits(tmp_path / "edits"), built("wan_ti2v", tmp_path / "pipeline")
    size = {"height": 32, "width": 32, "frames": 5}
    assert type(pretrained(config.path, "float32", size)) is Wan
    assert type(pretrained(config.path, "float32", size, inputs=True)) is WanImage
    plain = built("wan", tmp_path / "plain")
    assert type(pretrained(plain.path, "float32", size, inputs=True)) is Wan, "2.1 has no time for every token"
    run = Run(FlowGRPO(JPEG, steps=STEPS, group=2), PromptFile(prompts_of(folder)), config, name="moved")
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n")
    for images in (None, str(folder)):
        given = run if images is None else replace(run, algorithm=SFT(), data=ImageFolder(images))
        base = Parts(base=config.path).put_into(given)
        assert type(base.model) is WanImage and vars(base.model) == vars(config)
    assert type(Parts(base=config.path, prompts=str(texts)).put_into(run).model) is Wan
    loaded = []
    monkeypatch.setattr(WanImage, "load", lambda self, device: loaded.append(self) or WanImageModel(self, device))
    options = ["--height", "32", "--width", "32", "--frames", "5", "--max-sequence-length", "16", "--steps", "2"]
    Image.fromarray(picture(0)).save("in.png")
    assert main(["sample", config.path, "it moves", "-n", "1", "--input", "in.png", *options]) == 0 and loaded
    words = ["--suite", "drawbench", "--prompts-from", prompts_of(folder), "--rewards", "jpeg_compressibility"]
    assert main(["eval", config.path, *words, "--images", "1", "--guidance", "1", *options]) == 0 and len(loaded) == 2


def test_doctor_tries_an_editor_on_its_own_edits(tmp_path):
    folder = edits(tmp_path / "edits")
    run = Run(SFT(), ImageFolder(str(folder)), Flux2Klein("klein"), name="doctor")
    assert [record["prompt"] for record in trial_records(run)[:2]] == ["make it darker", "make it brighter"]
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.fromarray(picture(0)).save(plain / "a.png")
    (plain / "a.txt").write_text("a caption")
    assert trial_records(replace(run, data=ImageFolder(str(plain)))) == ANYTHING


def test_input_pictures_are_kept_as_they_are_seen_and_encoded_in_batches(tmp_path, monkeypatch):
    """Keys of the cache are those of whole pictures, as before, so that nothing is encoded anew."""
    monkeypatch.setattr("afterflow.models.qwen_image_edit.READER_SIZE", 64)
    config = built("qwen_image_edit", tmp_path / "pipeline")
    model, large = config.load(), [picture(i, 200)[:150] for i in range(3)]
    inputs = [[png_address(pixels)] for pixels in large]
    read = read_inputs(model, inputs)
    side = config.picture_size
    assert {tuple(seen.shape for seen in views) for views in read.views} == {((64, 64, 3), (side, side, 3))}
    held = lambda array: array.nbytes if array.base is None else memoryview(array.base).nbytes
    assert all(held(seen) == seen.nbytes for views in read.views for seen in views), "none of them is a view of all"
    parts = [*(picture_digest(model.fit_input(pixels)) for pixels in large), str(read.rows.tolist())]
    assert read.digest == hashlib.sha256(" ".join(parts).encode()).hexdigest()
    monkeypatch.setattr("afterflow.models.generate.MOST_DECODED", 1)
    few = read_inputs(model, inputs)
    assert len(few.views.first) == 1 and few.digest == read.digest
    for index, views in enumerate(read.views):
        assert all(np.array_equal(seen, again) for seen, again in zip(views, few.views[index], strict=True))
    few.views.names[2] = inputs[0][0]
    with pytest.raises(InputError, match="the picture changed while it was encoded"):
        few.views[2]
    counts, encode = [], type(model).encode_images
    monkeypatch.setattr("afterflow.models.pipeline.batch_size", lambda pixels: 2)
    monkeypatch.setattr(
        type(model), "encode_images", lambda self, images: counts.append(len(images)) or encode(self, images)
    )
    latents = model.encode_pictures(read)
    assert counts == [2, 1]
    alone = [encode(model, np.asarray(resized(model.fit_input(pixels), side, side))[None]) for pixels in large]
    torch.testing.assert_close(latents[:, 0], torch.cat(alone), atol=1e-5, rtol=1e-4)
