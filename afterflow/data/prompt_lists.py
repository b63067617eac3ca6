"""The reader of prompt lists, for training and for suites: text, JSON, CSV, a folder of them, or a data set of the hub.

A list is read as records with their locations, so that whoever uses a record can say where it stands.
"""

import csv
import logging
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..system.errors import InputError, MissingDependencyError
from ..system.input_pictures import locate_inputs, prompt_key
from ..system.json_text import json_columns, parse_strict_json
from ..system.once import say_once
from ..system.optional_dependencies import check_extra
from ..system.text_files import check_text, parse_json, read_json, read_text, read_text_lines, texts_in

_log = logging.getLogger(__name__)

PROMPT_COLUMNS = ("prompt", "prompts", "prompt_en", "caption", "text")
"""Names of the column of prompts, in lower case; the first that exists is read."""
TAG_COLUMNS = ("tag", "category", "style")
"""Names of the column of tags, in lower case; the first that exists is read."""
FILE_TYPES = (".txt", ".jsonl", ".csv", ".json")
"""Endings of files that are read, in lower case."""
DEFAULT_TAG = "all"
"""Tag of prompts that have none."""

Located = tuple[str, dict]
"""A location, such as FILE:LINE, and the record that stands there."""
RecordChecks = Mapping[str, Callable[[dict], None]]
"""Check of a record by the reward that needs it; the check raises ValueError with one sentence."""
NO_CHECKS: RecordChecks = MappingProxyType({})


def read_prompts(source: str, checks: RecordChecks = NO_CHECKS) -> list[dict]:
    """Read records with a prompt and a tag, each prompt about its pictures once.

    Of records with one prompt that differ in something else the last is kept, which is said.  InputError as of
    `locate_prompts` and `check_record`.
    """
    by_prompt: dict[tuple, dict] = {}
    replaced: list[str] = []
    for location, record in locate_prompts(source):
        check_record(record, location, checks)
        key, record = prompt_key(record), {"tag": DEFAULT_TAG} | record
        if by_prompt.setdefault(key, record) != record:
            replaced.append(location)
            by_prompt[key] = record
    if replaced:
        several = f" (and so of {len(replaced) - 1} more)" if replaced[1:] else ""
        message = "its prompt stood there before with something else beside it; the last one is kept"
        say_once(_log, source, f"{replaced[0]}: {message}{several}")
    return list(by_prompt.values())


def check_record(record: dict, location: str, checks: RecordChecks) -> None:
    """Raise InputError with the location of a record that a reward could not judge."""
    for reward, validate in checks.items():
        try:
            validate(record)
        except MissingDependencyError:
            raise  # no record mends it
        except ValueError as error:
            raise InputError(f"{location}: {error}; {reward} needs that of every record") from None
        except (TypeError, LookupError, AttributeError) as error:  # a check of a user's own, of an odd record
            what = f"its check of a record raised {type(error).__name__}: {error}"
            raise InputError(f"{location}: it is not what {reward} reads; {what}") from error


def locate_prompts(source: str) -> list[Located]:
    """Read the records of a list, in order and as often as they are there, with their locations.

    source: a file, a folder, or `owner/name[:split]` of the hub.  The files of a folder are tags, as HPD's styles are.
    Pictures that a record names under `input` are found in the folder of its file.

    Raises InputError where there is nothing to read, or no column of prompts.
    """
    path = Path(source)
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if is_prompt_file(file))
            located = [
                (location, {"tag": file.stem} | record) for file in files for location, record in read_prompt_file(file)
            ]
        elif path.is_file():
            located = list(read_prompt_file(path))
        elif path.suffix.lower() in FILE_TYPES or len(path.parts) != 2:
            raise InputError(f"{source}: no such file or folder; a data set of the hub reads owner/name[:split]")
        else:
            located = list(read_hub_prompts(source))
    except InputError as error:
        raise InputError(f"prompts {error}") from None
    if not located:
        empty = path.is_file() and not read_text(path).strip()
        advice = "the file is empty; write one prompt per line" if empty else "it holds no prompt; write one per line"
        raise InputError(f"prompts {source}: {advice}")
    home = path if path.is_dir() else path.parent if path.is_file() else None  # of the hub: no folder of ours
    for location, record in located:
        check_tag(record, location)
    return [(location, locate_inputs(record, home, location)) for location, record in located]


def check_tag(record: Mapping[str, Any], location: str) -> None:
    """Raise InputError for a tag that is a list or an object: it names the kind of a prompt."""
    if isinstance(tag := record.get("tag"), list | dict):
        raise InputError(f"{location}: its tag is {reprlib.repr(tag)}; write one text")


def is_prompt_file(file: Path) -> bool:
    """Whether a file in a folder is a list of prompts: by its ending, and not hidden."""
    return file.suffix.lower() in FILE_TYPES and not file.name.startswith(".") and file.is_file()


def read_prompt_file(file: Path) -> Iterator[Located]:
    """Read the records of one file; InputError where it cannot be read."""
    readers = {".txt": read_plain, ".jsonl": read_json_lines, ".csv": read_csv, ".json": read_json_list}
    if file.suffix.lower() not in readers:
        raise InputError(f"{file}: a list of prompts ends in {', '.join(FILE_TYPES)}, not in {file.suffix!r}")
    return readers[file.suffix.lower()](file)


def read_plain(file: Path) -> Iterator[Located]:
    """Read a file with a prompt on each line; blank lines are none."""
    for location, line in read_text_lines(file):
        yield location, {"prompt": line.strip()}


def read_json_lines(file: Path) -> Iterator[Located]:
    """Read a file with an object on each line, a record as it is (GenEval's schema)."""
    for location, line in read_text_lines(file):
        row = parse_json(line, location)
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise InputError(f'{location}: a record needs a "prompt" that is a text')
        yield location, row


def read_json_list(file: Path) -> Iterator[Located]:
    """Read a file with one list, of prompts or of objects."""
    rows = read_json(file)
    if not isinstance(rows, list):
        raise InputError(f"{file}: it is no list of prompts")
    for n, row in enumerate(rows, 1):
        row = {"prompt": row} if isinstance(row, str) else row
        if not isinstance(row, dict):
            raise InputError(f"{file}: row {n} is neither a text nor an object with a prompt")
        yield f"{file}: row {n}", record_from_row(row, f"{file}: row {n}")


def read_csv(file: Path) -> Iterator[Located]:
    """Read a table with a header, whose prompts with commas are in double quotes."""
    for n, (location, row) in enumerate(csv_rows(file), 1):
        yield location, record_from_row(row, f"{location}: row {n}")


def csv_rows(file: Path) -> Iterator[Located]:
    """Read the rows of a table as dictionaries by the names in its header, with FILE:LINE.

    InputError for a row with other cells than the header, for an open quote, and for a name that stands there twice.
    """
    reader = csv.reader((line + "\n" for line in read_text(file).split("\n")), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            location = f"{file}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [name.strip() for name in cells]
                if doubled := sorted({name for name in header if name and header.count(name) > 1}):
                    raise InputError(f"{location}: the header names {', '.join(doubled)} twice")
                continue
            if len(cells) != len(header):
                cause = "put a text with a comma in double quotes" if len(cells) > len(header) else "fill the row"
                raise InputError(f"{location}: {len(cells)} cells under a header of {len(header)}; {cause}")
            yield location, dict(zip(header, cells))
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: it cannot be read as CSV ({error})") from None


def read_hub_prompts(source: str) -> Iterator[Located]:
    """Read the records of `owner/name[:split]` of the hub; InputError where it cannot be loaded."""
    from .hub_datasets import load_hub_dataset, without_pictures

    check_extra(f"prompts {source}, a data set of the hub,", ["datasets"], "data")
    dataset, _, split = source.partition(":")
    rows = load_hub_dataset(dataset, split or "train", None)
    for n, row in enumerate(without_pictures(rows, source), 1):
        location = f"{source}: row {n}"
        for text in texts_in(row):
            check_text(text, location)
        yield location, record_from_row(dict(row), location)


def prompt_column(row: Mapping[str, Any]) -> str | None:
    """Return the name of a row's column of prompts, if there is one."""
    names = {name.lower(): name for name in reversed(list(row))}
    return next((names[name] for name in PROMPT_COLUMNS if name in names), None)


def record_from_row(row: Mapping[str, Any], location: str) -> dict:
    """Make the record of a row of a table, with its other columns; InputError for a row without a prompt."""
    names = {name.lower(): name for name in row}
    column = prompt_column(row)
    prompt = None if column is None else row[column]
    if not isinstance(prompt, str) or not prompt.strip():
        columns = f"; its columns are {', '.join(row)}" if column is None else ""
        raise InputError(f"{location} has no text under one of {', '.join(PROMPT_COLUMNS)}{columns}")
    tag = next((row[names[name]] for name in TAG_COLUMNS if name in names), None)
    check_tag({"tag": tag}, location)
    tagged = {} if tag is None else {"tag": str(tag)}
    plain = {name: value for name, value in json_columns(row).items() if value is not None}
    return {**plain, "prompt": prompt.strip(), **tagged, **read_test_points(row, location)}


def read_test_points(row: Mapping[str, Any], location: str) -> dict:
    """Read UniGenBench's test points, pairs of a dimension and what an image must show for it."""
    column = next((name for name in row if name.startswith("sub_dims")), None)
    if column is None:
        return {}
    try:
        points = parse_strict_json(row[column])
        pairs = list(zip(points["Testpoints"], points["Testpoint Description"], strict=True))
        if not all(isinstance(text, str) for pair in pairs for text in pair):
            raise TypeError("a dimension or a description is no text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{location}: {column} holds no test points ({error})") from None
    return {"points": [list(pair) for pair in pairs]}
