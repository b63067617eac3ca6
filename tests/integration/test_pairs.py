"""Pairs of images for DPO: what is read, what is refused or counted, and pairs that the model draws itself."""

import importlib
import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from afterflow.algorithms.base import WIN_RATE
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.sft import SFT
from afterflow.cli.train import Parts
from afterflow.data.images import ImageFolder, LeftOut, ShapesImages, bucket_sizes, nearest_size, same_shape
from afterflow.data.pairs import HubPairs, PairFolder, SampledPairs
from afterflow.data.prompts import PromptFile, ShapesPrompts
from afterflow.evaluation.scores import ScoreCache
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import count_rows
from afterflow.experiment.execute import check_drawn_pairs, execute
from afterflow.experiment.latent_dataset import gather_buckets
from afterflow.experiment.sampled_pairs import EQUAL, LOW, PairSampler
from afterflow.experiment.setup import TrainingSetup
from afterflow.models.adapters import LoRA
from afterflow.models.generate import encode_records
from afterflow.models.pipeline import Model
from afterflow.models.sd3 import SD3
from afterflow.rewards.base import RewardModels
from afterflow.rewards.grouped import score_groups
from afterflow.rewards.shapes_judge import ShapesJudge
from afterflow.system.errors import CheckpointError, ConfigError
from afterflow.system.pictures import picture_digest
from afterflow.system.verdicts import JudgedPicture, Verdict, verdict_file
from afterflow.train.checkpoint import list_checkpoints


@pytest.fixture
def config(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return SD3(pipeline, max_sequence_length=0)


def picture(file, colour, size=(40, 60)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def write_lines(folder, lines):
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def listed(tmp_path):
    """Two pairs of three pictures, in a list."""
    folder = tmp_path / "listed"
    for name in ("red", "green", "blue"):
        picture(folder / f"{name}.png", name)
    write_lines(
        folder,
        [
            {"prompt": "all red", "chosen": "red.png", "rejected": "blue.png", "tag": "colors"},
            {"prompt": "all blue", "chosen": "blue.png", "rejected": "green.png"},
        ],
    )
    return folder


@pytest.fixture
def folders(tmp_path):
    """The same pairs, in a folder each."""
    folder = tmp_path / "folders"
    for name, winner, loser in (("a", "red", "blue"), ("b", "blue", "green")):
        picture(folder / name / "winner.png", winner)
        picture(folder / name / "loser.jpg", loser)
        (folder / name / "prompt.txt").write_text(f"all {winner}\n")
    return folder


def pairs_of(source):
    return [each for each in source.images(0, (32, 32)) if not isinstance(each, LeftOut)]


def left_out_of(source):
    return [each.reason for each in source.images(0, (32, 32)) if isinstance(each, LeftOut)]


def test_a_list_and_folders_hold_winners_before_losers(listed, folders):
    for source in (PairFolder(str(listed)), PairFolder(str(listed / "pairs.jsonl")), PairFolder(str(folders))):
        first, second = pairs_of(source)
        assert [first.record["prompt"], second.record["prompt"]] == ["all red", "all blue"]
        assert first.pixels().shape == (2, 32, 32, 3) and first.size == (32, 32)
        assert np.abs(first.pixels().mean((1, 2)) - [[255, 0, 0], [0, 0, 255]]).max() < 3
        assert second.digest != first.digest
    assert pairs_of(PairFolder(str(listed)))[0].record == {"prompt": "all red", "tag": "colors"}


@pytest.mark.parametrize("winner, loser", [((500, 717), (1000, 1435)), ((1000, 1435), (500, 717))])
def test_both_pictures_of_a_pair_are_brought_to_the_winners_shape(listed, winner, loser):
    """Rounded to a pixel, two sizes of one shape lie on both sides of the border between two buckets."""
    picture(listed / "red.png", "red", winner)
    picture(listed / "blue.png", "blue", loser)
    write_lines(listed, [{"prompt": "x", "chosen": "red.png", "rejected": "blue.png"}])
    source = PairFolder(str(listed), buckets=True, min_size=1)
    sizes = bucket_sizes((512, 512), 16)
    assert len({nearest_size(height / width, sizes) for width, height in (winner, loser)}) == 2
    [pair] = source.images(0, (512, 512), 16)
    assert pair.size == nearest_size(winner[1] / winner[0], sizes)
    assert pair.pixels().shape == (2, *pair.size, 3)


def test_a_loser_smaller_than_the_winners_shape_is_refused(listed):
    picture(listed / "red.png", "red", (120, 80))
    picture(listed / "blue.png", "blue", (36, 24))
    write_lines(listed, [{"prompt": "x", "chosen": "red.png", "rejected": "blue.png"}])
    with pytest.raises(ValueError, match=r"blue\.png: 36 x 24 px, smaller than the"):
        list(PairFolder(str(listed), buckets=True).images(0, (32, 32), 8))


def test_a_named_caption_is_refused_where_pairs_have_no_keys(folders, tmp_path):
    with pytest.raises(ValueError, match=r"data\.caption = long names a key, .* prompt\.txt beside"):
        pairs_of(PairFolder(str(folders), caption="long"))
    voted = tmp_path / "voted"
    voted.mkdir()
    (voted / "verdicts.jsonl").write_text('{"verdict": "first"}\n')
    with pytest.raises(ValueError, match=r"data\.caption = long names a key, .* verdicts of people"):
        pairs_of(PairFolder(str(voted), caption="long"))


def test_ties_and_equal_pictures_are_left_out_and_counted(listed, caplog):
    caplog.set_level("INFO", "afterflow")
    line = {"prompt": "x", "chosen": "red.png", "rejected": "blue.png"}
    write_lines(listed, [line, {"tie": True, "prompt": "x"}, line | {"rejected": "red.png"}, line | {"tie": False}])
    source = PairFolder(str(listed))
    assert len(pairs_of(source)) == 2
    assert left_out_of(source) == ["without a winner, because they are tied", "whose two pictures are the same"]
    assert "2 of 4 pairs are used, from" in caplog.text and "1 without a winner, because they are tied" in caplog.text


@pytest.mark.parametrize(
    "line, sentence",
    [
        ({"prompt": "x", "chosen": "red.png"}, r"pairs\.jsonl:1: no picture under 'rejected'"),
        ({"prompt": "x", "chosen": None, "rejected": "red.png"}, r'no picture under \'chosen\'.* write "tie": true'),
        ({"prompt": "x", "chosen": "rot.png", "rejected": "red.png"}, r":1: .*rot\.png is not there.*correct chosen"),
        ({"prompt": "x", "chosen": "red.png", "rejected": "../up.png"}, "leads out of .*correct rejected"),
        ({"prompt": " ", "chosen": "red.png", "rejected": "blue.png"}, r"pairs\.jsonl:1: no caption"),
        (["red.png", "blue.png"], r"pairs\.jsonl:1: a line is an object"),
        (
            {"prompt": "x", "chosen": "wide.png", "rejected": "red.png"},
            r"wide\.png: 80 x 40 px, and .*red\.png: 40 x 60",
        ),
        ({"prompt": "x", "chosen": "small.png", "rejected": "red.png"}, r"small\.png: 20 x 30 px, smaller than"),
        ({"prompt": "x", "chosen": "broken.png", "rejected": "red.png"}, r"broken\.png: not a readable image"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_file_and_line(listed, line, sentence):
    picture(listed / "wide.png", "red", (80, 40))
    picture(listed / "small.png", "red", (20, 30))
    picture(listed.parent / "up.png", "red")
    (listed / "broken.png").write_bytes(b"no image")
    write_lines(listed, [line])
    with pytest.raises(ValueError, match=sentence):
        pairs_of(PairFolder(str(listed)))


def test_what_cannot_be_read_or_has_two_shapes_may_be_left_out(listed):
    picture(listed / "wide.png", "red", (80, 40))
    (listed / "broken.png").write_bytes(b"no image")
    lines = [{"prompt": "x", "chosen": name, "rejected": "red.png"} for name in ("wide.png", "broken.png", "blue.png")]
    write_lines(listed, lines)
    source = PairFolder(str(listed), unreadable="skip")
    assert len(pairs_of(source)) == 1 and left_out_of(source) == ["of two shapes", "that cannot be read"]


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda f: (f / "a/winner.png").unlink(), r"a: no picture called winner; a pair is one winner"),
        (lambda f: (f / "b/loser.jpg").unlink(), r"b: no picture called loser"),
        (lambda f: picture(f / "a/winner.jpg", "red"), r"a: 2 pictures called winner"),
        (lambda f: (f / "a/loser.txt").write_text("another"), r"its caption differs from that of"),
        (lambda f: (f / "a/prompt.txt").write_bytes(b"\xff\xfe\x00"), r"prompt\.txt"),
    ],
)
def test_a_folder_of_a_pair_that_cannot_be_used_is_refused(folders, change, sentence):
    change(folders)
    with pytest.raises(ValueError, match=sentence):
        pairs_of(PairFolder(str(folders)))


def test_a_folder_without_pairs_says_what_they_look_like(tmp_path, folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no pairs\.jsonl in it, and no folder with winner\.png"):
        pairs_of(PairFolder(str(tmp_path / "empty")))
    (folders / "a/prompt.txt").unlink()
    assert left_out_of(PairFolder(str(folders))) == ["without a caption"]


def test_shapes_that_differ_in_scale_alone_are_one():
    assert same_shape((512, 512), (1024, 1024)) and same_shape((60, 40), (91, 60)) and same_shape((40, 60), (20, 30))
    assert not same_shape((512, 512), (512, 768)) and not same_shape((60, 40), (40, 60))


def test_verdicts_of_people_are_pairs(listed):
    """Blue beats red, red beats green, and green ties with blue."""
    (listed / "pairs.jsonl").unlink()
    digest = lambda name: picture_digest(np.asarray(Image.open(listed / f"{name}.png")))
    pictures = {name: JudgedPicture(f"{name}.png", digest(name)) for name in ("red", "green", "blue")}
    file = verdict_file(listed)
    for i, (left, right, choice) in enumerate(
        [("red", "blue", "right"), ("red", "green", "left"), ("green", "blue", "tie")]
    ):
        file.add(Verdict(f"v{i}", "x", pictures[left], pictures[right], choice, "2026-01-01T00:00:00+00:00", "s"))
    for path in (listed, listed / "verdicts.jsonl"):
        first, second = pairs_of(PairFolder(str(path)))
        assert np.abs(first.pixels().mean((1, 2)) - [[0, 0, 255], [255, 0, 0]]).max() < 3
        assert np.abs(second.pixels().mean((1, 2)) - [[255, 0, 0], [0, 128, 0]]).max() < 3
        assert first.record == {"prompt": "x"}
    (listed / "blue.png").unlink()
    assert len(pairs_of(PairFolder(str(listed)))) == 1


def hub_rows(tmp_path, rows):
    """A folder with a parquet file as Pick-a-Pic has it: encoded pictures in columns of bytes."""
    pytest.importorskip("datasets").disable_progress_bars()
    import pyarrow as pa
    from pyarrow import parquet

    def encoded(colour):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 40), colour).save(buffer, "PNG")
        return buffer.getvalue()

    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
    columns |= {name: [encoded(colour) for colour in columns[name]] for name in ("jpg_0", "jpg_1")}
    folder = tmp_path / "hub"
    folder.mkdir(exist_ok=True)
    parquet.write_table(pa.table(columns), folder / "train.parquet")
    return str(folder)


def test_a_data_set_of_the_hub_says_by_its_label_who_wins(tmp_path, config):
    row = {"jpg_0": "red", "jpg_1": "blue", "caption": "x", "has_label": True}
    labels = [1.0, 0.0, 0.5, None, 0.8]
    rows = [row | {"label_0": label} for label in labels] + [row | {"label_0": 1.0, "has_label": False}]
    source = HubPairs(dataset=hub_rows(tmp_path, rows))
    red = [pair.pixels()[0, 0, 0].tolist() == [255, 0, 0] for pair in pairs_of(source)]
    assert red == [True, False, True]
    assert sorted(left_out_of(source)) == [
        "without a winner, because they are tied",
        *["without a winner, because they have no label"] * 2,
    ]
    assert len(pairs_of(replace(source, label=None))) == 6
    with pytest.raises(ValueError, match="it has no column 'best', only jpg_0, jpg_1, caption"):
        pairs_of(replace(source, label="best"))
    with pytest.raises(ValueError, match=r"hub\[0\]: label_0 is 7.0; it is a number from 0 to 1"):
        pairs_of(HubPairs(dataset=hub_rows(tmp_path, [row | {"label_0": 7.0}])))


def test_latents_of_pairs_are_encoded_once_and_a_winner_must_reach_its_reward(listed, config, monkeypatch):
    model, calls = config.load(), []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda images: calls.append(len(images)) or encode(images))
    source = PairFolder(str(listed))
    for _ in range(2):  # the second time from the cache
        [bucket], _ = gather_buckets(source, model, 0)
        assert bucket.latents.shape[:2] == (2, 2) and [r["prompt"] for r in bucket.records] == ["all red", "all blue"]
    assert calls == [4]
    torch.testing.assert_close(bucket.latents[0, 1], encode(np.full((1, 32, 32, 3), [0, 0, 255], np.uint8))[0])
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(listed / "red.png")
    write_lines(listed, [{"prompt": p, "chosen": f"{p}.png", "rejected": "green.png"} for p in ("red", "blue")])
    Image.new("RGB", (32, 32), "green").save(listed / "green.png")
    Image.new("RGB", (32, 32), "blue").save(listed / "blue.png")
    [bucket], left_out = gather_buckets(replace(source, min_reward={"jpeg_compressibility": -1.0}), model, 0)
    assert [r["prompt"] for r in bucket.records] == ["blue"] and left_out == {"below min_reward": 1}


def run_of(config, data, **options):
    run = Run(DPO(beta=100.0), data, config, LoRA(rank=4, alpha=8), name="pairs")
    return run.with_options(**(dict(iterations=3, batch=4, chunk=2, inference_steps=2, sample_every=0) | options))


def metrics_of(run):
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if "seconds" not in name} for line in lines]


def test_a_run_learns_from_pairs_of_a_folder_and_resumes_exactly(listed, config):
    """At first the policy is the reference, so that the loss is log 2."""
    run = run_of(config, PairFolder(str(listed)), learning_rate=1e-2, save_every=1, keep_checkpoints=3)
    execute(run, "pairs")
    first, *_, last = whole = metrics_of(run)
    assert first["preference_loss"] == pytest.approx(np.log(2), abs=1e-6) and first["preference_accuracy"] == 0.5
    assert last["preference_loss"] < first["preference_loss"] and first["nfe/update"] == first["nfe/reference"] == 2
    assert "| images | 2 |" in (run.folder / "lora" / "README.md").read_text()
    weights = (run.folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes()
    again = replace(run, name="again")
    execute(replace(again, batches=replace(again.batches, iterations=1)), "pairs")
    execute(again, "pairs", resume=True)
    assert metrics_of(again) == whole
    assert (again.folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes() == weights
    assert len(list_checkpoints(again.folder / "checkpoints")) == 3


def test_a_reference_that_is_a_lora_is_where_training_starts(listed, config):
    run = run_of(config, PairFolder(str(listed)), learning_rate=1e-2, iterations=2)
    execute(run, "pairs")
    tune = replace(run.tune, start=str(run.folder / "lora"))
    further = replace(run, name="further", tune=tune)
    execute(further, "pairs")
    assert metrics_of(further)[0]["preference_loss"] == pytest.approx(np.log(2), abs=1e-6)


SHAPES = ShapesPrompts(count=6, tags=("colors", "two_object", "counting"))


def sampled(**options):
    fixed = dict(prompts=SHAPES, weights={"jpeg_compressibility": 1.0}, per_prompt=3, steps=2)
    return SampledPairs(**(fixed | options))


def gathered(run):
    """The model, and the latents of pairs, their records, what is left out, and which images they are."""
    setup = TrainingSetup.build(run, resume=False)
    sampler = PairSampler(run, run.data, setup.model, setup.models.reference)
    return setup.model, sampler.gather(partial(encode_records, setup.model))


def test_the_models_own_images_win_and_lose_by_the_reward(config, monkeypatch):
    run = run_of(config, sampled())
    model, (latents, records, left_out, which) = gathered(run)
    assert latents.shape[:2] == (6, 2) and not left_out and len(records) == 6
    images = model.decode(latents.flatten(0, 1)).reshape(6, 2, 32, 32, 3)
    best, worst = score_groups("jpeg_compressibility", images, records).values.unbind(1)
    assert (best > worst).all()
    monkeypatch.setattr("afterflow.experiment.sampled_pairs.solve_ode", None)  # the second time from the cache
    again, _, _, which_again = gathered(run)[1]
    assert torch.equal(again, latents) and which_again == which
    with pytest.raises(TypeError):  # by another seed they are drawn anew
        gathered(replace(run, seed=1))


def test_groups_without_spread_make_no_pair_and_are_counted(config, caplog):
    caplog.set_level("INFO", "afterflow")
    data = sampled(weights={"shapes_strict": 1.0}, steps=1)  # one step draws nothing that is right
    with pytest.raises(ValueError, match=f"none of 6 prompts makes a pair: 6 {EQUAL}; take more images of a prompt"):
        gathered(run_of(config, data))
    assert f"0 of 6 prompts have a best and a worst image; left out: 6 {EQUAL}" in caplog.text
    with pytest.raises(ValueError, match=LOW):
        gathered(run_of(config, sampled(min_reward={"jpeg_compressibility": 0.0}), name="low"))


def test_a_judge_decides_who_wins(config):
    data, judge = sampled(weights={WIN_RATE: 1.0}), ShapesJudge(noise=1.0)
    run = Run(DPO(), data, config, LoRA(rank=4, alpha=8), judge=judge, name="judged")
    _, (latents, records, left_out, _) = gathered(run)
    assert len(latents) == len(records) == 6 - left_out.total() > 0
    with pytest.raises(ValueError, match=r"win_rate of data\.weights needs a judge"):
        replace(run, judge=None)


def test_a_run_learns_from_its_own_images(config):
    run = run_of(config, sampled(), guidance_scale=2.0)
    execute(run, "pairs")
    first, *_ = metrics_of(run)
    assert first["preference_loss"] == pytest.approx(np.log(2), abs=1e-6) and first["grad_norm"] > 0
    assert json.loads((run.folder / "run.json").read_text())["contents"]["prompts"]
    assert "| rewards | jpeg_compressibility × 1 |" in (run.folder / "lora" / "README.md").read_text()


def test_a_resumed_run_has_the_pairs_that_it_began_with_unless_told_otherwise(config):
    run = run_of(config, sampled(cache=False))
    execute(run.with_options(iterations=1), "pairs")
    file = run.folder / "data.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"drawn_pairs": "of a judge that varies"}))
    with pytest.raises(CheckpointError, match="drawn or judged otherwise than when the run began"):
        execute(run, "pairs", resume=True)
    execute(run, "pairs", resume=True, accept_changed_data=True)
    assert json.loads(file.read_text())["drawn_pairs"] == data["drawn_pairs"]


def test_processes_with_other_pairs_than_each_other_stop(config):
    apart = SimpleNamespace(all_gather_objects=lambda mine: [mine, "other"], main=True)
    setup = SimpleNamespace(run=run_of(config, sampled()), processes=apart, first=0)
    with pytest.raises(CheckpointError, match="have drawn or judged other pairs than each other"):
        check_drawn_pairs(setup, "mine", False)


def test_pairs_are_drawn_under_the_guidance_that_the_model_has(config, monkeypatch):
    seen, run = [], run_of(config, sampled(guidance_scale=3.0, cache=False))
    monkeypatch.setattr(Model, "guide", lambda self, velocity, scale: seen.append(scale) or velocity)
    gathered(run)
    assert 3.0 in seen

    def refuse(folder, scale):
        if scale == 3:
            raise ConfigError(f"guidance scale {scale:g}: it draws without guidance")

    monkeypatch.setattr(Model, "check_guidance", staticmethod(refuse))
    with pytest.raises(ConfigError, match="scale 3: it draws without guidance"):
        gathered(run)


def test_scores_that_are_kept_are_those_of_the_reward_as_it_is_now(config, tmp_path, monkeypatch):
    (tmp_path / "kept_rewards.py").write_text("from afterflow import reward\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"1")
    models = RewardModels(weights={"pickscore": str(weights)})
    monkeypatch.setattr("afterflow.experiment.contents.find_reward", lambda name: SimpleNamespace(version="1"))
    run = replace(run_of(config, sampled()), reward_models=models)
    data = replace(run.data, weights={"kept_rewards:f": 1.0})
    sampler = PairSampler(run, data, SimpleNamespace(folder=Path(config.path)), None)

    def identities():
        scores = ScoreCache(tmp_path, models)
        kept = [str(sampler.cache_file(torch.arange(1), [{"prompt": "it"}]))]
        for name in ("kept_rewards:f", "pickscore"):
            scores.rows_of(name)
        return [*scores.rows, *kept]

    before = identities()
    (tmp_path / "kept_rewards.py").write_text("from afterflow import reward, api\n")
    weights.write_bytes(b"2")
    assert not set(before) & set(identities())


def test_pairs_are_counted_with_winner_loser_and_reference(config):
    run = run_of(config, sampled())
    assert count_rows(run) == {"update": 8.0, "reference": 8.0}
    assert run.rewards == ("jpeg_compressibility",)


@pytest.mark.parametrize(
    "algorithm, data, sentence",
    [
        (DPO(), ShapesImages(), "DPO learns from pairs of images, not from ShapesImages"),
        (SFT(), PairFolder(path="x"), "SFT learns from single images, not from PairFolder"),
        (DPO(), PromptFile("x.txt"), "DPO learns from images with prompts, not from PromptFile"),
        (DPO(), ImageFolder("x"), "DPO learns from pairs of images, not from ImageFolder"),
    ],
)
def test_other_data_than_a_methods_own_are_refused(algorithm, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        Run(algorithm, data)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: sampled(per_prompt=1), "a pair is of two images; take at least 2"),
        (lambda: sampled(weights={}), "name at least one reward and its weight"),
        (lambda: sampled(steps=0), "data.steps = 0"),
        (lambda: DPO(beta=0.0), "it must be positive; SFT learns from winners alone"),
        (lambda: DPO(sft=-1.0), "0 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_users_data_take_the_place_of_a_recipes(config, listed):
    run = run_of(config, sampled())
    assert Parts(images=str(listed)).put_into(run).data == PairFolder(path=str(listed))
    Path("mine.txt").write_text("a red circle\n")
    assert Parts(prompts="mine.txt").put_into(run).data == replace(run.data, prompts=PromptFile("mine.txt"))
