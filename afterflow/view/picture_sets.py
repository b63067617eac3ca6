"""Stored pictures of a run, read as plain data: each step's file is read once, until it changes."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..experiment.run_folder import RunFolder, step_of_name
from ..system.errors import InputError
from ..system.escapes import printable
from .curves import finite_or_none
from .growing_file import check_inside_run, is_number

PICTURE_NAME = re.compile(r"[0-9]{3,6}(_[0-9]{1,3})?\.(png|jpg|gif)")
LARGEST_FILE = 1 << 25
"""Bytes of a file that is read, at most."""


class PictureSet:
    """One set of a run's stored pictures."""

    def __init__(self, run: RunFolder, name: str) -> None:
        self.run, self.name, self.folder = run, name, run.picture_folder / name
        self.steps: dict[str, tuple[tuple[int, int], dict[str, Any] | None]] = {}
        """Name of a step → time and size of its file, and what that holds."""

    def update(self) -> list[tuple[int, str]]:
        """Read the steps that are new or changed; return number and name of all, in order."""
        present = {}
        if self.folder.is_dir():
            check_inside_run(self.folder, self.run.path)
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    name, dot, ending = entry.name.rpartition(".")
                    if dot and ending == "json" and step_of_name(name) is not None and not entry.is_symlink():
                        state = entry.stat()
                        present[name] = (state.st_mtime_ns, state.st_size)
        self.steps = {
            name: self.steps[name] if name in self.steps and self.steps[name][0] == stamp else (stamp, self._read(name))
            for name, stamp in present.items()
        }
        return sorted((step_of_name(name) or 0, name) for name, (_, content) in self.steps.items() if content)

    def _read(self, name: str) -> dict[str, Any] | None:
        """Return what a step's file holds, with what is not of its kind left out; None where it is no such file."""
        content = read_json_object(self.folder / f"{name}.json", self.run.path)
        pictures = content.get("pictures") if content is not None else None
        if content is None or not isinstance(pictures, list) or not all(map(is_picture_name, pictures)):
            return None
        known = {"pictures": pictures, "scores": score_lists(content.get("scores"), len(pictures))}
        known["parts"] = score_lists(content.get("parts"), len(pictures))
        groups = content.get("groups")
        known["groups"] = [group_of(group) for group in groups] if isinstance(groups, list) else []
        return known

    def records(self) -> tuple[list[dict[str, Any]], int]:
        """Return the records of the set's prompts, and how many pictures each has; none where none are stored."""
        content = read_json_object(self.folder / "records.json", self.run.path) or {}
        records, per_prompt = content.get("records"), content.get("per_prompt")
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            records = []
        return records, (per_prompt if isinstance(per_prompt, int) and per_prompt > 0 else 1)

    def content(self) -> dict[str, Any]:
        """Return the set as a page gets it: prompts, and the names and scores of each step's pictures."""
        order, (records, per_prompt) = self.update(), self.records()
        steps = [{"step": step, "name": name, **(self.steps[name][1] or {})} for step, name in order]
        inputs = self.inputs()
        about = lambda p, record: {"key": row_key(record), "inputs": inputs.get(p, [])}
        prompts = [prompt_of(record) | about(p, record) for p, record in enumerate(records)]
        return {"per_prompt": per_prompt, "prompts": prompts, "steps": steps}

    def inputs(self) -> dict[int, list[str]]:
        """Return the names of the stored pictures that prompts are about, in order, by the number of the prompt."""
        folder, names = self.folder / "inputs", []
        if folder.is_dir():
            check_inside_run(folder, self.run.path)
            names = [name for name in os.listdir(folder) if is_picture_name(name) and "_" in name]
        numbered = sorted((*map(int, name.partition(".")[0].split("_")), name) for name in names)
        by_prompt: dict[int, list[str]] = {}
        for prompt, _, name in numbered:
            by_prompt.setdefault(prompt, []).append(name)
        return by_prompt

    def picture(self, step: str, file: str) -> Path | None:
        """Return the path of a stored picture, or of an input; None where there is none that lies in the run."""
        if not (step == "inputs" or step_of_name(step) is not None) or not is_picture_name(file):
            return None
        path = self.folder / step / file
        try:
            known = path.is_file() and path.stat().st_size <= LARGEST_FILE
            return check_inside_run(path, self.run.path) if known else None
        except InputError:
            return None

    def record_of(self, step: str, picture: int) -> dict[str, Any] | None:
        """Return the record that picture number `picture` of a step was drawn for."""
        if self.name == "groups":
            content = read_json_object(self.folder / f"{step}.json", self.run.path) or {}
            groups = content.get("groups")
            group = groups[picture // 2] if isinstance(groups, list) and picture // 2 < len(groups) else None
            record = group.get("record") if isinstance(group, dict) else None
            return record if isinstance(record, dict) else None
        records, per_prompt = self.records()
        return records[picture // per_prompt] if picture // per_prompt < len(records) else None


def read_json_object(file: Path, run_folder: Path) -> dict[str, Any] | None:
    """Return the object of JSON in a file of a run; None where there is none."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_FILE:
            return None
        content = json.loads(check_inside_run(file, run_folder).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def is_picture_name(name: object) -> bool:
    """Return whether a name is one that stored pictures have."""
    return isinstance(name, str) and PICTURE_NAME.fullmatch(name) is not None


def number_list(values: object, count: int | None = None) -> list[float | None]:
    """Return a list of numbers and None; empty where `values` is no list, or one of another length."""
    if not isinstance(values, list) or (count is not None and len(values) != count):
        return []
    return [finite_or_none(float(value)) if is_number(value) else None for value in values]


def score_lists(scores: object, count: int) -> dict[str, list[float | None]]:
    """Return scores by name, a number or None for each of `count` pictures."""
    lists = (
        {printable(str(name)): number_list(of, count) for name, of in scores.items()}
        if isinstance(scores, dict)
        else {}
    )
    return {name: of for name, of in lists.items() if of}


def prompt_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return prompt and tag of a record; signs that a reader would not see are written out."""
    return {name: printable(str(record.get(name) or "")) for name in ("prompt", "tag")}


def row_key(record: Mapping[str, Any]) -> str:
    """Return what a prompt has in common with the same one of another run: a digest of its text and its inputs."""
    about = [record.get("prompt"), record.get("input")]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def group_of(group: object) -> dict[str, Any]:
    """Return a stored group with what is not of its kind left out."""
    entry = group if isinstance(group, dict) else {}
    total = number_list(entry.get("total"))
    index = lambda name: entry.get(name) if entry.get(name) in range(len(total)) else None
    record, levels = entry.get("record"), entry.get("tree")
    return {
        **prompt_of(record if isinstance(record, dict) else {}),
        "total": total,
        "rewards": score_lists(entry.get("rewards"), len(total)),
        "parts": score_lists(entry.get("parts"), len(total)),
        "best": index("best"),
        "worst": index("worst"),
        "tree": tree_of_group(levels if isinstance(levels, list) else []),
    }


def tree_of_group(levels: list[Any]) -> list[dict[str, Any]]:
    """Return the levels of a tree; empty where a node's parent is not in the level above."""
    tree, above = [], 1
    for level in levels:
        rewards = number_list(level.get("rewards")) if isinstance(level, dict) else []
        parents = level.get("parents") if rewards else None
        if not isinstance(parents, list) or len(parents) != len(rewards) or not is_number(level.get("step")):
            return []
        if not all(isinstance(p, int) and 0 <= p < above for p in parents):
            return []
        tree.append({"step": level["step"], "parents": parents, "rewards": rewards})
        above = len(rewards)
    return tree
