"""Prompts beyond what an encoder reads: how many, by which, and what a run does about it."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from afterflow.algorithms.sft import SFT
from afterflow.data.images import ShapesImages
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models.adapters import LoRA
from afterflow.models.generate import encode_records
from afterflow.models.sd3 import SD3
from afterflow.system import once
from afterflow.system.errors import InputError

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("family", ["sd3", "flux", "wan"])
def test_a_prompt_counts_as_cut_just_where_its_last_word_changes_nothing(family, tinies):
    config = tinies[family]
    model = replace(config, **({} if family == "sd3" else {"max_sequence_length": 12})).load()
    fates = set()
    for length in range(5, 20):
        ends = [" ".join(["red"] * length + [end]) for end in ("blue", "green")]
        one, other = (model.encode([text]) for text in ends)
        cut = {each.encoder: each for each in model.cut_prompts(ends)}
        same = torch.equal(one.sequence, other.sequence)
        assert same == (("text_encoder_2" if family == "flux" else "text_encoder") in cut), length
        fates.add(same)
        for each in cut.values():
            assert (
                each.prompts == each.total == 2
                and each.example.endswith("red…")
                and ends[0].startswith(each.example[:-1])
            )
    assert fates == {True, False}


@pytest.mark.parametrize("family", ["flux2_klein", "z_image"])
def test_a_chat_before_a_prompt_counts_where_the_pipeline_counts_it(family, tinies):
    """A token of these tiny language models is a letter.  What a chat has after the prompt is cut first."""
    model = replace(tinies[family], max_sequence_length=20).load()
    ends = [["r" * length + end for end in "bg"] for length in range(2, 20)]
    encoded = model.encode([text for pair in ends for text in pair]).sequence
    distances = (encoded[::2] - encoded[1::2]).abs().amax((1, 2))
    cuts = [model.cut_prompts(pair) for pair in ends]
    assert [bool(cut) for cut in cuts] == (distances < 1e-5).tolist() and not cuts[0]
    [last] = cuts[-1]
    assert last.prompts == 2 and last.example == "r" * last.tokens + "…" and 5 < last.tokens < 20


def test_every_encoder_of_every_family_is_asked(tinies):
    readers = {
        "sd3": 2,
        "flux": 2,
        "flux2_klein": 1,
        "qwen_image": 1,
        "z_image": 1,
        "wan": 1,
        "wan_pair": 1,
    }  # the tiny SD3 has no T5 that speaks
    for family, config in tinies.items():
        model = config.load()
        cuts = model.cut_prompts(["a red circle", *["red " * 600] * 3])
        assert len(cuts) >= readers[family] and all(cut.prompts == 1 for cut in model.cut_prompts(["red " * 600, "a"]))
        assert all((cut.prompts, cut.total) == (3, 4) for cut in cuts) and model.cut_prompts(["a red circle"]) == ()
        assert all(len(cut.example) <= 170 for cut in cuts)


def test_cut_prompts_are_told_once_before_they_are_encoded(tinies, caplog, monkeypatch):
    monkeypatch.setattr(once, "_SAID", set())
    model = tinies["wan"].load()
    for _ in range(2):
        encode_records(model, [{"prompt": "a red circle"}, {"prompt": "red " * 30}])
    [said] = [record.message for record in caplog.records if "longer than" in record.message]
    assert said.startswith("1 of 2 prompts are longer than the 16 tokens that text_encoder reads") and "red…" in said


@pytest.mark.parametrize("choice", ["cut", "stop"])
def test_a_run_cuts_or_stops_as_asked(choice, pipeline, monkeypatch):
    monkeypatch.setattr(
        "afterflow.data.images.prompts.draw",
        lambda split, tag, rng, size: {**RECORD, "prompt": "a red circle " * 9},
    )
    data = ShapesImages(count=3, tags=("colors",))
    run = Run(SFT(), data, SD3(pipeline, max_sequence_length=0), LoRA(rank=4, alpha=8), name="long").with_options(
        iterations=1, batch=2, chunk=2, sample_every=0, long_prompts=choice
    )
    if choice == "stop":
        with pytest.raises(InputError, match=r"1 of 1 prompts .* text_encoder reads.*--long-prompts cut"):
            execute(run, "long")
        assert not (run.folder / "metrics.jsonl").exists()
        return
    card = (execute(run, "long") / "lora" / "README.md").read_text()
    assert "| prompts cut | 1 by text_encoder, 1 by text_encoder_2 |" in card
    assert json.loads((run.folder / "data.json").read_text())["images"] == 3


RECORD = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}


def test_warnings_of_libraries_come_once_and_noise_does_not(capsys):
    stream = logging.StreamHandler()
    logger = logging.getLogger("a library")
    logger.addHandler(stream)
    once.say_each_once(logger, ["torchvision"])
    once.say_each_once(logger, ["torchvision"])
    for text in ("weights are new", "weights are new", "needs torchvision", "other"):
        logger.warning(text)
    assert capsys.readouterr().err.splitlines() == ["weights are new", "other"]
