"""Lists of prompts as their authors publish them: text, JSON, CSV, a folder of such files, or a data set of the hub."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..system.optional_dependencies import check_extra
from .prompts import PromptFile

PROMPT_COLUMNS = ("prompt", "prompts", "prompt_en", "caption", "text")
TAG_COLUMNS = ("tag", "category", "style")
"""Columns, in lower case; the first that is there counts."""
FILE_TYPES = (".txt", ".jsonl", ".csv", ".json")
DEFAULT_TAG = "all"
"""The tag of prompts that have none."""


def read_prompts(where: str) -> list[dict]:
    """Records with a prompt and a tag, each prompt once, from a file, a folder or `owner/name[:split]` of the hub.

    A folder's files are tags, as HPD's styles are.  ValueError where there is nothing to read, or no column of prompts.
    """
    path = Path(where)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in FILE_TYPES)
        records = [{"tag": file.stem} | record for file in files for record in read_prompt_file(file)]
    elif path.is_file():
        records = read_prompt_file(path)
    elif path.suffix in FILE_TYPES or len(path.parts) != 2:
        raise ValueError(f"prompts {where}: no such file or folder, and a data set of the hub reads owner/name[:split]")
    else:
        records = read_hub_prompts(where)
    if not records:
        raise ValueError(f"prompts {where}: there is none in it")
    once = {record["prompt"]: {"tag": DEFAULT_TAG} | record for record in records}
    return list(once.values())


def read_prompt_file(file: Path) -> list[dict]:
    if file.suffix in (".txt", ".jsonl"):
        return PromptFile(str(file)).records(0)
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(text.splitlines(keepends=True))) if file.suffix == ".csv" else json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"prompts {file}: it cannot be read ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"prompts {file}: it is no list")
    return records_from_rows(({"prompt": row} if isinstance(row, str) else row for row in rows), str(file))


def read_hub_prompts(where: str) -> list[dict]:
    from .images import load_hub_dataset

    check_extra(f"prompts {where}, a data set of the hub,", ["datasets"], "data")
    dataset, _, split = where.partition(":")
    return records_from_rows(load_hub_dataset(dataset, split or "train", None), where)


def records_from_rows(rows: Iterable[Any], where: str) -> list[dict]:
    """Rows of a table (mappings), whose other columns stay in their records; ValueError for one without a prompt."""
    records = []
    for n, row in enumerate(rows, 1):
        names = {name.lower(): name for name in row if name is not None}
        column = next((names[name] for name in PROMPT_COLUMNS if name in names), None)
        prompt = None if column is None else row[column]
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompts {where}: row {n} has no text under one of {', '.join(PROMPT_COLUMNS)}")
        tag = next((row[names[name]] for name in TAG_COLUMNS if name in names), None)
        told = {} if tag is None else {"tag": str(tag)}
        plain = {
            name: value for name, value in row.items() if isinstance(value, str | int | float | bool | list | dict)
        }
        records.append({**plain, "prompt": prompt.strip(), **told, **read_test_points(row, f"{where}: row {n}")})
    return records


def read_test_points(row: Mapping[str, Any], place: str) -> dict:
    """UniGenBench's test points, each a dimension and what a picture must show for it."""
    column = next((name for name in row if name is not None and name.startswith("sub_dims")), None)
    if column is None:
        return {}
    try:
        told = json.loads(row[column])
        pairs = list(zip(told["Testpoints"], told["Testpoint Description"], strict=True))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"prompts {place}: {column} holds no test points ({error})") from None
    return {"points": [list(pair) for pair in pairs]}
