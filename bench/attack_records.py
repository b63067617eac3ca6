"""Records, folders, LoRAs and pipelines of a stranger, through every command that reads them.

    python bench/attack_records.py --json bench/results/attack_records.json

Beside each lies a module that leaves a mark when it is imported, and a neighbour's folder.  A case is as designed where
no code ran, the neighbour is as it was, and the command ended well or with one sentence; for a LoRA or a pipeline, with
one sentence.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import make_parser, provenance, write_json
from hostile import Answer, run

from afterflow.experiment.serialization import to_json
from afterflow.models.pipeline_files import TINY
from afterflow.recipes import RECIPES
from hostile_models import LORAS, PIPELINES

CODE = "from pathlib import Path\nPath({mark!r}).touch()\ndef f(images, records):\n    return images.mean((1, 2, 3))\n"
FOLDER = Path("runs/stranger")
JUNK: list[Any] = [None, [], {}, "x", -1, 10**30, True, {"type": "os.system"}, [[[[]]]], "\x1b[2J"]
GROUPS = ("algorithm", "data", "model", "tune", "batches", "evaluation", "checkpoints", "logging", "functions", "name")
NAMES = ("../neighbour", "/x", "a/../../neighbour", "~/x", "a\nb", "$(touch mark)", "..", "C:\\x", "a b", "<b>")
Change = Callable[[dict[str, Any]], object]


def named(name: str, group: str) -> Change:
    """Return the change that writes the name of code into a group of the record."""

    def change(config: dict[str, Any]) -> None:
        if group == "weights":
            config["algorithm"]["weights"] = {name: 1.0}
        elif group == "functions":
            config["functions"] = {name: "0" * 32}
        else:
            config["evaluation"] |= {"eval_rewards": [name], "best_by": name}

    return change


def records() -> dict[str, Change]:
    """Return the changes of a record."""
    spellings = ("stranger:f", "runs.stranger.evil:f", "os:system", "builtins:exec", "stranger")
    cases = {
        f"{name} as {group}": named(name, group) for name in spellings for group in ("weights", "functions", "eval")
    }
    cases |= {f"name {name!r}": lambda config, name=name: config.update(name=name) for name in NAMES}
    for i, group in enumerate(GROUPS):
        for junk in (JUNK[i], JUNK[(i + 3) % len(JUNK)]):
            cases[f"{group} is {str(junk)[:20]!r}"] = lambda config, g=group, junk=junk: config.update({g: junk})
    return cases


def link(path: Path, target: Path) -> None:
    """Make a symbolic link, in place of what is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def folders() -> dict[str, Callable[[Path], object]]:
    """Return the changes of a run's folder beside its record; each gets the neighbour's folder."""
    links = ("lora", "checkpoints", "samples", "checkpoints/step_000000", "model")
    cases = {f"{name} is a link": lambda other, name=name: link(FOLDER / name, other) for name in links}
    files = ("run.json", "metrics.jsonl", "held_out.jsonl", ".lock", "lora/pytorch_lora_weights.safetensors")
    for name in files:
        cases[f"{name} is a link"] = lambda other, name=name: link(FOLDER / name, other / "only_copy.txt")
    for text in ("[]", "{", "[" * 50_000, '{"step": "x"}', "{}\n" * 3):
        cases[f"metrics.jsonl is {text[:10]!r}"] = lambda _, text=text: (FOLDER / "metrics.jsonl").write_text(text)
        manifest = FOLDER / "checkpoints" / "step_000000" / "manifest.json"
        cases[f"a manifest is {text[:10]!r}"] = lambda _, text=text, manifest=manifest: manifest.write_text(text)
    return cases


COMMANDS = (
    "status",
    "export",
    "push owner/name",
    "report",
    "tree",
    "train --resume",
    "train --from",
    "eval tiny --lora",
)


def make_folders(folder: Path) -> Path:
    """Fill a folder with code that leaves a mark and a neighbour's folder; return the neighbour's."""
    neighbour = folder / "neighbour"
    neighbour.mkdir()
    (neighbour / "only_copy.txt").write_text("precious")
    (folder / "stranger.py").write_text(CODE.format(mark=str(folder / "mark")))
    return neighbour


def make_run(folder: Path) -> dict[str, Any]:
    """Write a stranger's run with a LoRA and a checkpoint that is none, and return its configuration."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    for name in ("lora", "checkpoints/step_000000", "samples"):
        (FOLDER / name).mkdir(parents=True)
    (FOLDER / "evil.py").write_text(CODE.format(mark=str(folder / "mark")))
    (FOLDER / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"x")
    (FOLDER / "lora" / "run.json").write_text('{"config": {}}')  # as if a run had left it, so that no check stops there
    (FOLDER / "checkpoints" / "step_000000" / "manifest.json").write_text("{}")
    (FOLDER / "metrics.jsonl").write_text('{"step": 0, "seconds_trained": 1.0}\n')
    return to_json(RECIPES["shapes_branch_grpo"]().with_options(name="stranger"))


def outcome(answer: Answer, folder: Path, neighbour: Path) -> str:
    """Return what a command did to the folders and said."""
    files = [(path.name, path.read_text()) for path in neighbour.iterdir()]
    sentences = [line for line in answer.err.splitlines() if line.startswith("afterflow: ")]
    if (folder / "mark").exists():
        return "code ran"
    if files != [("only_copy.txt", "precious")]:
        return "neighbour touched"
    if answer.traceback:
        return "traceback"
    if answer.code == 0:
        return "ended"
    return "one sentence" if answer.code in (1, 2) and len(sentences) == 1 else "no sentence"


def problems(
    case: str, commands: list[list[object]], folder: Path, neighbour: Path, counts: Counter, designed: Sequence[str]
) -> list[str]:
    """Run the commands on a case, and return which had another outcome than the designed ones."""
    wrong = []
    for words in commands:
        answer = run(*words)
        result = outcome(answer, folder, neighbour)
        counts[result] += 1
        if result not in designed:
            wrong.append(f"{result}: " + answer.problem(f"{case}: {' '.join(map(str, words))}"))
            (folder / "mark").unlink(missing_ok=True)
    return wrong


def attack_records(folder: Path) -> tuple[Counter, list[str], int]:
    """Send records and folders through the commands; return outcomes, what was wrong, and the number of cases."""
    neighbour, counts, wrong = make_folders(folder), Counter(), []
    cases = [*records().items(), *folders().items()]
    for i, (case, change) in enumerate(cases):
        config = make_run(folder)
        if i < len(records()):
            change(config)
        (FOLDER / "run.json").write_text(json.dumps({"recipe": "x", "seed": 0, "config": config}))
        if i >= len(records()):
            change(neighbour)
        commands: list[list[object]] = [[*command.split(), FOLDER] for command in COMMANDS]
        commands[4].append("a prompt")
        commands[6] += ["--plan"]
        wrong += problems(case, commands, folder, neighbour, counts, ("ended", "one sentence"))
    return counts, wrong, len(cases)


def attack_models(folder: Path) -> tuple[Counter, list[str], int]:
    """Send LoRAs and pipelines through the commands; return outcomes, what was wrong, and the number of cases."""
    neighbour, counts, wrong = folder / "neighbour", Counter(), []
    for i, (case, make) in enumerate(LORAS.items()):
        file = Path(f"lora{i}.safetensors")
        make(file)
        commands: list[list[object]] = [["export", file], ["sample", "tiny", "x", "--lora", file]]
        wrong += problems(case, commands, folder, neighbour, counts, ("one sentence",))
    for i, (case, make) in enumerate(PIPELINES.items()):
        pipeline = Path(f"model{i}")
        shutil.copytree(TINY, pipeline)
        make(pipeline)
        commands = [["sample", pipeline, "x", "-n", 1, "--steps", 1]]
        wrong += problems(case, commands, folder, neighbour, counts, ("one sentence",))
    return counts, wrong, len(LORAS) + len(PIPELINES)


def main() -> None:
    """Attack, print and store."""
    args = make_parser(__doc__).parse_args()
    result: dict[str, Any] = provenance()
    here, wrong = Path.cwd(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"AFTERFLOW_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        os.chdir(folder)
        for name, attack in (("records and folders", attack_records), ("LoRAs and pipelines", attack_models)):
            counts, complaints, cases = attack(Path(folder))
            result[name] = {"cases": cases, "commands": dict(counts)}
            wrong += complaints
            print(name, cases, dict(counts))
        os.chdir(here)
    print("\n".join(wrong))
    if args.json:
        write_json(result | {"wrong": [text.replace(folder, "") for text in wrong]}, args.json, indent=1)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
