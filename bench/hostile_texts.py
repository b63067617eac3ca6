"""Lists of prompts, captions and records in every form and damage, with the prompts that were written."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from hostile import Answer, run
from PIL import Image

from afterflow.experiment import execute, latent_dataset
from afterflow.system.errors import TrainingStopped

WORDS = (
    "a red star",
    "zwei Kreise",
    "三角形",
    "🌟",
    "e\u0301toile",
    "نجمة",
    '"quoted"',
    "it's",
    "50 %",
    "#1",
    "a, b; c\td",
    "{x}",
)
INSIDE = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\u200b\xa0"
"""Characters inside a prompt at which other readers cut, or that they drop."""


@dataclass(frozen=True)
class Case:
    """A file with its name, and the prompts that it holds; None: it must be refused."""

    name: str
    data: bytes
    prompts: list[str] | None
    what: str


def make_prompts(rng: np.random.Generator) -> list[str]:
    """Some prompts, all different, of words and odd characters."""
    prompts = []
    for n in range(int(rng.integers(1, 7))):
        words = [WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(1, 5))]
        prompts.append(f"{n} " + INSIDE[rng.integers(len(INSIDE))].join(words))
    return prompts


def as_text(prompts: list[str]) -> str:
    return "\n".join(prompts) + "\n"


def as_lines(prompts: list[str]) -> str:
    return "".join(json.dumps({"prompt": p, "n": n}, ensure_ascii=n % 2 == 0) + "\n" for n, p in enumerate(prompts))


def as_list(prompts: list[str]) -> str:
    return json.dumps(prompts, ensure_ascii=False, indent=1)


def as_table(prompts: list[str]) -> str:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([["n", "Prompt"], *([n, p] for n, p in enumerate(prompts))])
    return table.getvalue()


FORMS: dict[str, Callable[[list[str]], str]] = {".txt": as_text, ".jsonl": as_lines, ".json": as_list, ".csv": as_table}


def whole(rng: np.random.Generator, ending: str, prompts: list[str]) -> tuple[bytes, str]:
    """A file that is right, with or without a byte order mark and carriage returns."""
    text, mark, returns = FORMS[ending](prompts), rng.random() < 0.4, rng.random() < 0.4
    data = (("\ufeff" if mark else "") + (text.replace("\n", "\r\n") if returns else text)).encode()
    return data, " ".join(["whole", *(["with a mark"] if mark else []), *(["with returns"] if returns else [])])


def damaged(rng: np.random.Generator, ending: str, prompts: list[str]) -> tuple[bytes, str]:
    """A file that cannot be read as it is meant."""
    data = FORMS[ending](prompts).encode()
    cut = data[: data.rfind(b'"') + (0 if ending in (".json", ".csv") else -1)]
    position = int(rng.integers(1, len(data)))
    while data[position - 1] >= 0x80 or data[position] >= 0x80:  # between whole characters
        position = int(rng.integers(1, len(data)))
    kinds = {
        "a NUL": data[:position] + b"\0" + data[position:],
        "a byte of Latin-1": data[:position] + b"\xe9" + data[position:],
        "half a surrogate pair": data[:position] + b"\xed\xa0\x80" + data[position:],
        "UTF-16": FORMS[ending](prompts).encode("utf-16"),
        "empty": b"",
        "blank": b"\xef\xbb\xbf \r\n\t\n",
        "binary": b"\x89PNG\r\n\x1a\n" + rng.bytes(300),
    }
    if ending in (".json", ".jsonl"):
        kinds |= {
            "deep": b"[" * 100_000 + b"\n",
            "digits": b'{"prompt": "a", "n": ' + b"1" * 5000 + b"}\n",
            "an escaped NUL": b'[{"prompt": "a\\u0000"}]' if ending == ".json" else b'{"prompt": "a\\u0000"}\n',
            "an escaped surrogate": b'["a\\ud800"]' if ending == ".json" else b'{"prompt": "a\\ud800"}\n',
            "no list": b"3",
            "cut": cut,
        }
    if ending == ".csv":
        kinds |= {
            "a comma too many": data + b"9,one, two\n",
            "a cell too few": data + b"9\n",
            "an open quote": data + b'9,"one\n',
            "no column": data.replace(b"Prompt", b"words"),
            "a name twice": data.replace(b"n,Prompt", b"Prompt,Prompt"),
        }
    name = list(kinds)[rng.integers(len(kinds))]
    return kinds[name], name


def make_cases(count: int, seed: int) -> list[Case]:
    rng, cases = np.random.default_rng(seed), []
    for i in range(count):
        ending, prompts = list(FORMS)[rng.integers(4)], make_prompts(rng)
        bad = rng.random() < 0.5
        data, what = (damaged if bad else whole)(rng, ending, prompts)
        typed = [ending, ending.upper(), ending.title()][rng.integers(3)]
        if not bad and rng.random() < 0.08:
            typed, bad, what = [".md", ".tsv", ".yaml", ""][rng.integers(4)], True, "another ending"
        cases.append(Case(f"list{i}{typed}", data, None if bad else prompts, f"{ending} {what}"))
    return cases


READ: list[str] = []
"""The prompts that the command has read."""


def reads(function: Callable) -> Callable:
    """Note the prompts of the records that a function returns."""

    def noted(*args: object) -> list[dict]:
        records = function(*args)
        READ[:] = [record["prompt"] for record in records]
        return records

    return noted


def enough(*args: object, **options: object) -> None:
    raise TrainingStopped("enough was read")


def train(option: str) -> Callable[[Path], Answer]:
    """Ask `train` for prompts up to where it would load the model."""

    def ask(file: Path) -> Answer:
        name = "prompt_records" if option == "--prompts" else "held_out_records"
        noted = mock.patch.object(execute, name, reads(getattr(execute, name)))
        with noted, mock.patch.object(execute.TrainingSetup, "build", enough):
            # Rewards that judge any prompt; all prompts are trained on, and none of them held out.
            measured = ["--held-out", "None"] if option == "--prompts" else ["--eval-rewards", "--best-by", "None"]
            words = ["--algorithm.weights", "jpeg_compressibility", "1", *measured]
            return run("train", "jpeg_ddpo", option, file, *words)

    return ask


def suite(file: Path) -> Answer:
    """Ask `eval` for prompts up to where it would load the model."""
    from afterflow.cli import evaluate
    from afterflow.cli.model_options import ModelOptions

    noted = mock.patch.object(evaluate, "suite_records", reads(evaluate.suite_records))
    with noted, mock.patch.object(ModelOptions, "load", enough):
        words = ["--suite", "drawbench", "--rewards", "jpeg_compressibility", "--guidance", 1, "--out", f"{file}.out"]
        return run("eval", "tiny", "--prompts-from", file, *words)


def captions(ending: str) -> Callable[[Path], Answer]:
    """Ask `train --images` for captions, in a list or a text beside a picture, up to where it would encode images."""

    def ask(file: Path) -> Answer:
        folder = Path(f"images_{file.stem}{ending}")
        folder.mkdir()
        Image.new("RGB", (32, 32)).save(folder / "p.png")
        (folder / ("metadata.jsonl" if ending == ".jsonl" else f"p{ending}")).write_bytes(file.read_bytes())

        def noted(parts, *args: object) -> None:
            READ[:] = [picture.record["prompt"] for picture in parts]
            enough()

        with mock.patch.object(latent_dataset, "encode_shard", noted):
            return run("train", "shapes_sft", "--images", folder, "--name", folder.name)

    return ask


def as_metadata(case: Case) -> bytes:
    """The same prompts or damage as captions of one picture."""
    if case.what.startswith(".jsonl"):
        return case.data.replace(b'{"prompt"', b'{"file_name": "p.png", "prompt"')
    return case.data


def texts(count: int, seed: int) -> tuple[dict[str, Counter], list[str]]:
    """Every list to train on, to evaluate on and as a suite; and its text as captions and as a suite's records."""
    cases, table, wrong = make_cases(count, seed), {}, []
    trainers = {"train --prompts": train("--prompts"), "train --held-out-prompts": train("--held-out-prompts")}
    for command, ask in (trainers | {"eval --prompts-from": suite}).items():
        table[command] = Counter()
        for case in cases:
            Path(case.name).write_bytes(case.data)
            judge(table[command], wrong, command, case, ask(Path(case.name)), case.name, case.prompts)
    for ending in (".txt", ".caption", ".jsonl"):
        command = f"train --images, {'metadata.jsonl' if ending == '.jsonl' else f'{ending} beside'}"
        table[command] = Counter()
        for case in cases:
            kind = case.what.split()[0]
            if kind == (".jsonl" if ending == ".jsonl" else ".txt") and "ending" not in case.what:
                Path(case.name).write_bytes(as_metadata(case))
                expected = case.prompts
                if ending != ".jsonl" and expected is not None:
                    expected = [" ".join(prompt.strip() for prompt in expected)]
                name = "metadata.jsonl" if ending == ".jsonl" else f"images_{Path(case.name).stem}"
                judge(table[command], wrong, command, case, captions(ending)(Path(case.name)), name, expected)
    return table, wrong


def judge(
    outcomes: Counter, wrong: list[str], command: str, case: Case, answer: Answer, name: str, expected: list[str] | None
) -> None:
    """Count whether the prompts are those that were written, or the file is refused by name."""
    stopped = "enough was read" in answer.err and not answer.traceback
    if expected is None:
        outcome = "refused by name" if answer.refuses(name) else "wrong"
    else:
        outcome = "the prompts as written" if stopped and expected == READ else "wrong"
    outcomes[outcome] += 1
    if outcome == "wrong":
        read = "" if expected == READ else f", read {READ!r:.200} for {expected!r:.200}"
        wrong.append(f"{command}, {answer.problem(case.what)}{read}")
    READ.clear()
