"""Verdicts of people: what the file keeps, and which pairs of it teach."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from afterflow.data.verdict_pairs import read_verdicts
from afterflow.system.errors import InputError, OutputError
from afterflow.system.pictures import picture_digest
from afterflow.system.verdicts import JudgedPicture, Verdict, mean_verdicts, verdict_file

LEVELS = {"dark": 10, "gray": 100, "light": 200}


def pixels(name):
    return np.full((8, 8, 3), LEVELS[name], np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A folder with three pictures."""
    for name in LEVELS:
        Image.fromarray(pixels(name)).save(tmp_path / f"{name}.png")
    return tmp_path


def picture(name):
    return JudgedPicture(f"{name}.png", picture_digest(pixels(name)))


def verdict(left, right, choice, number=0, prompt="a cat"):
    return Verdict(f"v{number}", prompt, picture(left), picture(right), choice, "2026-01-01T00:00:00+00:00", "s")


def voted(folder, *verdicts):
    """The file of a folder with these verdicts."""
    file = verdict_file(folder)
    for one in verdicts:
        file.add(one)
    return file


def line(**changes):
    """A line of the file as JSON has it."""
    sides = {side: {"path": f"{name}.png", "digest": "0" * 64} for side, name in (("left", "dark"), ("right", "gray"))}
    return {"id": "x", "prompt": "p", "verdict": "left", "time": "t", "session": "s"} | sides | changes


def test_what_is_added_is_read_and_what_is_taken_back_is_not(folder):
    one, other = verdict("dark", "gray", "left", 1, "a “cat”\u2028\n"), verdict("gray", "light", "skip", 2)
    file = voted(folder, one, other)
    assert file.read() == [one, other]
    file.undo(one, "later")
    assert file.read() == [other]
    assert len(file.file.read_text().splitlines()) == 3, "lines are added and none is rewritten"


def test_half_a_line_is_no_verdict_and_the_next_one_is_written_in_its_stead(folder):
    file = voted(folder, verdict("dark", "gray", "left", 1))
    with file.file.open("a") as stream:
        stream.write('{"id": "half')
    assert [one.id for one in file.read()] == ["v1"]
    file.add(verdict("dark", "gray", "tie", 2))
    assert [one.id for one in file.read()] == ["v1", "v2"]


@pytest.mark.parametrize(
    "bad, words",
    [
        ("[]", "no verdict"),
        ("{", "not JSON"),
        (json.dumps(line(verdict="first")), "one of left, right, tie, skip"),
        (json.dumps(line(verdict=1)), "one of left, right, tie, skip"),
        (json.dumps(line(verdict=[])), "one of left, right, tie, skip"),
        (json.dumps(line(left="dark.png")), "path and digest"),
        (json.dumps(line(left={"path": "dark.png", "digest": "0"})), "path and digest"),
        *(
            (json.dumps(line(left={"path": path, "digest": "0" * 64})), "leads out of the folder")
            for path in ("../dark.png", "/etc/passwd", "a/../../b.png", "..\\b.png", "C:/b.png", "")
        ),
    ],
)
def test_a_line_that_is_no_verdict_is_refused_with_its_number(folder, bad, words):
    file = voted(folder, verdict("dark", "gray", "left"))
    with file.file.open("a") as stream:
        stream.write(bad + "\n")
    with pytest.raises(InputError, match=rf"verdicts\.jsonl:2: .*{words}"):
        file.read()


def test_a_link_is_neither_read_nor_written_through(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "verdicts.jsonl"
    outside.write_text("")
    (folder / "verdicts.jsonl").symlink_to(outside)
    with pytest.raises(OutputError, match="symbolic link"):
        voted(folder, verdict("dark", "gray", "left"))
    assert outside.read_text() == ""


def test_the_mean_over_people_counts_whichever_side_a_picture_was_shown_on():
    votes = [verdict("dark", "gray", "left"), verdict("gray", "dark", "right"), verdict("gray", "dark", "left")]
    votes += [verdict("gray", "dark", "tie"), verdict("dark", "gray", "skip"), verdict("dark", "light", "skip")]
    dark, gray, light = (picture(name).digest for name in LEVELS)
    means = mean_verdicts(votes)
    dark_wins = (1 + 1 + 0 + 0.5) / 4
    assert means["a cat", *sorted((dark, gray))] == (dark_wins if dark < gray else 1 - dark_wins)
    assert means["a cat", *sorted((dark, light))] is None


def test_pairs_have_the_winner_first(folder):
    votes = [verdict("dark", "gray", "left"), verdict("light", "gray", "right", 1), verdict("dark", "light", "tie", 2)]
    voted(folder, *votes, verdict("dark", "light", "left", 3, "a dog"))
    pairs = read_verdicts(folder)
    assert [(prompt, winner.name, loser.name) for prompt, winner, loser in pairs] == [
        ("a cat", "dark.png", "gray.png"),
        ("a cat", "gray.png", "light.png"),
        ("a dog", "dark.png", "light.png"),
    ]
    assert read_verdicts(folder / "verdicts.jsonl") == pairs


@pytest.mark.parametrize("harm", ["gone", "changed", "broken", "link"])
def test_verdicts_about_pictures_that_are_gone_are_left_out_and_counted(folder, tmp_path_factory, caplog, harm):
    voted(
        folder, verdict("dark", "gray", "left"), verdict("gray", "light", "left", 1), verdict("dark", "gray", "left", 2)
    )
    (folder / "dark.png").unlink()
    if harm == "changed":
        Image.fromarray(pixels("dark") + 1).save(folder / "dark.png")
    elif harm == "broken":
        (folder / "dark.png").write_bytes(b"none")
    elif harm == "link":
        outside = tmp_path_factory.mktemp("outside") / "dark.png"
        Image.fromarray(pixels("dark")).save(outside)
        (folder / "dark.png").symlink_to(outside)
    with caplog.at_level(logging.WARNING, "afterflow"):
        assert [pair.winner.name for pair in read_verdicts(folder)] == ["gray.png"]
    [message] = [record.message for record in caplog.records]
    assert "1 of 2 judged pairs are used; left out: 1 with a picture that is gone or has changed" in message
    (folder / "light.png").unlink()
    with pytest.raises(InputError, match="no judged pair can be used: 2 with a picture that is gone"):
        read_verdicts(folder)


def test_no_verdict_and_no_winner_are_refused_in_a_sentence(folder):
    with pytest.raises(InputError, match=r"no verdict is there; afterflow vote .* asks for some"):
        read_verdicts(folder)
    voted(folder, verdict("dark", "gray", "tie"), verdict("dark", "light", "skip", 1))
    with pytest.raises(InputError, match="no judged pair can be used: 2 without a winner"):
        read_verdicts(folder)
    (folder / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"in a file that ends in \.jsonl"):
        read_verdicts(folder / "notes.txt")
