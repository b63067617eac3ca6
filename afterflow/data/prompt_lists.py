"""Readers of published prompt lists: text, JSON, CSV, a folder of such files, or a data set of the hub."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..system.errors import InputError
from ..system.json_text import parse_json
from ..system.optional_dependencies import check_extra
from .prompts import PromptFile

PROMPT_COLUMNS = ("prompt", "prompts", "prompt_en", "caption", "text")
"""Names of the column of prompts, in lower case; the first that exists is read."""
TAG_COLUMNS = ("tag", "category", "style")
"""Names of the column of tags, in lower case; the first that exists is read."""
FILE_TYPES = (".txt", ".jsonl", ".csv", ".json")
DEFAULT_TAG = "all"
"""Tag of prompts that have none."""


def read_prompts(source: str) -> list[dict]:
    """Read records with a prompt and a tag, every prompt once.

    source: a file, a folder, or `owner/name[:split]` of the hub.  The files of a folder are tags, as HPD's styles are.

    Raises InputError where there is nothing to read, or no column of prompts.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in FILE_TYPES)
        records = [{"tag": file.stem} | record for file in files for record in read_prompt_file(file)]
    elif path.is_file():
        records = read_prompt_file(path)
    elif path.suffix in FILE_TYPES or len(path.parts) != 2:
        raise InputError(f"prompts {source}: no such file or folder; a data set of the hub reads owner/name[:split]")
    else:
        records = read_hub_prompts(source)
    if not records:
        raise InputError(f"prompts {source}: it holds no prompt; write one per line")
    by_prompt = {record["prompt"]: {"tag": DEFAULT_TAG} | record for record in records}
    return list(by_prompt.values())


def read_prompt_file(file: Path) -> list[dict]:
    """Read the records of one file; InputError where it cannot be read."""
    if file.suffix in (".txt", ".jsonl"):
        return PromptFile(str(file)).records(0)
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(text.splitlines(keepends=True))) if file.suffix == ".csv" else parse_json(text)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"prompts {file}: it cannot be read ({error})") from None
    if not isinstance(rows, list):
        raise InputError(f"prompts {file}: it is no list of prompts")
    return records_from_rows(({"prompt": row} if isinstance(row, str) else row for row in rows), str(file))


def read_hub_prompts(source: str) -> list[dict]:
    """Read the records of `owner/name[:split]` of the hub; InputError where it cannot be loaded."""
    from .images import load_hub_dataset

    check_extra(f"prompts {source}, a data set of the hub,", ["datasets"], "data")
    dataset, _, split = source.partition(":")
    return records_from_rows(load_hub_dataset(dataset, split or "train", None), source)


def records_from_rows(rows: Iterable[Any], source: str) -> list[dict]:
    """Make a record of every row of a table, with its other columns; InputError for a row without a prompt."""
    records = []
    for n, row in enumerate(rows, 1):
        names = {name.lower(): name for name in row if name is not None}
        column = next((names[name] for name in PROMPT_COLUMNS if name in names), None)
        prompt = None if column is None else row[column]
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"prompts {source}: row {n} has no text under one of {', '.join(PROMPT_COLUMNS)}")
        tag = next((row[names[name]] for name in TAG_COLUMNS if name in names), None)
        tagged = {} if tag is None else {"tag": str(tag)}
        plain = {
            name: value for name, value in row.items() if isinstance(value, str | int | float | bool | list | dict)
        }
        records.append({**plain, "prompt": prompt.strip(), **tagged, **read_test_points(row, f"{source}: row {n}")})
    return records


def read_test_points(row: Mapping[str, Any], location: str) -> dict:
    """Read UniGenBench's test points, pairs of a dimension and what an image must show for it."""
    column = next((name for name in row if name is not None and name.startswith("sub_dims")), None)
    if column is None:
        return {}
    try:
        points = parse_json(row[column])
        pairs = list(zip(points["Testpoints"], points["Testpoint Description"], strict=True))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"prompts {location}: {column} holds no test points ({error})") from None
    return {"points": [list(pair) for pair in pairs]}
