"""Numbers that nobody should give an option, and what every command says about them.

    python bench/hostile_options.py --json bench/results/hostile_options.json

Every option of every command that takes a number gets nan, infinities, -0, a number too large for a float and some that
are merely absurd; so does every number of a run.json.  What is not finite must be refused in a sentence, by the parser
or by the checks, before anything is loaded.  What is finite is refused in a sentence or taken; training never begins,
because `train` is asked for a plan and the other commands do nothing here.
"""

import contextlib
import io
import json
import os
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

from harness import make_parser, provenance, write_json

from afterflow.cli.main import main
from afterflow.experiment.config import GROUPS
from afterflow.experiment.serialization import to_json
from afterflow.models.lora.merge import LoRAMerge
from afterflow.recipes import RECIPES

NOT_FINITE = ("nan", "inf", "-inf", "1e400")
FINITE = ("-0", "-1", "1e300", "99999999999999999999")
RECIPES_TRIED = (
    *("shapes_flow_grpo", "shapes_ddpo", "shapes_dance_grpo", "shapes_mix_grpo", "shapes_branch_grpo"),
    *("shapes_pref_grpo", "shapes_sft", "shapes_soar", "shapes_dpo", "moving_flow_grpo", "flux_dance_grpo_hps"),
)
"""Recipes that have every algorithm, and models of several families."""
COMMANDS = {
    "compare": ("compare", "Compare", ["shapes_sft"]),
    "report": ("compare", "Page", ["runs/a"]),
    "tree": ("compare", "Tree", ["runs/a"]),
    "eval": ("evaluate", "Eval", ["tiny"]),
    "sample": ("sample", "Sample", ["tiny", "a red star"]),
    "serve-rewards": ("serve", "Serve", ["jpeg_compressibility"]),
}
"""Command → its module, its class, and what it needs besides options."""


@dataclass(frozen=True)
class Case:
    """A command with one absurd number."""

    option: str
    value: str
    argv: list[str]


def is_numeric(hint: Any) -> bool:
    """Return whether a field may hold a number."""
    return any(word in str(hint) for word in ("int", "float")) and not is_dataclass(hint)


def words_for(hint: Any, value: str, default: Any) -> list[str]:
    """Return how a value is typed for a field of a type: of a pair twice, of a mapping after a name."""
    text = str(hint)
    if "Mapping" in text:
        return [next(iter(default), "jpeg_compressibility") if isinstance(default, Mapping) else "a", value]
    return [value, value] if "tuple[float, float]" in text or "tuple[int, float]" in text else [value]


def numeric_options(instance: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield option, type and default of every number of a dataclass and of those inside it."""
    hints = get_type_hints(type(instance))
    for field in fields(instance):
        value = getattr(instance, field.name)
        inside = "" if field.name in GROUPS else f"{prefix}{field.name}."
        if is_dataclass(value):
            yield from numeric_options(value, inside)
        elif is_numeric(hints[field.name]) and "Prompts" not in str(hints[field.name]):
            yield f"--{prefix}{field.name}".replace("_", "-"), hints[field.name], value


def training_cases() -> Iterator[Case]:
    """Yield every number of a run as an option of `train --plan`, once for each class that has it."""
    seen: set[str] = set()
    for recipe in RECIPES_TRIED:
        run = RECIPES[recipe]()
        for option, hint, default in numeric_options(run):
            part = option.removeprefix("--").split(".")[0]
            key = f"{type(getattr(run, part, None)).__name__} {option}" if "." in option else option
            if key in seen:
                continue
            seen.add(key)
            for value in (*NOT_FINITE, *FINITE):
                yield Case(key, value, ["train", recipe, "--plan", option, *words_for(hint, value, default)])


def command_cases() -> Iterator[Case]:
    """Yield every number of the other commands."""
    for command, (module, kind, words) in COMMANDS.items():
        cls = getattr(import_module(f"afterflow.cli.{module}"), kind)
        hints = get_type_hints(cls)
        for name in [field.name for field in fields(cls) if is_numeric(hints[field.name])]:
            if "Positional" in str(hints[name]):
                continue
            option = "--" + name.replace("_", "-")
            for value in (*NOT_FINITE, *FINITE):
                yield Case(f"{command} {option}", value, [command, *words, option, *words_for(hints[name], value, {})])
    for option in ("--rank", "--density", "--seed", "--weights"):
        for value in (*NOT_FINITE, *FINITE):
            words = [value, value] if option == "--weights" else [value]
            yield Case(f"merge {option}", value, ["merge", "a", "b", option, *words])


def record_cases(folder: Path) -> Iterator[Case]:
    """Yield run.json files in each of which one number is not finite."""
    config = to_json(RECIPES["shapes_flow_grpo"]())

    def numbers(data: Any, path: tuple) -> Iterator[tuple]:
        items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
        for key, value in items:
            if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
                yield (*path, key)
            yield from numbers(value, (*path, key))

    for path in list(numbers(config, ())):
        for word in ("NaN", "-Infinity", "1e400"):
            changed = json.loads(json.dumps(config))
            part = changed
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = "PLACE"
            file = folder / f"{len(list(folder.iterdir()))}.json"
            file.write_text(json.dumps({"recipe": "x", "config": changed}).replace('"PLACE"', word))
            yield Case(f"run.json {'.'.join(map(str, path))}", word, ["train", "--from", str(file), "--plan"])


def outcome(case: Case) -> tuple[str, str]:
    """Return what a command did: refused, taken, silent (what is not finite was taken) or traceback; and its words."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(case.argv)
    except SystemExit as error:
        code = error.code
    except BaseException:
        return "traceback", traceback.format_exc()[-600:]
    message = " ".join(err.getvalue().split())
    assert "there is no option" not in message, case.argv  # else nothing was tried
    if code in (1, 2) and message:
        return "refused", message[:300]
    if code == 0:
        return ("silent" if case.value.lower() in ("nan", "inf", "-inf", "1e400", "-infinity") else "taken"), ""
    return "silent", f"exit code {code}: {message[:200]}"


def options_tried() -> dict[str, Any]:
    """Return how many values were tried, what became of them, and every fault."""
    with contextlib.ExitStack() as stack:
        for module, kind, _ in COMMANDS.values():
            cls = getattr(import_module(f"afterflow.cli.{module}"), kind)
            stack.enter_context(patch.object(cls, "__call__", lambda self: None))
        # What a plan counts takes seconds, and is not what is tried here.
        stack.enter_context(patch("afterflow.experiment.cost_estimate.estimate_cost", lambda run: None))
        stack.enter_context(patch("afterflow.experiment.cost_estimate.cost_table", lambda run, cost: ""))
        stack.enter_context(patch.object(LoRAMerge, "write", lambda self, folder: ({"a": _Pair()}, 0.0)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        counts: Counter[str] = Counter()
        faults = []
        for case in (*command_cases(), *record_cases(folder), *training_cases()):
            what, words = outcome(case)
            print(what, case.option, case.value, words[:200], flush=True)
            counts[what] += 1
            if what in ("silent", "traceback"):
                faults.append({"option": case.option, "value": case.value, "what": what, "words": words})
    return {"values": sum(counts.values()), "outcomes": dict(counts), "faults": faults}


class _Pair:
    """The factors of a layer of a merge that is not made."""

    A = (0,)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    args = parser.parse_args()
    os.environ["COLUMNS"] = "200"
    start = time.perf_counter()
    result = options_tried()
    result["seconds"] = round(time.perf_counter() - start)
    print(json.dumps(result["outcomes"]), *map(json.dumps, result["faults"]), sep="\n")
    write_json({**provenance(), **result}, args.json, indent=1, show=False)
    raise SystemExit(bool(result["faults"]))
