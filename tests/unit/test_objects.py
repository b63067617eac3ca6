"""Training prompts: GenEval's forms in Flow-GRPO's mix, apart from what is evaluated, and signs to spell."""

import json
from collections import Counter

import pytest

from afterflow.data.geneval_prompts import TASK_SHARES, MixedPrompts, ObjectPrompts, SignPrompts
from afterflow.data.prompts import PromptFile
from afterflow.envs.geneval_rules import OBJECTS as CLASSES
from afterflow.rewards.ocr import target_texts
from afterflow.rewards.registry import find_reward

OBJECTS = {"geneval_hf": find_reward("geneval_hf").needs}


def test_they_are_what_the_rules_can_judge_in_the_published_mix():
    records = ObjectPrompts(count=1700).records(0, OBJECTS)
    assert Counter(record["tag"] for record in records) == {tag: 100 * share for tag, share in TASK_SHARES.items()}
    assert len({record["prompt"] for record in records if record["tag"] != "counting"}) == 1200
    counting = {record["prompt"] for record in records if record["tag"] == "counting"}
    unseen = {
        record["prompt"] for record in ObjectPrompts("test", count=1700).records(0) if record["tag"] == "counting"
    }
    assert len(counting | unseen) == len(counting) + len(unseen) == 240  # all there are
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


PLURALS = {
    **{"bus": "buses", "skis": "skises", "scissors": "scissorses", "wine glass": "wine glasses", "knife": "knifes"},
    **{"baseball glove": "baseball gloves", "bench": "benchs", "person": "persons", "toothbrush": "toothbrushs"},
}


def test_counted_objects_are_in_genevals_plural():
    """Its rule of create_prompts.py: es after an s, else s, which for some words is no English."""
    records = [record for split in ("train", "test") for record in ObjectPrompts(split, count=1700).records(0)]
    of_class = {}
    for record in records:
        if record["tag"] == "counting":
            of_class.setdefault(record["include"][0]["class"], set()).add(record["prompt"].split(" ", 4)[4])
    assert set(of_class) == set(CLASSES)
    for name, plurals in of_class.items():
        assert plurals == {PLURALS.get(name, f"{name}es" if name[-1] == "s" else f"{name}s")}


def test_counting_prompts_of_a_file_are_left_out_whatever_their_plural(tmp_path):
    prompts = [f"a photo of {word} {noun}" for word in ("two", "three", "four") for noun in PLURALS.values()]
    file = tmp_path / "evaluation.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    for split in ("train", "test"):
        drawn = ObjectPrompts(split, count=1700, exclude=str(file)).records(0)
        assert not {record["prompt"] for record in drawn} & set(prompts)


def test_signs_that_are_repeated_are_said(caplog, monkeypatch):
    monkeypatch.setattr("afterflow.data.geneval_prompts.MAX_REPEATS", 60)
    monkeypatch.setattr("afterflow.system.once._SAID", set())
    records = SignPrompts("test", count=4000).records(0)
    distinct = len({record["prompt"] for record in records})
    assert len(records) == 4000 > distinct
    [said] = [record.getMessage() for record in caplog.records]
    assert said == f"of 4000 signs of the test split {distinct} are distinct, and they are repeated"


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
        SignPrompts(count=0)


@pytest.mark.parametrize("kind", [ObjectPrompts, SignPrompts])
def test_no_seed_trains_on_what_another_tests(kind):
    trained, tested = (
        {r["prompt"] for r in kind(split, 170).records(seed)} for split, seed in (("train", 0), ("test", 1))
    )
    assert trained and tested and not trained & tested


def test_several_kinds_are_mixed_and_each_record_has_a_task(tmp_path):
    file = tmp_path / "nice.txt"
    file.write_text("a quiet lake\na loud street\n")
    mixed = MixedPrompts((ObjectPrompts(count=34), SignPrompts(count=10), PromptFile(str(file), tag="nice")))
    records = mixed.records(0)
    tags = [record["tag"] for record in records]
    assert Counter(tags) == Counter({tag: 2 * share for tag, share in TASK_SHARES.items()}) + Counter(text=10, nice=2)
    assert tags != sorted(tags, key=tags.index) and records == mixed.records(0) != mixed.records(1)
    with pytest.raises(ValueError, match="parts is empty"):
        MixedPrompts(())


def test_signs_have_a_text_to_spell():
    records = SignPrompts(count=500).records(0, {"ocr": find_reward("ocr").needs})
    assert len({record["prompt"] for record in records}) == 500
    assert all(4 <= len(text) <= 24 for record in records for [text] in [target_texts(record)])
