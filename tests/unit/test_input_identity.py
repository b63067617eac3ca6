"""A prompt is its text and the contents of its pictures, wherever these lie, for all that is split or kept."""

import json
import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tinies
from afterflow.algorithms.base import Scores
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.sft import SFT
from afterflow.cli.compare import Tree
from afterflow.cli.evaluate import Eval
from afterflow.data.images import ImageFolder
from afterflow.data.pairs import PairFolder, SampledPairs
from afterflow.data.prompts import PromptFile
from afterflow.evaluation.image_set import check_same_inputs, inputs_digest
from afterflow.evaluation.image_store import (
    add_images,
    content_digest,
    holds_images,
    open_store,
    read_records,
    update_records,
)
from afterflow.experiment.config import Run
from afterflow.experiment.contents import run_contents
from afterflow.experiment.cost_estimate import prompt_bytes
from afterflow.experiment.first_lines import held_out_words
from afterflow.experiment.picture_store import PictureStore
from afterflow.experiment.prompt_checks import (
    check_input_pictures,
    held_out_records,
    known_records,
    prompt_records,
    without_share,
)
from afterflow.experiment.run_folder import RunFolder
from afterflow.experiment.sampled_pairs import PairSampler
from afterflow.models.flux2_klein import Flux2Klein
from afterflow.models.qwen_image_edit import QwenImageEdit
from afterflow.rewards.base import ImagePairs, RewardModels, remember_last_batch
from afterflow.rewards.clip import check_image
from afterflow.rewards.edited import as_drawn, check_mask, picture_size, stays
from afterflow.rewards.registry import load_reward
from afterflow.rewards.vlm.judge import question_keys
from afterflow.system.errors import ConfigError, InputError
from afterflow.system.input_pictures import check_readable, png_address, read_input, with_digests
from afterflow.system.pictures import read_picture
from afterflow.train.reward_history import RewardHistory
from afterflow.view.picture_sets import PictureSet

REQUEST = "remove the cup"


def write(file, grey, size=8):
    """Write a picture of one grey level, at another time than before."""
    file.parent.mkdir(exist_ok=True, parents=True)
    then = file.stat().st_mtime_ns if file.is_file() else 0
    Image.fromarray(np.full((size, size, 3), grey, np.uint8)).save(file)
    os.utime(file, ns=(then + 10**9, then + 10**9))
    return file


def edit_list(folder, count=8, requests=1):
    """Write a list of edits, each about a picture of its own, and return its path."""
    lines = [{"prompt": f"{REQUEST} {i % requests}", "input": write(folder / f"{i}.png", i).name} for i in range(count)]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "list.jsonl")


def edit_run(folder, **options):
    path = edit_list(folder, **options)
    run = Run(FlowGRPO({"jpeg_compressibility": 1.0}, beta=0.0), PromptFile(path), name="edits")
    return run.with_options(held_out_share=0.25, eval_every=1)


@pytest.mark.parametrize("requests", [1, 3])
def test_a_share_of_pictures_is_held_out_where_requests_repeat(tmp_path, requests):
    """0 of 8 were held out for one request, and all records of a text that was."""
    run = edit_run(tmp_path / "edits", requests=requests)
    trained, measured = prompt_records(run), held_out_records(run)
    names = [[Path(record["input"]).name for record in of] for of in (trained, measured)]
    assert [len(of) for of in names] == [6, 2] and len({*names[0], *names[1]}) == 8


def test_the_split_of_prompts_without_pictures_is_what_it_was():
    """The four are those that the version before chose."""
    records = [{"prompt": f"prompt {i}"} for i in range(40)]
    assert [record["prompt"] for record in without_share(records, 0.1)[1]] == [
        *("prompt 1", "prompt 21", "prompt 29", "prompt 31")
    ]


def test_a_list_that_moves_holds_out_the_same_pictures(tmp_path):
    run = edit_run(tmp_path / "one", count=20)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    moved = replace(run, data=PromptFile(str(tmp_path / "other/list.jsonl")))
    names = [[Path(r["input"]).name for r in held_out_records(of)] for of in (run, moved)]
    assert names[0] == names[1] and len(names[0]) == 5


def test_a_tree_is_of_the_picture_that_is_named(tmp_path):
    run = edit_run(tmp_path / "edits", count=3, requests=2)
    known, single = (known_records(run, f"{REQUEST} {i}") for i in (0, 1))
    assert len(known) == 2 and len(single) == 1
    with pytest.raises(ConfigError, match=r"about 2 pictures; name one with --input, such as .*\.png"):
        Tree("runs/a", f"{REQUEST} 0").record_among(known)
    assert Tree("runs/a", f"{REQUEST} 1").record_among(single) == single[0]
    for name in ("0.png", "2.png"):
        record = Tree("runs/a", f"{REQUEST} 0", input=(str(tmp_path / "edits" / name),)).record_among(known)
        assert Path(record["input"]).name == name
    assert Tree("runs/a", "new").record_among([]) == {"prompt": "new"}


def test_every_picture_of_a_request_counts_as_an_embedding(tmp_path):
    counts = SimpleNamespace(text_shape=(2, 3, None), input_shape=(1, 2, 2))
    run = edit_run(tmp_path / "edits")
    assert prompt_bytes(run, counts) == (8 + 1) * 2 * 3 * 4 + 8 * 4 * 4  # type: ignore[arg-type]


def test_held_out_prompts_that_are_trained_on_are_counted_by_their_pictures(tmp_path):
    one, other = (write(tmp_path / f"{i}.png", i) for i in range(2))
    trained = [{"prompt": REQUEST, "input": str(one)}]
    held_out = [{"prompt": REQUEST, "input": str(path)} for path in (one, other)]
    run = edit_run(tmp_path / "edits").with_options(held_out=PromptFile("held.jsonl"), held_out_share=0.0)
    assert "1 of which are trained on" in held_out_words(SimpleNamespace(run=run), trained, held_out)  # type: ignore[arg-type]


def test_rewards_of_a_request_are_remembered_for_each_picture_and_wherever_it_lies(tmp_path):
    records = [{"prompt": REQUEST, "input": str(write(tmp_path / f"{i}.png", i))} for i in range(2)]
    history = RewardHistory(2)
    scores = history.attach(Scores({"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, {}), records)
    assert scores.prompt.tolist() == [0, 1]
    assert history.recall(["a"], records)["a"].tolist() == [[1, 2], [3, 4]]
    again = RewardHistory(2)
    again.load(json.loads(json.dumps(history.state())))
    moved = {**records[1], "input": str(shutil.copy(records[1]["input"], tmp_path / "moved.png"))}
    assert again.recall(["a"], [moved])["a"].tolist() == [[3, 4]]
    plain = RewardHistory(1)
    plain.add({"a": torch.ones(1, 1)}, [{"prompt": "a star"}])
    assert plain.state() == {"a": {"a star": [1.0]}}, "as checkpoints have it"


def digests_of(record, folder):
    """Return what is kept by the record of an edit: name → digest, key or questions."""
    add_images(folder, 0, record, np.zeros((1, 8, 8, 3), np.uint8))
    data = SampledPairs(prompts=PromptFile("list.jsonl"), weights={"jpeg_compressibility": 1.0})
    run = Run(FlowGRPO({"jpeg_compressibility": 1.0}, beta=0.0), PromptFile("list.jsonl"), name="edits")
    (folder / "pipeline/vae").mkdir(parents=True, exist_ok=True)
    sampler = PairSampler(run, data, SimpleNamespace(folder=folder / "pipeline"), None)  # type: ignore[arg-type]
    pairs = ImagePairs(np.zeros((1, 8, 8, 3), np.uint8), [record], [0], [0], [0])  # type: ignore[arg-type]
    contents = run_contents(run, [record], [record], folder / "pipeline")
    return {
        "scores": content_digest(folder / "00000", record),
        "images": inputs_digest([record]),
        "pairs": sampler.cache_file(torch.tensor([0]), [record]).name,
        "prompts": contents["prompts"],
        "held-out prompts": contents["held-out prompts"],
        "verdicts": question_keys(pairs),
    }


def test_what_is_kept_of_an_edit_goes_by_the_content_of_its_picture_and_not_by_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "in.png", 1)
    record = {"prompt": REQUEST, "input": [str(file)], "mask": str(write(tmp_path / "mask.png", 0))}
    before = digests_of(record, tmp_path / "kept")
    assert digests_of(record, tmp_path / "kept") == before
    moved = {"prompt": REQUEST, "input": [str(shutil.copy(file, tmp_path / "new.png"))], "mask": record["mask"]}
    assert digests_of(moved, tmp_path / "kept") == before
    write(file, 2)
    assert [name for name, value in digests_of(record, tmp_path / "kept").items() if value == before[name]] == []
    write(file, 1)
    write(tmp_path / "mask.png", 255)
    assert digests_of(record, tmp_path / "kept")["scores"] != before["scores"]


def test_what_is_kept_of_a_picture_to_be_like_goes_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "like.png", 1)
    record = {"prompt": "a star", "image": str(file)}
    kept = ("scores", "pairs", "prompts", "held-out prompts")
    before = digests_of(record, tmp_path / "kept")
    moved = {**record, "image": str(shutil.copy(file, tmp_path / "moved.png"))}
    assert digests_of(moved, tmp_path / "kept") == before
    write(file, 2)
    after = digests_of(record, tmp_path / "kept")
    assert all(after[name] != before[name] for name in kept)


def test_a_picture_to_be_like_is_found_beside_its_list_or_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    beside, here = write(tmp_path / "lists/a.png", 1), write(tmp_path / "b.png", 2)
    names = ["a.png", "b.png", "none.png", str(here), "../b.png", "data:image/png;base64,AA"]
    lines = [json.dumps({"prompt": "x", "image": name}) for name in names]
    (tmp_path / "lists/prompts.jsonl").write_text("\n".join(lines))
    found = [record["image"] for record in PromptFile("lists/prompts.jsonl").records(0)]
    assert found == [str(beside), *names[1:]]


@pytest.mark.parametrize("name", ["like.png", "cafe\u0301.png"])
def test_a_picture_to_be_like_that_was_exchanged_is_seen(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tinies.clip(tmp_path / "clip")
    reward = load_reward("image_similarity", RewardModels(weights={"clipscore": str(folder)}))
    noise = lambda seed: np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    record, file = {"prompt": "x", "image": name}, tmp_path / unicodedata.normalize("NFC", name)
    for seed in (0, 1):
        Image.fromarray(noise(seed)).save(file)
        os.utime(file, (seed, seed))
        check_image(record)
        assert reward(noise(seed)[None], [record]).values[0] == pytest.approx(1, abs=1e-5)
    file.write_bytes(b"no picture")
    with pytest.raises(InputError, match="not a readable image"):
        check_image(record)


def test_a_batch_about_a_picture_that_was_exchanged_is_another_batch(tmp_path):
    calls = []
    ask = remember_last_batch(lambda images, records: calls.append(1) or [len(calls)])
    file, images = write(tmp_path / "in.png", 1), np.zeros((1, 8, 8, 3), np.uint8)
    for record in ({"prompt": REQUEST, "input": str(file)}, {"prompt": "x", "image": str(file)}):
        calls.clear()
        write(file, 1)
        assert ask(images, [record]) == ask(images, [dict(record)]) == [1]
        write(file, 2, size=16)
        assert ask(images, [record]) == [2]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a star", "image": "no file"},
        {"prompt": "a star", "mask": "any value", "b": 1, "a": 2},
        {"prompt": REQUEST, "input": png_address(np.zeros((8, 8, 3), np.uint8))},
        {"prompt": REQUEST, "input": ["/not/there.png"], "mask": "/nor/this.png"},
        {"prompt": REQUEST, "input": "no name " * 100},
    ],
)
def test_records_without_files_keep_their_digests(record):
    assert json.dumps(with_digests(record)) == json.dumps(record)


def test_a_folder_of_edits_is_not_gone_on_with_about_other_pictures(tmp_path):
    file = write(tmp_path / "in.png", 1)
    records = [{"prompt": REQUEST, "input": str(file)}]
    folder = tmp_path / "evals"
    settings = {"prompts": [REQUEST], **inputs_digest(records)}
    open_store(folder, settings)
    open_store(folder, settings | {"steps": 2})  # nothing was drawn yet
    open_store(folder, settings)
    update_records(folder, records)
    add_images(folder, 0, records[0], np.zeros((1, 8, 8, 3), np.uint8))
    open_store(folder, settings)
    shutil.rmtree(folder / "00000")
    (folder / "scores.json").write_text("{}")
    open_store(folder, settings | {"steps": 2})  # its pictures were deleted, to be drawn again
    open_store(folder, settings)
    update_records(folder, records)
    add_images(folder, 0, records[0], np.zeros((1, 8, 8, 3), np.uint8))
    check_same_inputs(folder, records)
    write(file, 2)
    with pytest.raises(InputError, match="drawn with inputs = "):
        open_store(folder, {"prompts": [REQUEST], **inputs_digest(records)})
    with pytest.raises(InputError, match="its input pictures changed since it was drawn"):
        check_same_inputs(folder, records)
    file.unlink()
    check_same_inputs(folder, records)  # rewards that need it say so
    assert inputs_digest([{"prompt": "a star"}]) == {}


def test_a_folder_of_edits_has_copies_of_what_they_are_about_and_may_move(tmp_path):
    file, mask = write(tmp_path / "in.PNG", 1), write(tmp_path / "mask.png", 0)
    address = png_address(np.zeros((8, 8, 3), np.uint8))
    records = [
        {"prompt": REQUEST, "tag": "all", "input": str(file), "mask": str(mask)},
        {"prompt": REQUEST, "tag": "all", "input": [str(file), address]},
        {"prompt": REQUEST, "tag": "all"},
    ]
    update_records(tmp_path / "drawn", records)
    for i, record in enumerate(records):
        add_images(tmp_path / "drawn", i, record, np.zeros((1, 8, 8, 3), np.uint8))
    before = [content_digest(tmp_path / "drawn" / f"{i:05}", record) for i, record in enumerate(records)]
    (tmp_path / "drawn").rename(tmp_path / "moved")
    for name in (file, mask):
        name.unlink()
    read = read_records(tmp_path / "moved")
    assert read[0]["input"] == str(tmp_path / "moved/00000/input/0.PNG") and read_input(read[0]["mask"]).max() == 0
    assert read[1]["input"] == [str(tmp_path / "moved/00001/input/0.PNG"), address] and read[2] == records[2]
    assert [content_digest(tmp_path / "moved" / f"{i:05}", record) for i, record in enumerate(read)] == before


@pytest.mark.parametrize("key", ["input", "mask", "image"])
@pytest.mark.parametrize("name", ["../../secret.png", "{folder}/secret.png", "gone.png", "a cat on a mat", "x" * 300])
def test_a_folder_from_elsewhere_names_no_picture_outside_of_a_prompts_own(tmp_path, monkeypatch, name, key):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "secret.png", 1)
    add_images(tmp_path / "theirs", 0, {"prompt": REQUEST}, np.zeros((1, 8, 8, 3), np.uint8))
    record = {"prompt": REQUEST, "input": "data:", key: name.format(folder=tmp_path)}
    (tmp_path / "theirs/00000/metadata.jsonl").write_text(json.dumps(record))
    [read] = read_records(tmp_path / "theirs")
    assert Path(read[key]).is_relative_to(tmp_path / "theirs/00000") and with_digests(read)[key] == read[key]
    with pytest.raises(InputError, match="not a readable image"):
        check_readable(read[key])


def test_copies_and_records_follow_what_prompts_are_about(tmp_path):
    file, mask = write(tmp_path / "in.png", 1), write(tmp_path / "mask.png", 0)
    record = {"prompt": REQUEST, "tag": "all", "input": str(file), "mask": str(mask), "image": str(file)}
    folder = tmp_path / "drawn"
    update_records(folder, [record])
    assert sorted(path.name for path in folder.rglob("*.png")) == ["0.png", "image.png", "mask.png"]
    assert not holds_images(folder), "no record before there are pictures"
    add_images(folder, 0, record, np.zeros((1, 8, 8, 3), np.uint8))
    write(mask, 255)
    (folder / "00000/input/0.png").write_bytes(b"damaged")
    (folder / "00000/metadata.jsonl").write_text(json.dumps(record))  # as an earlier version wrote it
    update_records(folder, [record])
    [read] = read_records(folder)
    assert read_input(read["mask"]).min() == 255 and read_input(read["input"]).max() == 1
    assert with_digests(read) == with_digests(record) and str(tmp_path / "mask.png") not in read.values()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
@pytest.mark.parametrize("read", [read_input, check_readable, lambda name: read_picture(Path(name), name)])
def test_what_is_no_file_of_data_is_not_waited_for(tmp_path, read):
    os.mkfifo(pipe := tmp_path / "pipe.png")
    for name in (str(pipe), "/dev/zero", str(tmp_path)):
        with pytest.raises(InputError, match=r"not a readable image \(it is no file\)"):
            read(name)


def test_what_no_viewer_shows_alike_is_told_by_its_header(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match="its pixels are floating-point numbers"):
        check_readable(str(tmp_path / "float.tiff"))
    Image.new("1", (2**14, 2**12 + 1)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="at most 67108864 pixels"):
        check_readable(str(tmp_path / "large.png"))


def test_two_folders_of_edits_are_compared_where_they_are_about_the_same_pictures(tmp_path):
    for name, grey in (("one", 1), ("other", 2), ("again", 1)):
        record = {"prompt": REQUEST, "input": str(write(tmp_path / f"{name}.png", grey))}
        update_records(tmp_path / name, [record])
        add_images(tmp_path / name, 0, record, np.zeros((4, 8, 8, 3), np.uint8))
    compare = lambda name: Eval(str(tmp_path / "one"), against=str(tmp_path / name), suite="drawbench").image_sets()
    with pytest.raises(ConfigError, match="not the pictures of the same input pictures in the same order"):
        compare("other")
    assert compare("again")[1] is not None


def test_pictures_beside_a_file_of_images_are_contents(tmp_path):
    for name, grey in (("in", 1), ("best", 2), ("worst", 3)):
        write(tmp_path / f"{name}.png", grey)
    line = {"prompt": REQUEST, "input": "in.png", "chosen": "best.png", "rejected": "worst.png"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "model").mkdir()
    data = PairFolder(path=str(tmp_path / "pairs.jsonl"))
    run = SimpleNamespace(data=data, tune=None, teachers=(), rewards=(), judge=None)
    before = run_contents(run, [], [], tmp_path / "model")  # type: ignore[arg-type]
    write(tmp_path / "in.png", 9)
    after = run_contents(run, [], [], tmp_path / "model")  # type: ignore[arg-type]
    assert [name for name in before if before[name] != after[name]] == ["records of edits"]
    write(tmp_path / "worst.png", 8)
    last = run_contents(run, [], [], tmp_path / "model")  # type: ignore[arg-type]
    assert [name for name in after if after[name] != last[name]] == ["pictures of pairs"]
    folder = SimpleNamespace(**vars(run) | {"data": ImageFolder(path=str(tmp_path))})
    assert "records of edits" not in run_contents(folder, [], [], tmp_path / "model")  # type: ignore[arg-type]


def test_stored_pictures_of_a_run_are_begun_anew_where_an_input_changed(tmp_path):
    file = write(tmp_path / "in.png", 1)
    record = {"prompt": REQUEST, "input": str(file)}
    store = PictureStore(tmp_path / "run", "samples")

    def stored_after(records):
        store.begin(1, records)
        return (store.folder / "inputs").is_dir()

    store.begin(0, [record])
    store.write_inputs([record], 8, 8)
    moved = {**record, "input": str(shutil.copy(file, tmp_path / "moved.png"))}
    assert stored_after([record]) and stored_after([moved])
    write(file, 2)
    assert not stored_after([record])


def test_rewards_see_a_picture_that_was_exchanged_while_they_run(tmp_path):
    file, mask = write(tmp_path / "in.png", 1), write(tmp_path / "mask.png", 0)
    record = {"prompt": REQUEST, "input": str(file), "mask": str(mask)}
    check_mask(record)
    assert as_drawn(str(file), 8, 8).max() == 1 and stays(str(mask), 8, 8).all()
    write(file, 2, size=16)
    write(mask, 255, size=16)
    assert as_drawn(str(file), 8, 8).max() == 2 and picture_size(str(file)) == (16, 16)
    assert not stays(str(mask), 8, 8).any()


def test_the_page_shows_every_picture_of_a_prompt_in_order(tmp_path):
    records = [
        {"prompt": REQUEST, "input": [str(write(tmp_path / f"{p}_{i}.png", i)) for i in range(n)]} for p, n in COUNTS
    ]
    store = PictureStore(tmp_path / "runs/edits", "samples")
    store.begin(0, records)
    store.write_inputs(records, 8, 8)
    (store.folder / "inputs" / "notes.txt").write_text("no picture")
    shown = PictureSet(RunFolder(tmp_path / "runs/edits"), "samples").content()["prompts"]
    assert [prompt["inputs"] for prompt in shown] == [[f"{p:03d}_{i}.png" for i in range(n)] for p, n in COUNTS]
    assert len({prompt["key"] for prompt in shown}) == 3, "by which two runs are laid side by side"


COUNTS = ((0, 12), (1, 4), (2, 1))


def image_run(folder, pairs, model, about="in.png", **options):
    """A run that learns from one image, or one pair, which may be an edit."""
    for name, grey in (("in", 1), ("best", 2), ("worst", 3)):
        write(folder / f"{name}.png", grey)
    line = {"prompt": REQUEST, "input": about, "file_name": "best.png", "chosen": "best.png", "rejected": "worst.png"}
    for file in ("metadata.jsonl", "pairs.jsonl"):
        (folder / file).write_text(json.dumps(line))
    data = (PairFolder if pairs else ImageFolder)(path=str(folder), **options)
    return Run(DPO() if pairs else SFT(), data, model, name="edits")


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("name, value", [("buckets", True), ("background", "#000")])
def test_targets_of_another_shape_or_background_than_their_inputs_are_refused(tmp_path, name, value, pairs):
    options = {name: value}
    with pytest.raises(ConfigError, match=f"data.{name} = {value}: input pictures are"):
        check_input_pictures(image_run(tmp_path, pairs, Flux2Klein(), **options), [])
    assert check_input_pictures(image_run(tmp_path, pairs, Flux2Klein(), background="white"), []) == 1
    assert check_input_pictures(image_run(tmp_path, pairs, Flux2Klein(), about="", **options), []) == 0


@pytest.mark.parametrize("pairs", [False, True])
def test_input_pictures_of_images_are_asked_for_and_opened_before_weights(tmp_path, pairs):
    with pytest.raises(InputError, match="has no input picture, and QwenImageEditPlusPipeline edits pictures"):
        check_input_pictures(image_run(tmp_path, pairs, QwenImageEdit(), about=""), [])
    run = image_run(tmp_path, pairs, QwenImageEdit())
    (tmp_path / "in.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"in\.png: not a readable image"):
        check_input_pictures(run, [])
