"""Soft-TIFA: the probabilities of expected answers, their two means, and what is refused."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import gmean

from afterflow.cli.main import main
from afterflow.data.prompt_lists import read_prompts
from afterflow.data.prompts import PromptFile
from afterflow.evaluation.suites import suite_records
from afterflow.rewards.base import RewardModels
from afterflow.rewards.registry import check_rewards, load_reward, needs_of
from afterflow.system.errors import InputError
from fake_server import said, serving, words

PAIRS = [
    ["How many bicycles are in the image?", "four"],
    ["Are the bicycles white?", "Yes"],
    ["Are there any cows in the image?", "no"],
]
RECORD = {"prompt": "four white bicycles", "vqa_list": PAIRS, "skills": ["count", "attribute", "object"]}
IMAGES = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
BOTH = ("soft_tifa_am", "soft_tifa_gm")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("afterflow.rewards.vlm.client.time", SimpleNamespace(sleep=lambda seconds: None))


def answering(
    of_count=(("four", 0.5), ("4", 0.2), ("five", 0.1)), of_white=(("Yes", 0.6), ("No", 0.2)), of_cows=(("no", 0.9),)
):
    """A server's answers: the candidates for the first token of each question, by their probabilities."""

    def answer(body, n):
        question = words(body)[0][0]
        chances = of_count if "How many" in question else of_white if "white" in question else of_cows
        return said(chances[0][0], {token: math.log(p) for token, p in chances})

    return answer


def scored(answer, records=(RECORD,), images=IMAGES[:1]):
    """Both rewards of some pictures, and what the server was asked."""
    with serving(answer) as (url, seen):
        models = RewardModels(weights={"soft_tifa": f"{url}#judge"})
        return [load_reward(name, models)(images, list(records)) for name in BOTH], seen


def test_the_means_are_of_the_probabilities_of_the_expected_answers():
    (am, gm), seen = scored(answering())
    atoms = [0.7 / 0.8, 0.6 / 0.8, 1.0]
    assert am.values[0] == pytest.approx(np.mean(atoms)) and gm.values[0] == pytest.approx(gmean(atoms))
    assert gm.values[0] == pytest.approx(math.prod(atoms) ** (1 / 3)) and gm.values[0] < am.values[0]
    assert {name: part[0] for name, part in am.parts.items()} == pytest.approx(
        {"count": atoms[0], "attribute": atoms[1], "object": atoms[2]}
    )
    assert len(seen) == 3, "both rewards ask once"
    texts = [words(body)[0][0] for body, _ in seen]
    assert sum(text.endswith("Answer yes or no.") for text in texts) == 2 and "a number alone" in "".join(texts)


def test_pictures_and_records_stay_together():
    dark = lambda body: words(body)[1][0].mean() < IMAGES.mean()
    answer = lambda body, n: said(
        "x", {"yes": math.log(0.9 if dark(body) else 0.2), "no": math.log(0.1 if dark(body) else 0.8)}
    )
    records = [
        {"prompt": "a", "vqa_list": [["Is it dark?", "Yes"]]},
        {"prompt": "b", "vqa_list": [["Is it?", "No"]] * 2},
    ]
    (am, gm), _ = scored(answer, records, IMAGES)
    assert am.values == pytest.approx([0.9, 0.8]) and gm.values == pytest.approx([0.9, 0.8]) and not am.parts


@pytest.mark.parametrize("bad", [dict(of_white=(("Perhaps", 0.9), ("Yes", 0.05))), dict(of_count=(("There", 0.8),))])
def test_one_unanswered_atom_leaves_the_picture_without_a_score(bad):
    for each in scored(answering(**bad))[0]:
        assert np.isnan(each.values[0]) and "it does not begin with one of" in each.why[0]
        assert each.why[0].startswith("'Are the bicycles white?'" if "of_white" in bad else "'How many bicycles")
        assert all(np.isnan(part[0]) for part in each.parts.values())


def test_a_wrong_number_is_a_wrong_answer_and_no_missing_one():
    (am, gm), _ = scored(answering(of_count=(("17", 0.9), ("many", 0.06), ("four", 0.04))))
    assert am.parts["count"][0] == pytest.approx(0.04) and gm.values[0] == pytest.approx(gmean([0.04, 0.75, 1]))


def test_an_answer_that_the_server_does_not_name_has_at_most_what_is_left():
    least = scored(answering(of_count=(("five", 0.7), ("six", 0.2), ("seven", 0.06))))[0][0]
    assert least.parts["count"][0] == pytest.approx(0.04), "what is not named"
    least = scored(answering(of_count=(("five", 0.6), ("six", 0.2), ("seven", 0.01))))[0][0]
    assert least.parts["count"][0] == pytest.approx(0.01), "the least that is named"
    sure = scored(answering(of_white=(("No", 1.0),)))[0]
    assert sure[0].values[0] == pytest.approx((0.875 + 0 + 1) / 3, abs=1e-6)
    assert sure[1].values[0] == pytest.approx(gmean([0.875, 1e-6, 1])), "a product keeps what the other answers are"
    exact = scored(answering(of_count=(("three", 1.0), ("six", 1e-9))))
    assert 0 < exact[0][0].parts["count"][0] <= 1.1e-9


@pytest.mark.parametrize("answer", ["four", " Four ", "4", "FOUR"])
def test_a_number_may_be_written_in_words_or_digits(answer):
    pairs = [[PAIRS[0][0], answer]]
    assert scored(answering(), [{"prompt": "p", "vqa_list": pairs}])[0][0].values[0] == pytest.approx(0.875)


BAD = [
    ({}, "it has no vqa_list"),
    ({"vqa_list": []}, "it has no vqa_list"),
    ({"vqa_list": "Is it?"}, "it has no vqa_list"),
    ({"vqa_list": [PAIRS[0], ["Is it?"]]}, r"entry 2 of vqa_list is no \[question, expected answer\] of two texts"),
    ({"vqa_list": [["Is it?", "Yes", "No"]]}, "entry 1 of vqa_list is no"),
    ({"vqa_list": [["Is it?", True]]}, "entry 1 of vqa_list is no"),
    ({"vqa_list": [["How many?", 4]]}, "entry 1 of vqa_list is no"),
    ({"vqa_list": [[" ", "Yes"]]}, "entry 1 of vqa_list is no"),
    ({"vqa_list": [{"q": "Is it?", "a": "Yes"}]}, "entry 1 of vqa_list is no"),
    (
        {"vqa_list": [["Which colour?", "red"]]},
        "entry 1 of vqa_list: 'red' is expected, and an answer is yes, no or a number",
    ),
    ({"vqa_list": [["How many?", "21"]]}, "entry 1 of vqa_list: .* a number up to twenty"),
    ({"vqa_list": [["How many?", "²"]]}, "entry 1 of vqa_list: .* a number up to twenty"),
    ({"vqa_list": PAIRS, "skills": ["count"]}, "skills has 1 entries and vqa_list 3"),
    ({"vqa_list": PAIRS, "skills": "count"}, "skills is no list of texts"),
    ({"vqa_list": PAIRS, "skills": [1, 2, 3]}, "skills is no list of texts"),
]


@pytest.mark.parametrize("fields, sentence", BAD)
@pytest.mark.parametrize("reader", ["training", "suite"])
def test_a_line_without_questions_is_refused_with_file_and_line(tmp_path, fields, sentence, reader):
    file = tmp_path / "geneval2.jsonl"
    file.write_text(json.dumps(RECORD) + "\n\n" + json.dumps({"prompt": "a cow"} | fields) + "\n")
    read = {
        "training": lambda: PromptFile(str(file)).records(0, needs_of(BOTH)),
        "suite": lambda: suite_records("geneval2", str(file), None, BOTH),
    }
    with pytest.raises(InputError, match=rf"geneval2\.jsonl:3: {sentence}.*; soft_tifa_am needs that of every record"):
        read[reader]()


def test_a_file_of_geneval_2_is_read_as_it_is(tmp_path):
    file = tmp_path / "geneval2.jsonl"
    file.write_text(json.dumps(RECORD | {"atom_count": 3}) + "\n")
    [record] = suite_records("geneval2", str(file), None, BOTH)
    assert record == RECORD | {"atom_count": 3, "tag": "all"} and read_prompts(str(file)) == [record]


def test_the_command_names_the_line_before_anything_is_loaded(tmp_path, capsys):
    file = tmp_path / "geneval2.jsonl"
    file.write_text(json.dumps(RECORD) + '\n{"prompt": "a cow"}\n')
    command = [
        "eval",
        "nowhere/model",
        "--suite",
        "geneval2",
        "--prompts-from",
        str(file),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 2
    assert "geneval2.jsonl:2: it has no vqa_list" in capsys.readouterr().err
    assert main(["eval", "nowhere/model", "--suite", "geneval2", "--out", str(tmp_path / "out")]) == 2
    assert "--suite geneval2 needs --prompts-from: geneval2_data.jsonl" in capsys.readouterr().err


def test_the_server_is_named_once_for_both_and_a_blind_one_is_refused():
    with pytest.raises(ValueError, match=r"it asks a server: --reward-models\.weights soft_tifa http"):
        check_rewards(["soft_tifa_gm"])
    always = lambda body, n: said("yes", {"yes": math.log(0.9), "no": math.log(0.1)})
    with serving(always) as (url, _), pytest.raises(ValueError, match="reward soft_tifa_am is blind"):
        check_rewards(BOTH, RewardModels(weights={"soft_tifa": f"{url}#judge"}))
