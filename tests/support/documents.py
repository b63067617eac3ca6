"""The code of the documents: the blocks of their pages and the cells of notebooks, checked or carried out in order.

A block is carried out unless its first line says `# not run here: REASON`.  Then its commands are parsed by the real
commands, and its Python is compiled.  `# fails on purpose` says that the command of a block must end with an error.
A Python block that begins with `# NAME.py` is that file.
"""

import ast
import json
import linecache
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
TRANSLATED = ("zh", "ja", "ko")
"""Folders of translations, whose blocks are those of the English page."""
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name not in TRANSLATED),
    *sorted((ROOT / "afterflow" / "models" / "assets").glob("*/README.md")),
]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
INSTALL = ("make", "pip")
"""Programs that install or test afterflow, whose command lines are checked and never run."""
OURS = ("afterflow", "python", *INSTALL)
"""Programs whose command lines can be checked here."""
OTHERS = ("hf", "torchrun", "accelerate", "vllm", "serve", "curl", "mkdir")
"""Programs that only stand in blocks which are not run here."""
NOT_RUN, FAILS = "# not run here: ", "# fails on purpose"
VARIABLE = r"[A-Z_]+=\S+"
TUTORIAL = ROOT / "docs" / "tutorial"
LARGEST, ALL_TOGETHER = 60_000, 600_000
"""Bytes of a picture of the tutorial, and of all of them."""
TUTORIAL_FIGURES = ROOT / "bench" / "results" / "tutorial"
"""PAGE.json: what the commands of a page of the tutorial measured."""
PARTS_WITH_FIGURES = ("first_run", "own_reward", "own_pictures", "one_student")
"""Those pages; the figures of reading_a_run are bench/results/pathologies.json."""
LONGEST_BUDGET = 120
"""Seconds of training that a command may name which is carried out."""
STAND_IN = "shapes_flow_grpo"
"""The recipe that is parsed where a page writes RECIPE or an ellipsis."""


@dataclass(frozen=True)
class Block:
    """A block of a page."""

    page: Path
    line: int
    """Its first line on the page, from 1."""
    kind: str
    """commands, python, json or text."""
    text: str

    @property
    def location(self) -> str:
        """Page and line, as a message names them."""
        return f"{os.path.relpath(self.page, ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether it is carried out."""
        if self.text.startswith(NOT_RUN) or self.kind not in ("commands", "python"):
            return False
        return self.kind == "python" or any(words[0] not in INSTALL for words in self.commands())

    @property
    def fails(self) -> bool:
        """Whether its command is meant to end with an error."""
        return self.text.startswith(FAILS)

    def commands(self) -> list[list[str]]:
        """Return the words of its command lines."""
        return command_lines(self.text)

    def file(self) -> str | None:
        """Return the name of the file that a Python block is; None for code to execute."""
        name = re.match(r"# (\w+\.py)\n", self.text)
        return name[1] if name and self.kind == "python" else None


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in order."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    blocks = []
    for token in tokens:
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            kind = kind_of(token.type == "fence", token.info.strip(), token.content)
            blocks.append(Block(page, token.map[0] + 1, kind, token.content))
    return blocks


def kind_of(fenced: bool, info: str, text: str) -> str:
    """Return what a block holds, by its language, or by its first word where it has none."""
    if info:
        return {"python": "python", "json": "json", "text": "text"}[info]
    words = command_lines(text)
    is_command = bool(words) and words[0][0] in (*OURS, *OTHERS)
    return "commands" if fenced or is_command else "text"


def command_lines(text: str) -> list[list[str]]:
    """Return the words of each command, without comments and variables; a backslash continues a line."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)# .*$", "", line).strip()
        line = re.sub(rf"^({VARIABLE} )+", "", line)
        if line:
            try:
                commands.append(shlex.split(line))
            except ValueError:  # an apostrophe of prose
                commands.append(line.split())
    return commands


def pictures_of(page: Path) -> list[Path]:
    """Return the pictures of the tutorial that a page shows."""
    names = re.findall(r"\]\(pictures/([\w.]+)\)", page.read_text(encoding="utf-8"))
    return [TUTORIAL / "pictures" / name for name in names]


def inline_commands(page: Path) -> list[list[str]]:
    """Return the words of the commands of afterflow that stand in the sentences and tables of a page.

    A command that is only named has no words after it.
    """
    text = re.sub(r"^```.*?^```[ \t]*$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    spans = [span.partition(", then ")[0] for span in re.findall(r"`(afterflow [a-z][^`\n]*)`", text)]
    return [shlex.split(span) for span in spans]


class Parsed(Exception):
    """Ends a command whose words were parsed, before it does anything."""


def check_command(words: Sequence[str], whole: bool = True) -> None:
    """Raise ConfigError, SystemExit or AssertionError for a command that its program would not take.

    whole: Whether it could be typed as it stands, and is not only named.
    """
    program, *args = words
    if "-m" in args and args[args.index("-m") + 1 :][:1] == ["afterflow"]:
        program, args = "afterflow", args[args.index("-m") + 2 :]
    if program == "afterflow":
        check_afterflow(args, whole)
    elif program == "python":
        check_script(args)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert args[0] in targets, f"the Makefile has no {args[0]}"
    elif program == "pip":
        named = re.findall(r"\[(\w+)\]", " ".join(args))
        extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(re.search(rf"^{name} = \[", extras, re.M) for name in named), f"no such extra: {named}"


def check_script(args: Sequence[str]) -> None:
    """Raise AssertionError for a script that is not there, and for an option that it does not have."""
    script, *options = args
    source = (ROOT / script).read_text(encoding="utf-8")
    if "make_parser(__doc__)" in source:
        source += (ROOT / "bench" / "harness.py").read_text(encoding="utf-8")
    for option in options:
        assert not option.startswith("--") or f'"{option}"' in source, f"{script} has no option {option}"


def check_afterflow(args: Sequence[str], whole: bool) -> None:
    """Raise ConfigError or SystemExit for words that the command line of afterflow would not take."""
    from afterflow.cli.main import COMMANDS
    from afterflow.system.names import unknown_name

    command, *rest = args
    if command not in COMMANDS:
        raise unknown_name("command", command, COMMANDS)
    if "--help" in rest or (not rest and not whole):
        return
    if command in ("train", "doctor"):
        check_train(rest)
        return
    module = import_module(f"afterflow.cli.{COMMANDS[command][0]}")
    function = getattr(module, COMMANDS[command][1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "parse_options", stopped(module.parse_options))
        with pytest.raises(Parsed):
            function(rest)


def stopped(parse: Callable[..., object]) -> Callable[..., object]:
    """Return a function that parses and then ends the command."""

    def parse_and_end(*args: object, **options: object) -> object:
        parse(*args, **options)
        raise Parsed

    return parse_and_end


def check_train(words: Sequence[str]) -> None:
    """Raise ConfigError for words that `afterflow train` would not take; no model, picture or run is read."""
    from afterflow.cli import train
    from afterflow.cli.parsing import parse_options
    from afterflow.cli.recipes import made_by
    from afterflow.experiment.config import Run

    source, *options = [STAND_IN if word in ("RECIPE", "...") else word for word in words]
    options, _ = train.fit_option(options)
    options = [option for option in options if option not in ("--plan", train.ACCEPT, train.TRUST)]
    if source in ("--resume", "--extend"):
        kind, name = (train.Elsewhere, "RUN") if source == "--resume" else (train.Length, "RUN")
        parse_options(kind, options[1:], f"afterflow train {source} {name}")
        return
    if source == "--from":
        source, options = STAND_IN, options[1:]
    made = made_by(source)
    if not isinstance(made, Run):
        parse_options(train.Length, options, f"afterflow train {source}")
        return
    train.overridden(made, list(without_sources(options)), f"afterflow train {source}")


def without_sources(options: Sequence[str]) -> Iterator[str]:
    """Yield options without pipelines and pictures that are not on this machine."""
    words = iter(options)
    for word in words:
        if word in ("--base", "--images"):
            next(words)
        else:
            yield word


def check_python(text: str) -> None:
    """Raise SyntaxError or AssertionError for code that does not compile, or imports names that are not there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("afterflow", "diffusers"):
            module = import_module(node.module)
            for alias in node.names:
                assert alias.name in dir(module), f"{node.module} has no {alias.name}"


def check_block(block: Block) -> None:
    """Raise an error for a block that could not be carried out as it stands."""
    if block.kind == "commands":
        for words in block.commands():
            assert words[0] in OURS or not block.is_run, f"{words[0]} cannot be run here; say so in the first line"
            assert budget_of(words) <= LONGEST_BUDGET or not block.is_run, (
                f"{words} takes long; say so in the first line"
            )
            check_command(words)
    elif block.kind == "python":
        check_python(block.text)
    elif block.kind == "json":
        json.loads(block.text)
    else:
        hidden = [line for line in block.text.splitlines() if line.strip().startswith("afterflow ")]
        assert not hidden, f"put commands into a block of their own: {hidden}"


def budget_of(words: Sequence[str]) -> float:
    """Return the seconds of training that a command names; those of a comparison are of each recipe and seed."""
    values = [dict(pairwise(words)).get(option) for option in ("--budget-seconds", "--seeds")]
    seconds, seeds = (float(value) if value else default for value, default in zip(values, (0.0, 1.0)))
    recipes = [word for word in words[2:] if word.startswith(("shapes_", "moving_"))]
    return seconds * (seeds * len(recipes) if words[1:2] == ["compare"] else 1)


def run_page(page: Path, folder: Path) -> int:
    """Carry out the blocks of a page in a folder, as from the root of a clone, and return 0.

    AssertionError names the line of a command whose exit code is another one than the page says.
    """
    enter(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if not block.is_run:
            continue
        print(f"--- {block.location}", flush=True)
        if block.kind == "commands":
            for words in block.commands():
                code = run_command(words)
                assert (code != 0) == block.fails, f"{block.location}: {shlex.join(words)} ended with {code}"
        elif name := block.file():
            Path(name).write_text(block.text, encoding="utf-8")
        else:
            run_code(block.text, block.location, names)
    return 0


def measured_figures(folder: Path) -> dict[str, dict]:
    """Return what the commands of a page measured in a folder.

    evaluations: Of each in turn, metric or task → before, after, and both ends of the change's interval.
    runs: Run → metric → its first and its last value.
    """
    evaluations = []
    for file in evaluation_files(folder):
        report = json.loads(file.read_text(encoding="utf-8"))
        evaluations.append(
            {
                name: [figure["base"]["value"], figure["tuned"]["value"], change["low"], change["high"]]
                for name, figure in (report["overall"] | report["taught"]).items()
                if (change := figure["delta"]) and figure["base"]
            }
        )
    runs = {}
    for file in sorted(folder.glob("runs/*/metrics.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if lines:
            names = [name for name in lines[0] if name in lines[-1] and not name.startswith("seconds")]
            runs[file.parent.name] = {name: [lines[0][name], lines[-1][name]] for name in names}
    return {"evaluations": evaluations, "runs": runs}


def evaluation_files(folder: Path) -> list[Path]:
    """Return the files in which evaluations of a page are kept, in the order of their commands."""
    return sorted(folder.glob("evaluation_*.json"))


def run_notebook(notebook: Path, folder: Path) -> int:
    """Carry out the code cells of a notebook in order, in one namespace, and return 0."""
    enter(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(notebook), 1):
        print(f"--- {notebook.name}, cell {number}", flush=True)
        run_code(cell, f"{notebook.name}, cell {number}", names)
    return 0


def run_code(text: str, name: str, names: dict[str, object]) -> None:
    """Execute code whose source Python can show afterwards, as that of a notebook's cell."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), names)


def code_cells(notebook: Path) -> list[str]:
    """Return the code of a notebook's cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def enter(folder: Path) -> None:
    """Make a folder that looks like the root of a clone the working one."""
    for name in ("afterflow", "bench", "examples"):
        (folder / name).symlink_to(ROOT / name)
    os.chdir(folder)
    sys.path.insert(0, "")


def run_command(words: Sequence[str]) -> int:
    """Carry out a command in this process and return its exit code; an evaluation also leaves its figures."""
    program, *args = words
    if program in INSTALL:
        return 0
    if program == "afterflow":
        from afterflow.cli.main import main

        if args[0] == "eval" and "--json" not in args:
            args += ["--json", f"evaluation_{len(evaluation_files(Path())):02}.json"]
        return main(args)
    script, *options = args
    before = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = [script, *options], [str(Path(script).parent)]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before
    return 0
