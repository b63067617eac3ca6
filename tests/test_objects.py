"""Training prompts: GenEval's forms in Flow-GRPO's mix, apart from what is evaluated, and signs to spell."""

import json
from collections import Counter

import pytest

from afterflow.data.objects import MIX, ObjectPrompts, SignPrompts
from afterflow.rewards import find
from afterflow.rewards.ocr import target

OBJECTS = {"geneval_hf": find("geneval_hf").needs}


def test_they_are_what_the_rules_can_judge_in_the_published_mix():
    records = ObjectPrompts(count=1700).records(0, OBJECTS)
    assert Counter(record["tag"] for record in records) == {tag: 100 * share for tag, share in MIX.items()}
    assert len({record["prompt"] for record in records if record["tag"] != "counting"}) == 1200
    assert len({record["prompt"] for record in records if record["tag"] == "counting"}) == 240  # all there are
    assert records == ObjectPrompts(count=1700).records(0) != ObjectPrompts(count=1700).records(1)
    by_tag = {record["tag"]: record for record in records}
    position = by_tag["position"]["include"]
    assert position[1]["position"][1] == 0
    words = f"{position[1]['class']} {position[1]['position'][0]} "
    assert words in by_tag["position"]["prompt"] and by_tag["position"]["prompt"].endswith(position[0]["class"])
    counting = by_tag["counting"]
    assert counting["exclude"] == [
        {"class": counting["include"][0]["class"], "count": counting["include"][0]["count"] + 1}
    ]
    coloured = [clause for record in records for clause in record["include"] if "color" in clause]
    assert coloured and all(clause["class"] != "person" for clause in coloured)


def test_what_is_evaluated_is_never_trained_on(tmp_path):
    records = ObjectPrompts(count=340).records(0)
    file = tmp_path / "evaluation.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = ObjectPrompts(count=340, exclude=str(file)).records(0)
    assert not {record["prompt"] for record in again} & {record["prompt"] for record in records}
    file.write_text("{}\n")
    with pytest.raises(ValueError, match=r"data\.exclude .*: it is no file of records with prompts"):
        ObjectPrompts(exclude=str(file)).records(0)


def test_nothing_left_to_ask_is_said(tmp_path):
    file = tmp_path / "evaluation.jsonl"
    counting = [record for record in ObjectPrompts(count=1700).records(0) if record["tag"] == "counting"]
    file.write_text("".join(json.dumps(record) + "\n" for record in counting))
    with pytest.raises(ValueError, match="leaves no prompt of a kind"):
        ObjectPrompts(count=100, exclude=str(file)).records(0)
    with pytest.raises(ValueError, match="count = 0"):
        SignPrompts(0)


def test_signs_have_a_text_to_spell():
    records = SignPrompts(count=500).records(0, {"ocr": find("ocr").needs})
    assert len({record["prompt"] for record in records}) == 500
    assert all(4 <= len(target(record)) <= 24 for record in records)
