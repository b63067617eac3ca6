"""Who is shown which pair, and what a judge of people makes of what they say."""

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from afterflow.rewards.base import ImagePairs
from afterflow.rewards.votes.judge import Votes
from afterflow.rewards.votes.pairs import (
    LIVE_FOLDER,
    WAITING_FOLDER,
    PicturePair,
    check_storable,
    choose_pairs,
    show_live_pair,
)
from afterflow.rewards.votes.voting import LEASE_SECONDS, NotShown, Voting
from afterflow.system.errors import ConfigError, InputError, OutputError
from afterflow.system.pictures import picture_digest
from afterflow.system.verdicts import verdict_file

A, B = "a" * 16, "b" * 16


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def flat(level):
    return np.full((4, 4, 3), level, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A folder with four pictures of one prompt."""
    for level in range(4):
        Image.fromarray(flat(level)).save(tmp_path / f"{level}.png")
    return tmp_path


def pairs_of(count=4):
    return choose_pairs({"a cat": [f"{level}.png" for level in range(count)]}, 6, 0)


def voting(folder, pairs=None, again=False, clock=None, seed=0):
    return Voting(verdict_file(folder), pairs_of() if pairs is None else pairs, seed, again, clock or Clock())


def judge_all(table, session, choice="left"):
    """Judge what a page is shown until it is shown nothing; the pairs."""
    keys = []
    while (shown := table.show(session)) is not None:
        keys.append(shown.pair.key)
        table.vote(session, shown.id, choice)
    return keys


@pytest.mark.parametrize("count, most", [(2, 6), (4, 6), (5, 4), (7, 21), (1, 3)])
def test_pairs_are_of_one_prompt_all_different_and_as_many_as_there_are(count, most):
    pictures = {"a": [f"a{i}" for i in range(count)], "b": [f"b{i}" for i in range(count)], "one": ["x"]}
    pairs = choose_pairs(pictures, most, 0)
    assert len(pairs) == len({pair.key for pair in pairs}) == 2 * min(most, count * (count - 1) // 2)
    assert all(pair.one[0] == pair.other[0] == pair.prompt and pair.one != pair.other for pair in pairs)
    assert choose_pairs(pictures, most, 0) == pairs and (count < 4 or choose_pairs(pictures, most, 1) != pairs)
    assert all({pairs[i].prompt, pairs[i + 1].prompt} == {"a", "b"} for i in range(0, len(pairs), 2)), "in turns"


def test_pairs_of_many_pictures_are_drawn_without_listing_all():
    start = time.monotonic()
    assert len({pair.key for pair in choose_pairs({"a": [str(i) for i in range(100_000)]}, 5, 0)}) == 5
    assert time.monotonic() - start < 2


def test_each_pair_is_shown_once_and_not_after_a_restart(folder):
    assert sorted(map(str, judge_all(voting(folder), A))) == sorted(str(pair.key) for pair in pairs_of())
    assert voting(folder).show(B) is None
    assert voting(folder).progress() == {"judged": 6, "open": 0, "waiting": 0, "gone": 0}


def test_shown_again_pairs_come_last_and_on_exchanged_sides(folder):
    first = voting(folder)
    shown = first.show(A)
    first.vote(A, shown.id, "tie")
    table = voting(folder, again=True)
    keys = judge_all(table, B)
    assert keys[-1] == shown.pair.key and len(keys) == len(set(keys)) == 6
    old, new = (v for v in table.verdicts if v.key == first.verdicts[0].key)
    assert (old.left, old.right) == (new.right, new.left)
    assert len(verdict_file(folder).read()) == 7, "both verdicts about a pair stay"


def test_two_pages_never_show_one_pair_and_a_page_that_is_gone_frees_its_own(folder):
    clock = Clock()
    table = voting(folder, pairs_of(3), clock=clock)
    held = table.show(A)
    assert table.show(A) is held, "asked again, a page keeps its pair"
    assert held.pair.key not in judge_all(table, B) and table.show(B) is None
    clock.now += LEASE_SECONDS + 1
    assert table.show(B).pair.key == held.pair.key
    assert table.vote(A, held.id, "left").verdict == "left", "who looked longer than that may still say"
    assert table.vote(B, table.show(B).id, "right").verdict == "right"
    assert [verdict.verdict for verdict in verdict_file(folder).read()][-2:] == ["left", "right"]


def test_a_page_that_closes_frees_its_pair_at_once(folder):
    table = voting(folder, pairs_of(2))
    table.show(A)
    assert table.show(B) is None
    table.leave(A)
    assert table.show(B) is not None


def test_a_verdict_about_a_pair_that_is_not_shown_is_refused(folder):
    table = voting(folder)
    shown = table.show(A)
    table.vote(A, shown.id, "left")
    for session, name in ((A, shown.id), (A, "x"), (B, shown.id)):
        with pytest.raises(NotShown, match="no longer shown here"):
            table.vote(session, name, "left")
    assert len(verdict_file(folder).read()) == 1


def test_undo_takes_back_the_last_verdict_of_the_same_page_and_shows_its_pair(folder):
    table = voting(folder)
    one = table.show(A)
    table.vote(A, one.id, "left")
    other = table.show(B)
    table.vote(B, other.id, "left")
    again = table.undo(A)
    assert (again.pair.key, again.left, again.right) == (one.pair.key, one.left, one.right)
    assert [verdict.session for verdict in verdict_file(folder).read()] == [B]
    with pytest.raises(NotShown, match="no verdict of this page"):
        table.undo(A)
    table = voting(folder)
    assert table.undo(B).pair.key == other.pair.key, "also after a restart"


def test_after_undo_a_changed_picture_is_judged_as_it_is_now(folder):
    judge_all(voting(folder, pairs_of(2)), A)
    Image.fromarray(flat(9)).save(folder / "0.png")
    table = voting(folder, pairs_of(2))
    table.vote(A, table.undo(A).id, "left")
    [verdict] = verdict_file(folder).read()
    assert table.is_of_today(verdict) and table.progress() == {"judged": 1, "open": 0, "waiting": 0, "gone": 0}
    table.undo(A)
    assert table.progress()["open"] == 1 and table.show(A) is not None
    (folder / "0.png").unlink()
    table = voting(folder, pairs_of(2))
    assert table.show(A) is None and table.progress() == {"judged": 0, "open": 0, "waiting": 0, "gone": 1}


def test_sides_are_drawn_by_the_seed(folder):
    left = lambda seed: [shown_left(voting(folder, [pair], seed=seed)) for pair in pairs_of()]
    shown_left = lambda table: table.show(A).left.path
    assert left(0) == left(0)
    first = {str(min(pair.one, pair.other)) == path for seed in range(4) for pair, path in zip(pairs_of(), left(seed))}
    assert first == {True, False}


def test_gone_and_equal_pictures_are_shown_to_nobody(folder):
    Image.fromarray(flat(1)).save(folder / "0.png")
    (folder / "3.png").unlink()
    table = voting(folder)
    assert {frozenset((pair.one, pair.other)) for pair in pairs_of()} >= {frozenset(("0.png", "1.png"))}
    keys = judge_all(table, A)
    assert {key[1] for key in keys} == {frozenset(("0.png", "2.png")), frozenset(("1.png", "2.png"))}
    assert table.progress() == {"judged": 2, "open": 0, "waiting": 0, "gone": 3}


def test_a_verdict_about_other_pixels_does_not_count_as_judged(folder):
    judge_all(voting(folder, pairs_of(2)), A)
    Image.fromarray(flat(9)).save(folder / "0.png")
    assert voting(folder, pairs_of(2)).show(B) is not None


def test_what_is_no_waiting_pair_is_left_out(folder, caplog):
    (folder / WAITING_FOLDER).mkdir(parents=True)
    for n, text in enumerate(("{", "[]", '{"prompt": "a"}', json.dumps({"prompt": "a", "one": "../x", "other": "y"}))):
        (folder / WAITING_FOLDER / f"{n}.json").write_text(text)
    assert voting(folder, []).show(A) is None
    assert caplog.text.count("no pair of a run that waits") == 4


@pytest.mark.parametrize("path", ["a\\b.png", "C:b.png", "a\nb.png", "../a.png", "/a.png", "a\u202eb.png"])
def test_a_picture_that_no_verdict_can_name_is_refused(path):
    with pytest.raises(InputError, match="rename it"):
        check_storable(path)
    assert check_storable("Bild ä 12:30.png")


def three(prompt="a cat"):
    """Three images of a prompt, each compared with each other in both orders."""
    first, second = np.nonzero(~np.eye(3, dtype=bool))
    return ImagePairs(np.stack([flat(10 * i) for i in range(3)]), [{"prompt": prompt}] * 3, first, second, first)


def person(folder, choose, stop, most=None):
    """Somebody who judges on the page what waits, by the level of the pictures."""

    def work():
        table, count = voting(folder, []), 0
        while not stop.is_set() and count != most:
            shown = table.show(A)
            if shown is None:
                time.sleep(0.02)
                continue
            levels = [int(table.pixels(side.path)[0, 0, 0]) for side in (shown.left, shown.right)]
            table.vote(A, shown.id, choose(*levels))
            count += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def judging(tmp_path):
    """A folder of a run whose pairs somebody judges, as `start` is told to."""
    stop, threads = threading.Event(), []
    yield tmp_path, lambda choose, most=None: threads.append(person(tmp_path, choose, stop, most))
    stop.set()
    for thread in threads:
        thread.join(5)


def test_a_live_pair_waits_for_a_person_and_is_never_asked_about_twice(judging):
    folder, start = judging
    start(lambda left, right: "left" if left > right else "right")
    judge, pairs = Votes(str(folder), seconds=20), three()
    scored = judge(pairs)
    assert scored.values.tolist() == (pairs.first > pairs.second).astype(float).tolist() and not scored.why
    assert len(verdict_file(folder).read()) == 3, "one verdict answers for both orders"
    assert not list((folder / WAITING_FOLDER).iterdir()) and len(list((folder / LIVE_FOLDER).glob("*.png"))) == 3
    assert Votes(str(folder), seconds=0)(pairs).values.tolist() == scored.values.tolist()
    assert np.isnan(Votes(str(folder), seconds=0)(three("a dog")).values).all(), "the prompt belongs to the question"


def test_what_nobody_judges_in_time_or_skips_has_no_verdict_and_a_reason(judging):
    folder, start = judging
    start(lambda left, right: "skip" if 0 in (left, right) else "tie", most=2)
    scored = Votes(str(folder), seconds=3.0)(three())
    reasons = sorted(scored.why.values())
    assert np.isnan(scored.values).sum() == len(reasons) >= 4
    assert "a person skipped the pair" in reasons[0] and "nobody judged it, nor any other pair, for 3 s" in reasons[-1]
    assert not list((folder / WAITING_FOLDER).iterdir())


def test_equal_images_are_a_tie_that_nobody_is_asked_about(tmp_path):
    images = np.stack([flat(1), flat(1)])
    pairs = ImagePairs(images, [{"prompt": "a"}] * 2, np.array([0]), np.array([1]), np.array([0]))
    assert Votes(str(tmp_path), seconds=100)(pairs).values.tolist() == [0.5] and not list(tmp_path.iterdir())


def test_several_verdicts_about_a_pair_are_averaged(folder):
    for session, choice in ((A, "left"), (B, "left"), ("d" * 16, "tie")):
        table = voting(folder, pairs_of(2), again=True)
        shown = table.show(session)
        table.vote(session, shown.id, choice)
    images = np.stack([flat(0), flat(1)])
    pairs = ImagePairs(images, [{"prompt": "a cat"}] * 2, np.array([0, 1]), np.array([1, 0]), np.array([0, 0]))
    wins = {verdict.left.path for verdict in table.verdicts if verdict.verdict == "left"}
    assert wins == {"0.png", "1.png"}, "sides were exchanged"
    assert Votes(str(folder), seconds=0)(pairs).values.tolist() == [0.5, 0.5]
    table = voting(folder, pairs_of(2), again=True)
    shown = table.show("c" * 16)
    table.vote("c" * 16, shown.id, "left" if shown.left.path == "0.png" else "right")
    assert Votes(str(folder), seconds=0)(pairs).values.tolist() == [0.625, 0.375]


def test_pictures_are_not_written_through_a_link(tmp_path, tmp_path_factory):
    (tmp_path / "votes").symlink_to(tmp_path_factory.mktemp("outside"))
    with pytest.raises(OutputError, match="leads out of"):
        show_live_pair(tmp_path, "a", ("0" * 64, "1" * 64), (flat(0), flat(1)))


@pytest.mark.parametrize(
    "options, words", [(dict(path=""), "judge.path is empty"), (dict(path="x", seconds=-1), "0 or more")]
)
def test_options_that_cannot_be_used_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Votes(**options)


def test_a_broken_file_of_verdicts_stops_a_run_before_it_trains(tmp_path):
    (tmp_path / "verdicts.jsonl").write_text("[]\n")
    images = np.stack([flat(1), flat(1)])
    pairs = ImagePairs(images, [{"prompt": "a"}] * 2, np.array([0]), np.array([1]), np.array([0]))
    with pytest.raises(InputError, match=r"verdicts\.jsonl:1"):
        Votes(str(tmp_path))(pairs)
    assert PicturePair("p", "a", "b").key == PicturePair("p", "b", "a").key
    assert picture_digest(flat(1)) != picture_digest(flat(1).reshape(2, 8, 3))
