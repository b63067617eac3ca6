"""The code of README, docs, tutorial and notebooks: every command is one that afterflow takes.

`make docs-test` carries blocks and cells out (tests/documents).  Here they are parsed.
"""

import json
import re
import runpy

import pytest

from afterflow.system.errors import ConfigError
from documents import (
    ALL_TOGETHER,
    LARGEST,
    NOTEBOOKS,
    PAGES,
    PARTS_WITH_FIGURES,
    ROOT,
    TUTORIAL,
    TUTORIAL_FIGURES,
    Block,
    blocks_of,
    check_block,
    check_command,
    code_cells,
    inline_commands,
    kind_of,
    pictures_of,
)

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PARTS = [TUTORIAL / f"{name}.md" for name in ("first_run", "own_reward", "own_pictures", "one_card", "one_student")]
PARTS += [TUTORIAL / "reading_a_run.md", TUTORIAL / "edits.md"]

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.location)
def test_a_block_could_be_carried_out_as_it_stands(block):
    check_block(block)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.stem)
def test_a_command_in_a_sentence_is_one_that_afterflow_takes(page):
    for words in inline_commands(page):
        check_command(words, whole=False)


@pytest.mark.parametrize(
    "line, words",
    [
        ("afterflow trian demo", "trian"),
        ("afterflow train deno", "deno"),
        ("afterflow train demo --learnin-rate 1", "--learnin-rate"),
        ("afterflow train demo --algorithm.betta 1", "--algorithm.betta"),
        ("afterflow train --resume runs/x --learning-rate 1", "--learning-rate|unexpected"),
        ("afterflow train shapes_generalist --batch 3", "--batch|unexpected"),
        ("afterflow doctor demo --bath 3", "--bath"),
        ("# not run here: two GPUs\ntorchrun --nproc-per-node 2 -m afterflow train demo --bath 3", "--bath"),
        ("afterflow eval tiny --imags 3", "--imags"),
        ("afterflow status --no-such", "--no-such"),
        ("python bench/plans.py --jsn x", "--jsn"),
        ("python bench/no_such_script.py", "no_such_script"),
        ("make demmo", "demmo"),
        ("pip install -e '.[ocrr]'", "ocrr"),
    ],
)
def test_a_mistyped_command_is_seen(line, words):
    with pytest.raises((ConfigError, AssertionError, OSError), match=words):
        check_block(Block(ROOT / "README.md", 1, "commands", line))


@pytest.mark.parametrize(
    "program",
    [
        "hf auth login",
        "curl -O https://example.org/x",
        "ls runs",
        "afterflow train demo --budget-seconds 300",
        "afterflow compare shapes_sft shapes_soar --budget-seconds 60 --seeds 3",
    ],
)
def test_what_cannot_be_run_here_must_say_so(program):
    with pytest.raises(AssertionError, match="say so in the first line"):
        check_block(Block(ROOT / "README.md", 1, "commands", program))
    check_block(Block(ROOT / "README.md", 1, "commands", f"# not run here: needs the hub\n{program}"))


def test_python_that_imports_what_is_not_there_is_seen():
    with pytest.raises(AssertionError, match="no_such_name"):
        check_block(Block(ROOT / "README.md", 1, "python", "from afterflow import no_such_name"))
    with pytest.raises(SyntaxError):
        check_block(Block(ROOT / "README.md", 1, "python", "# not run here: it waits\nfor"))


@pytest.mark.parametrize(
    "fenced, info, text, kind",
    [
        (True, "python", "x = 1", "python"),
        (True, "", "afterflow status", "commands"),
        (False, "", "# not run here: it waits\nafterflow view", "commands"),
        (False, "", "PIP_EXTRA_INDEX_URL=x make test", "commands"),
        (False, "", "for each iteration\n    it's a box", "text"),
        (False, "", "passes    one: the graphs wait", "text"),
        (True, "json", "{}", "json"),
    ],
)
def test_what_a_block_holds_is_known_by_its_language_or_its_first_word(fenced, info, text, kind):
    assert kind_of(fenced, info, text) == kind


def test_there_are_blocks_of_every_kind():
    carried_out = {block.page.name for block in BLOCKS if block.is_run}
    assert {"quickstart.md", "rewards.md", "cli.md", *(part.name for part in PARTS)} <= carried_out
    assert sum(block.kind == "commands" for block in BLOCKS) > 40
    assert sum(block.kind == "python" for block in BLOCKS) > 15


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.stem)
def test_a_part_of_the_tutorial_makes_the_pictures_that_it_shows(part):
    pictures, code = pictures_of(part), "\n".join(block.text for block in blocks_of(part) if block.is_run)
    made = {f"{name}.png" for name in pathologies()["PATHOLOGIES"]} if "bench/pathologies.py" in code else set()
    assert pictures
    for picture in pictures:
        assert picture.name in code or picture.name in made, f"no block of {part.name} makes {picture.name}"
        assert picture.stat().st_size <= LARGEST


def test_pictures_of_the_tutorial_are_small_and_none_is_left_over():
    shown = {picture for part in PARTS for picture in pictures_of(part)}
    files = set((TUTORIAL / "pictures").iterdir())
    assert files == shown and sum(file.stat().st_size for file in files) <= ALL_TOGETHER
    assert set(TUTORIAL.glob("*.md")) == set(PARTS)


FIGURES = {file.stem: json.loads(file.read_text()) for file in sorted(TUTORIAL_FIGURES.glob("*.json"))}
"""Part of the tutorial → what its commands measured when they were last carried out to be kept."""
SENTENCES = [
    ("own_reward", "The reward rose from {} to {} in 20 iterations", "blue", "reward", 0),
    ("own_pictures", "The loss falls from {} to about {} and then stays", "corner", "flow_matching", 2),
    (
        "own_pictures",
        "about {}, where the policy is still the reference. After 40 updates it was {},",
        "corner_dpo",
        "preference_loss",
        2,
    ),
    ("one_student", "`teacher_distance` falls from about {} to {}", "student", "teacher_distance", 4),
]
"""Part, words around the first and the last value, run, metric, and digits after the point."""


def printed(value, digits, signed=False):
    """A number as pages print it: without a zero before the point, and with a true minus."""
    text = f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")
    return re.sub(r"^([+−]?)0\.", r"\1.", text)


def test_every_part_with_figures_has_those_that_were_measured():
    assert set(FIGURES) == set(PARTS_WITH_FIGURES)
    assert {part.stem for part in PARTS if "95 % interval" in part.read_text(encoding="utf-8")} <= set(FIGURES)
    assert {part for part, *_ in SENTENCES} <= set(FIGURES)


@pytest.mark.parametrize("part", FIGURES)
def test_a_table_of_the_tutorial_has_the_figures_that_its_commands_measured(part):
    text = (TUTORIAL / f"{part}.md").read_text(encoding="utf-8")
    tables = [block for block in re.findall(r"(?:^\|.*\n)+", text, re.M) if "95 % interval" in block]
    assert len(tables) == len(FIGURES[part]["evaluations"])
    for table, measured in zip(tables, FIGURES[part]["evaluations"]):
        for row in table.splitlines()[2:]:
            name, *cells = (cell.strip() for cell in row.strip("|").split("|"))
            before, after, low, high = measured[name.split(",")[0]]
            interval = f"{printed(low, 3, True)} to {printed(high, 3, True)}"
            assert cells == [printed(before, 3), printed(after, 3), interval], name


@pytest.mark.parametrize("part, words, run, metric, digits", SENTENCES)
def test_a_sentence_of_the_tutorial_has_the_figures_that_its_commands_measured(part, words, run, metric, digits):
    text = " ".join((TUTORIAL / f"{part}.md").read_text(encoding="utf-8").split())
    values = (printed(value, digits) for value in FIGURES[part]["runs"][run][metric])
    assert words.format(*values) in text


def pathologies():
    """What bench/pathologies.py defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        return runpy.run_path(str(ROOT / "bench" / "pathologies.py"))


def test_the_page_about_reading_has_the_commands_and_the_figures_of_the_stored_runs():
    script, page = pathologies(), TUTORIAL / "reading_a_run.md"
    text = page.read_text(encoding="utf-8")
    result = json.loads((ROOT / "bench" / "results" / "pathologies.json").read_text())
    commands = [" ".join(words) for block in blocks_of(page) if block.kind == "commands" for words in block.commands()]
    assert list(result["runs"]) == list(script["PATHOLOGIES"]) and len(result["runs"]) > 10
    for name, pathology in script["PATHOLOGIES"].items():
        assert pathology.command(name) == result["runs"][name]["command"]
        assert pathology.command(name) in commands, f"the page does not have the command of {name}"
        for row in script["rows"](result, name):
            assert row in text, f"the page does not have the line {row}"
        assert f"pictures/{name}.png" in text


def test_the_rewards_that_go_wrong_are_those_of_the_page():
    [block] = [block for block in blocks_of(TUTORIAL / "reading_a_run.md") if block.file() == "small_rewards.py"]
    assert block.text == (ROOT / "bench" / "small_rewards.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_holds_no_output_and_code_that_compiles(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z0-9_-]{1,64}", name) for name in ids)
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
    for cell in code_cells(notebook):
        check_block(Block(notebook, 1, "python", cell))


def test_there_are_two_notebooks():
    assert [notebook.stem for notebook in NOTEBOOKS] == ["first_run", "reading_a_run"]
