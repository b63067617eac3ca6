"""Texts that users bring: cut at line feeds alone, and refused with file and line where no text is meant."""

import csv
import io
import json
from pathlib import Path

import pytest

from afterflow.data.geneval_prompts import excluded_prompts
from afterflow.data.image_folders import list_images
from afterflow.data.prompt_lists import read_prompts
from afterflow.data.prompts import PromptFile
from afterflow.evaluation.image_store import read_records
from afterflow.experiment.run_folder import read_record
from afterflow.system.errors import InputError
from afterflow.system.text_files import read_json, read_text

INSIDE = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Characters at which str.splitlines cuts and a line of a file does not end."""
ODD = [f"a red{c}star" for c in INSIDE] + ["a\tstar", "ein „Stern“ 🌟", "نجمة", "e\u0301toile"]


def as_csv(prompts):
    table = io.StringIO()
    csv.writer(table).writerows([["prompt", "n"], *([prompt, n] for n, prompt in enumerate(prompts))])
    return table.getvalue()


FORMS = {
    "p.txt": "\n".join,
    "p.TXT": lambda prompts: "\r\n".join(["", *prompts, ""]),
    "p.jsonl": lambda prompts: "\n".join(json.dumps({"prompt": p}, ensure_ascii=False) for p in prompts),
    "p.JSON": lambda prompts: json.dumps(prompts, ensure_ascii=False),
    "q.json": lambda prompts: json.dumps([{"Caption": p} for p in prompts]),
    "p.csv": as_csv,
    "p.Csv": lambda prompts: as_csv(prompts).replace("\r\n", "\n"),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", FORMS)
def test_every_reader_of_prompts_reads_every_form_of_list_alike(name, mark, tmp_path):
    file = tmp_path / name
    file.write_bytes((mark + FORMS[name](ODD)).encode())
    assert [record["prompt"] for record in PromptFile(str(file)).records(0)] == ODD
    assert [record["prompt"] for record in read_prompts(str(file))] == ODD
    assert excluded_prompts(str(file)) == set(ODD)


def test_training_keeps_what_is_there_twice_and_a_suite_asks_once(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a\nb\na\n")
    assert [record["prompt"] for record in PromptFile(str(file)).records(0)] == ["a", "b", "a"]
    assert [record["prompt"] for record in read_prompts(str(file))] == ["a", "b"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_records_of_pictures_are_read_alike(mark, tmp_path):
    (tmp_path / "00000").mkdir()
    lines = [json.dumps({"file_name": "x.png", "text": p, "prompt": p}, ensure_ascii=False) for p in ODD]
    (tmp_path / "metadata.jsonl").write_bytes((mark + "\n".join(lines)).encode())
    (tmp_path / "00000" / "metadata.jsonl").write_bytes((mark + lines[0] + "\n").encode())
    (tmp_path / "x.png").touch()
    assert [entry.record["prompt"] for entry in list_images(tmp_path, "text").entries] == ODD
    assert read_records(tmp_path)[0]["prompt"] == ODD[0]


READERS = {
    "p.txt": lambda file: PromptFile(str(file)).records(0),
    "p.jsonl": lambda file: PromptFile(str(file)).records(0),
    "p.csv": lambda file: read_prompts(str(file)),
    "p.json": lambda file: read_prompts(str(file)),
    "q.jsonl": lambda file: excluded_prompts(str(file)),
    "metadata.jsonl": lambda file: list_images(file.parent, "text"),
    "00000/metadata.jsonl": lambda file: read_records(file.parents[1]),
    "run.json": read_record,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content", [b"ok\n\xff\n", b"ok\na\0b\n", "ok\n\ud800".encode("utf-8", "surrogatepass"), "ok\nx".encode("utf-16")]
)
def test_what_no_text_is_is_refused_with_file_and_line(name, content, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        READERS[name](file)
    line = 1 if content.startswith(b"\xff") else 2
    assert f"{file}:{line}: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("escape", ["\\ud800", "\\u0000", "\\udfff tail"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "metadata.jsonl", "00000/metadata.jsonl"])
def test_what_json_escapes_is_refused_too(name, escape, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    line = f'{{"file_name": "x.png", "prompt": "a{escape}", "text": "a"}}'
    file.write_text(f"[{line}]" if name == "p.json" else line + "\n")
    with pytest.raises(InputError, match=r"NUL|half a character"):
        READERS[name](file)


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("p.csv", "prompt\na red heart, blue\n", r"p\.csv:2: 2 cells under a header of 1; put a text with a comma in"),
        ("p.csv", "prompt,n\na\n", r"p\.csv:2: 1 cells under a header of 2"),
        ("p.csv", 'prompt\n"a\nb\n', r"p\.csv:\d: it cannot be read as CSV"),
        ("p.csv", "prompt,prompt\na,b\n", "names prompt twice"),
        ("p.csv", "words\na\n", "its columns are words"),
        ("p.csv", "prompt\n" + "x" * 200_000 + "\n", "cannot be read as CSV"),
        ("p.json", "[" * 100_000, r"p\.json: not JSON"),
        ("p.jsonl", '{"prompt": "a", "n": ' + "1" * 5000 + "}", r"p\.jsonl:1: not JSON"),
        ("p.json", "[1]", "row 1 is neither a text nor an object"),
        ("p.md", "a star\n", r"p\.md: a list of prompts ends in \.txt, \.jsonl, \.csv, \.json, not in '\.md'"),
        ("p.tsv", "prompt\na\n", "ends in"),
        ("prompts", "a star\n", "not in ''"),
        ("p.txt", "one\rtwo\rthree\r", "carriage returns alone"),
        ("p.txt", "\ufeff", "the file is empty"),
        ("p.csv", "", "the file is empty"),
    ],
)
def test_a_list_that_would_be_misread_is_refused(name, text, sentence, tmp_path):
    file = tmp_path / name
    file.write_text(text, newline="")
    for read in (read_prompts, lambda path: PromptFile(path).records(0)):
        with pytest.raises(InputError, match=sentence):
            read(str(file))


def test_a_folder_of_lists_is_read_whatever_else_lies_in_it(tmp_path):
    for name in ("anime.TXT", "photo.csv"):
        (tmp_path / name).write_text("prompt\na\n" if name.endswith("csv") else "a\n")
    for name in (".DS_Store", "._anime.txt", "README.md"):
        (tmp_path / name).write_bytes(b"\0\xff")
    (tmp_path / "x.txt").mkdir()
    assert PromptFile(str(tmp_path)).records(0) == [{"tag": t, "prompt": "a"} for t in ("anime", "photo")]


def test_files_that_cannot_be_opened_are_named(tmp_path):
    for read in (read_text, read_json):
        with pytest.raises(InputError, match="it cannot be read"):
            read(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        PromptFile(str(Path("nowhere.CSV"))).records(0)
