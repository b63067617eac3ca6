"""Images with captions: what is read, what is refused, and what is encoded only once."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.data.images import HubImages, ImageFolder, ShapesImages
from afterflow.data.prompts import ShapesPrompts
from afterflow.envs.shapes import prompts as shapes
from afterflow.envs.shapes.render import render_image
from afterflow.experiment import latent_dataset as imageset
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3


@pytest.fixture
def model(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return SD3(pipeline, max_sequence_length=0).load()


def latents_of(data, model):
    """The latents and the records of images of one shape."""
    [bucket], _ = imageset.gather_buckets(data, model, 0)
    return bucket.latents, bucket.records


def picture(colour, size=(40, 60)):
    return Image.new("RGB", size, colour)


@pytest.fixture
def folder(tmp_path):
    """Three images of one colour each, with captions."""
    path = tmp_path / "images"
    path.mkdir()
    lines = []
    for name in ("red", "green", "blue"):
        picture(name).save(path / f"{name}.png")
        lines.append({"file_name": f"{name}.png", "text": f"all {name}", "tag": "colors"})
    write(path, lines)
    return path


def write(path, lines):
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_folder_gives_its_middle_squares_with_their_captions(folder):
    stripes = np.zeros((40, 64, 3), np.uint8)
    stripes[:, 12:52] = 255  # the middle 40 of 64
    Image.fromarray(stripes).save(folder / "red.png")
    first, *rest = ImageFolder(str(folder)).images(0, (32, 32))
    assert first.record == {"prompt": "all red", "tag": "colors"}
    assert first.pixels().shape == (32, 32, 3) and (first.pixels() > 240).all()
    assert (rest[1].pixels() == [0, 0, 255]).all()


def test_a_photo_is_turned_upright(folder):
    upper = np.zeros((40, 40, 3), np.uint8)
    upper[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(upper).save(folder / "red.png", exif=exif)
    pixels = next(ImageFolder(str(folder)).images(0, (32, 32))).pixels()
    assert (pixels[:14] == 0).all() and (pixels[-14:] == 255).all()


def test_a_data_set_gives_what_the_folder_does(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    of_hub = list(HubImages(str(folder)).images(0, (32, 32)))
    of_folder = {p.digest: p for p in ImageFolder(str(folder)).images(0, (32, 32))}
    assert len(of_hub) == 3
    for each in of_hub:
        twin = of_folder[each.digest]
        assert each.record["prompt"] == twin.record["prompt"] and np.array_equal(each.pixels(), twin.pixels())
    with pytest.raises(ValueError, match="no such folder, and an id of the hub reads owner/name"):
        next(HubImages("my_foldr").images(0, (32, 32)))
    with pytest.raises(ValueError, match="split 'tset' could not be loaded"):
        next(HubImages(str(folder), split="tset").images(0, (32, 32)))
    with pytest.raises(ValueError, match="it has no column 'caption', only image, text, tag"):
        next(HubImages(str(folder), caption="caption").images(0, (32, 32)))


def test_latents_are_encoded_once_and_follow_the_content(folder, model, monkeypatch):
    data, calls = ImageFolder(str(folder)), []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda images: calls.append(len(images)) or encode(images))
    latents = latents_of(data, model)[0]
    again = latents_of(data, model)[0]
    assert calls == [3] and torch.equal(latents, again)
    # As many at once: a normalisation of one flat colour amplifies how convolutions of another batch size round.
    torch.testing.assert_close(latents[2], encode(np.full((3, 32, 32, 3), [0, 0, 255], np.uint8))[2])
    picture("white").save(folder / "blue.png")
    changed = latents_of(data, model)[0]
    assert calls == [3, 3] and not torch.equal(changed[2], latents[2]) and torch.allclose(changed[:2], latents[:2])
    latents_of(replace(data, cache=False), model)
    assert calls == [3, 3, 3]


def test_curation_keeps_what_reaches_every_reward(folder, model, caplog):
    caplog.set_level("INFO", "afterflow")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(folder / "green.png")
    data = ImageFolder(str(folder), min_reward={"jpeg_compressibility": -1.0})
    for _ in range(2):  # the second time from the cache
        latents, records = latents_of(data, model)
        assert [record["prompt"] for record in records] == ["all red", "all blue"] and len(latents) == 2
        assert "2 of 3 images: 0 cannot be read, 1 are below min_reward" in caplog.text
        caplog.clear()
    with pytest.raises(ValueError, match="none of 3 images is left"):
        latents_of(replace(data, min_reward={"jpeg_compressibility": 0.0}), model)


def test_pictures_of_the_world_are_curated_by_its_verifier(tmp_path, model):
    """A sign's own text is no caption, and a caption may stand beside a prompt of another wording."""
    rng = np.random.default_rng(0)
    records = [shapes.draw("train", tag, rng, 32) for tag in ("text", "counting", "text")]
    path = tmp_path / "world"
    path.mkdir()
    pixels = [render_image(record, 32, rng) for record in records]
    for i, image in enumerate([pixels[0], pixels[1], pixels[1]]):  # the last shows another prompt
        Image.fromarray(image).save(path / f"{i}.png")
    write(path, [{"file_name": f"{i}.png", "caption": r["prompt"], **r, "prompt": "?"} for i, r in enumerate(records)])
    data = ImageFolder(str(path), caption="caption", min_reward={"shapes_strict": 1.0})
    latents, kept = latents_of(data, model)
    assert kept == records[:2] and len(latents) == 2


def test_what_was_left_out_is_read_again(folder, model):
    (folder / "green.png").write_bytes(b"")
    latents_of(ImageFolder(str(folder), unreadable="skip"), model)
    with pytest.raises(ValueError, match="not a readable image"):
        latents_of(ImageFolder(str(folder)), model)


def test_an_unreadable_image_stops_the_run_or_is_counted(folder, model, caplog):
    caplog.set_level("INFO", "afterflow")
    whole = (folder / "green.png").read_bytes()
    for broken in (b"", b"no image", whole[: len(whole) // 2]):
        (folder / "green.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"green\.png: not a readable image .*--data.unreadable skip"):
            latents_of(ImageFolder(str(folder)), model)
        latents, records = latents_of(ImageFolder(str(folder), unreadable="skip"), model)
        assert [record["prompt"] for record in records] == ["all red", "all blue"] and len(latents) == 2
        assert "2 of 3 images: 1 cannot be read" in caplog.text or "left out: 1 that cannot be read" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    "lines, sentence",
    [
        ([{"file_name": "red.png"}], r"metadata.jsonl:1: no caption under 'text'"),
        ([{"file_name": "red.png", "text": " "}], "no caption under 'text'"),
        ([{"text": "red"}], 'needs a "file_name"'),
        (
            [{"file_name": "red.png", "text": "a"}, {"file_name": "grey.png", "text": "a"}],
            r"jsonl:2: .*grey.png is not",
        ),
        ([], "metadata.jsonl is empty"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(folder, lines, sentence):
    write(folder, lines)
    with pytest.raises(ValueError, match=sentence):
        list(ImageFolder(str(folder)).images(0, (32, 32)))


def test_a_folder_without_captions_or_with_small_images_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no metadata\.jsonl in it"):
        list(ImageFolder(str(tmp_path)).images(0, (32, 32)))
    picture("red", (31, 200)).save(folder / "red.png")
    with pytest.raises(ValueError, match=r"red\.png: 31 x 200 px, smaller than the 32 x 32 px that the model draws"):
        next(ImageFolder(str(folder)).images(0, (32, 32))).pixels()
    (folder / "metadata.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"metadata\.jsonl:1: not JSON"):
        list(ImageFolder(str(folder)).images(0, (32, 32)))


def test_shapes_are_rendered_at_the_size_of_the_model():
    pictures = list(ShapesImages(count=6, tags=("colors",)).images(0, (32, 32)))
    again = list(ShapesImages(count=6, tags=("colors",)).images(0, (32, 32)))
    assert [p.digest for p in pictures] == [p.digest for p in again] and len({p.digest for p in pictures}) == 6
    with pytest.raises(ValueError, match=r"data\.size = 64: the model draws 32 px"):
        next(ShapesImages(count=6, size=64).images(0, (32, 32)))


@pytest.mark.parametrize("algorithm", [SFT(num_noises=2), SOAR(points=2)])
def test_a_run_learns_from_a_folder(algorithm, folder, pipeline, model):
    run = Run(
        algorithm, ImageFolder(str(folder)), SD3(pipeline, max_sequence_length=0), LoRA(rank=4, alpha=8), name="short"
    ).with_options(
        iterations=3,
        batch=4,
        chunk=2,
        inference_steps=2,
        sample_every=2,
        held_out=ShapesPrompts("test", count=5),
        eval_every=1,
        eval_rewards=("shapes_fidelity",),
    )
    result = execute(run, "short").folder
    lines = [json.loads(line) for line in (result / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and (result / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert all({"eval/shapes_fidelity", "eval/diversity", "eval/std"} <= set(line) for line in lines)
    loss = "flow_matching" if isinstance(algorithm, SFT) else "correction_loss"
    assert all(np.isfinite(line[loss]) and line[loss] > 0 for line in lines)


def test_a_run_learns_from_buckets_of_several_shapes(folder, pipeline, model, caplog):
    """Latents of a batch have one shape, each about its picture's own."""
    caplog.set_level("INFO", "afterflow")
    picture("red", (64, 40)).save(folder / "red.png")
    picture("blue", (40, 80)).save(folder / "blue.png")
    picture("green", (40, 40)).save(folder / "green.png")
    data = ImageFolder(str(folder), buckets=True)
    buckets, _ = imageset.gather_buckets(data, model, 0)
    unit, sides = model.pixel_unit, {tuple(bucket.latents.shape[2:]) for bucket in buckets}
    assert len(sides) == len(buckets) == 3 and all(f * model.scale_factor % unit == 0 for side in sides for f in side)
    assert sorted(record["prompt"] for bucket in buckets for record in bucket.records) == [
        f"all {colour}" for colour in ("blue", "green", "red")
    ]
    again, _ = imageset.gather_buckets(data, model, 0)  # from the cache
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(buckets, again))
    run = Run(SFT(), data, SD3(pipeline, max_sequence_length=0), LoRA(rank=4, alpha=8), name="buckets").with_options(
        iterations=6, batch=2, chunk=2, sample_every=0
    )
    result = execute(run, "buckets")
    lines = [json.loads(line) for line in (result / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(np.isfinite(line["flow_matching"]) for line in lines)
    assert "| images | 3 |" in (result / "lora" / "README.md").read_text()


def test_the_model_card_says_which_images_were_left_out(folder, pipeline, model):
    picture("red", (20, 40)).save(folder / "red.png")
    data = ImageFolder(str(folder), min_size=32)
    run = Run(SFT(), data, SD3(pipeline, max_sequence_length=0), LoRA(rank=4, alpha=8), name="few").with_options(
        iterations=1, batch=2, chunk=2, sample_every=0
    )
    card = (execute(run, "few") / "lora" / "README.md").read_text()
    assert "| images | 2; left out: 1 smaller than 32 px |" in card


def test_rewards_to_curate_by_must_exist(pipeline):
    with pytest.raises(ValueError, match="jpeg_compressibility"):
        Run(SFT(), ShapesImages(min_reward={"jpeg_compresibility": 1.0}), SD3(pipeline))


def test_bytes_of_a_data_set_are_read_where_they_are(tmp_path):
    from afterflow.data.hub_datasets import encoded_bytes

    buffer = io.BytesIO()
    picture("red").save(buffer, "PNG")
    (tmp_path / "red.png").write_bytes(buffer.getvalue())
    assert encoded_bytes({"bytes": buffer.getvalue(), "path": None}, "x/y") == buffer.getvalue()
    assert encoded_bytes({"bytes": None, "path": str(tmp_path / "red.png")}, str(tmp_path)) == buffer.getvalue()
    assert (
        encoded_bytes(None, "x/y") == encoded_bytes({"bytes": None, "path": "gone.png"}, "x/y") == b""
    )  # which `cut` calls unreadable
