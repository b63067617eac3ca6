"""What a record may hold: every odd value is refused in one sentence, by whatever reads it."""

import json
from copy import deepcopy

import numpy as np
import pytest

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.image_folders import list_images
from afterflow.data.prompt_lists import check_record, read_prompts
from afterflow.data.prompts import PromptFile
from afterflow.envs.shapes.moving import moving_suite
from afterflow.evaluation.report import rows_by_tag
from afterflow.experiment.config import Run
from afterflow.experiment.latent_dataset import reaches_rewards
from afterflow.experiment.prompt_checks import record_checks
from afterflow.rewards.base import Canary, RewardModels
from afterflow.rewards.registry import REWARDS, find_reward, needs_of
from afterflow.system.errors import InputError, MissingDependencyError

NEEDY = [name for name in REWARDS if find_reward(name).needs is not None]
SERVED = RewardModels(servers=dict.fromkeys(NEEDY, "http://127.0.0.1:1"))
ODD = (None, True, 0, -1, 10**30, 1.5, "", "x", [], {}, [[]], [{}], ["left"], {"a": ["b"]}, [None], [1, None])


def known_record(name):
    """A record that a reward reads."""
    canary = find_reward(name).canary
    record = canary.record if isinstance(canary, Canary) else canary.cases()[0].record
    return json.loads(json.dumps(dict(record)))


def places(value, path=()):
    """Yield the path of every value inside a record."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(record, path, odd):
    record = deepcopy(record)
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return record


@pytest.mark.parametrize("name", [name for name in NEEDY if not name.startswith(("ocr", "edits"))])
def test_a_reward_refuses_a_record_of_another_form_in_one_sentence(name):
    """OCR's prompts are texts, and the editing world draws what a record says, whatever that raises."""
    needs, known = find_reward(name).needs, known_record(name)
    needs(known)
    refused = 0
    for path in places(known):
        for odd in ODD:
            try:
                needs(changed(known, path, odd))
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused or name == "image_similarity"


@pytest.mark.parametrize(
    "points", [[[1, None]], [["a", 1]], [["a", ""]], [["a"]], ["ab"], [["a", ["b"]]], [[["a"], "b"]]]
)
def test_points_are_pairs_of_texts(points):
    with pytest.raises(InputError, match="it has no points"):
        find_reward("vlm_points").needs({"prompt": "a cat", "points": points})


def test_moving_records_are_checked_clause_by_clause():
    needs, [record] = find_reward("moving_strict").needs, moving_suite("train", 1, 0, ["move_one"])
    needs(record)
    for clause, said in (("circle", "must be a JSON object"), ({"moving": ["left"]}, "moving must be one of")):
        clause = record["include"][0] | clause if isinstance(clause, dict) else clause
        with pytest.raises(InputError, match=rf"include\[0\].*{said}"):
            needs(record | {"include": [clause]})


TAGS = [["animal"], {"a": 1}, [], [[1]]]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_that_is_no_text_is_refused_where_it_stands(tag, tmp_path):
    line = {"prompt": "a cat", "tag": tag}
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a dog"}) + "\n" + json.dumps(line))
    (tmp_path / "a.json").write_text(json.dumps([line]))
    for read, where in (
        (lambda: PromptFile(str(tmp_path / "a.jsonl")).records(0), r"a\.jsonl:2"),
        (lambda: read_prompts(str(tmp_path / "a.jsonl")), r"a\.jsonl:2"),
        (lambda: PromptFile(str(tmp_path / "a.json")).records(0), r"a\.json: row 1"),
        (lambda: rows_by_tag([{"prompt": "a dog", "tag": "x"}, line]), "prompt 'a cat'"),
    ):
        with pytest.raises(InputError, match=rf"{where}: its tag is .*; write one text"):
            read()


def test_a_tag_of_a_picture_is_a_text_too(tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x", "tag": ["a"]}')
    with pytest.raises(InputError, match=r"metadata\.jsonl:1: its tag is \['a'\]"):
        list_images(tmp_path, "text")


@pytest.mark.parametrize("error", [TypeError("no"), KeyError("x"), AttributeError("gone"), IndexError("far")])
def test_an_error_in_a_users_check_names_the_record(error):
    def needs(record):
        raise error

    with pytest.raises(InputError, match=rf"^a\.jsonl:3: it is not what mine reads; .*{type(error).__name__}"):
        check_record({"prompt": "x"}, "a.jsonl:3", {"mine": needs})


@pytest.mark.parametrize("name", NEEDY)
def test_a_client_of_a_service_needs_no_library_of_the_reward(name, monkeypatch):
    monkeypatch.setattr("afterflow.system.optional_dependencies.find_spec", lambda library: None)
    record = known_record(name)
    needs_of([name], SERVED)[name](record)
    with pytest.raises(InputError):
        needs_of([name], SERVED)[name]({"prompt": "nothing to judge"})
    if find_reward(name).client_needs is not None:
        with pytest.raises(MissingDependencyError):
            needs_of([name])[name](record)


def test_a_record_that_a_service_would_refuse_is_told_by_its_client():
    record = known_record("ocr") | {"input": "data:image/png;base64," + "A" * 2**16}
    needs_of(["ocr"])["ocr"](record)
    with pytest.raises(InputError, match=r"characters, and a service takes 65536; save a picture that it holds"):
        needs_of(["ocr"], RewardModels(servers={"ocr": "http://127.0.0.1:1"}))["ocr"](record)


def test_prompts_of_a_run_are_checked_by_the_client_where_a_service_scores(tmp_path, monkeypatch):
    monkeypatch.setattr("afterflow.system.optional_dependencies.find_spec", lambda library: None)
    (tmp_path / "signs.txt").write_text('a sign that says "Open"\n')
    data, here = PromptFile(str(tmp_path / "signs.txt")), Run(FlowGRPO({"ocr": 1.0}), PromptFile("signs.txt"))
    there = here.with_options(reward_models=RewardModels(servers={"ocr": "http://127.0.0.1:1"}))
    assert data.records(0, record_checks(there, ["ocr"])) == [{"prompt": 'a sign that says "Open"'}]
    with pytest.raises(MissingDependencyError, match=r"^reward ocr needs rapidocr"):
        data.records(0, record_checks(here, ["ocr"]))
    images = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(MissingDependencyError):
        reaches_rewards(images, data.records(0), {"ocr": 0.5}, RewardModels())
