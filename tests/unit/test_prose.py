"""Prose that a reader whose first language is not English can follow: README, CONTRIBUTING and docs."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from afterflow.experiment.compatibility import RENAMED

ROOT = Path(__file__).parents[2]
TRANSLATED = ("zh", "ja", "ko")
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
CARDS = sorted((ROOT / "afterflow" / "models" / "assets").glob("*/README.md"))
PAGES = [*TOP, *DOCS, *CARDS]
ENGLISH = [page for page in PAGES if page.parent.name not in TRANSLATED]
LONGEST, USUAL, SHARE = 30, 25, 0.95
FENCE = re.compile(r"^```.*?^```[ \t]*$", re.S | re.M)
NOT_OURS = {"basedpyright", "fix", "imagefolder", "python3", "sigma_upper_ratio", "trust_remote_code"}
"""Commands, options and words of other projects."""
ITEM = re.compile(r"^\s*([-*]|\d+\.)\s+")


def name(page):
    return str(page.relative_to(ROOT))


def blocks(text):
    """The paragraphs and list items of a page, without code, tables, headings and images."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    lines, block, after_blank = FENCE.sub("\n", text).split("\n"), [], True
    for line in [*lines, ""]:
        code = line.startswith("    ") and after_blank
        prose = bool(line.strip()) and not code and not line.lstrip().startswith(("#", "|", "!["))
        if not prose or ITEM.match(line):
            yield " ".join(block)
            block = []
        after_blank = not line.strip() or code
        if prose:
            block.append(ITEM.sub("", line).strip())


def sentences(text):
    """The sentences of a page; a link counts as its text."""
    for block in blocks(text):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", block)
        yield from (sentence for sentence in re.split(r"(?<=[.!?])[*_)\"]*\s+", plain) if sentence)


def words(sentence):
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


def test_the_measure_sees_sentences_and_nothing_else():
    text = "# A title\n\nOne two. Three\nfour: five.\n\n    code code\n\n| a | b |\n\n"
    text += "- six\n- [seven](x.md) eight\n\n```\nc\n```\n"
    assert list(sentences(text)) == ["One two.", "Three four: five.", "six", "seven eight"]
    assert [words(sentence) for sentence in sentences(text)] == [2, 3, 1, 2]


@pytest.mark.parametrize("page", ENGLISH, ids=name)
def test_no_sentence_is_long(page):
    long = [sentence for sentence in sentences(page.read_text(encoding="utf-8")) if words(sentence) > LONGEST]
    assert not long, f"{len(long)} sentences of more than {LONGEST} words; split them: {long}"


def test_most_sentences_are_short():
    counts = [words(s) for page in ENGLISH for s in sentences(page.read_text(encoding="utf-8"))]
    assert sum(count <= USUAL for count in counts) >= SHARE * len(counts)


@pytest.mark.parametrize("page", ENGLISH, ids=name)
def test_one_thought_a_sentence(page):
    prose = [re.sub(r"`[^`]*`", "", sentence) for sentence in sentences(page.read_text(encoding="utf-8"))]
    chained = [sentence for sentence in prose if re.search(r";|…|\.\.\.", sentence)]
    assert not chained, f"write two sentences instead of a semicolon or an ellipsis: {chained}"


def test_the_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90


def slug(heading):
    """The anchor that GitHub and mkdocs make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)}: {target} is not there"
        if page in DOCS:
            assert file.is_relative_to(ROOT / "docs"), (
                f"{name(page)}: {target} is outside of docs, which mkdocs refuses"
            )
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), f"{name(page)}: {file.name} has no heading {anchor!r}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page):
    """Paths below the package, its tests and its scripts, and `room/module.py` inside the package."""
    text = page.read_text(encoding="utf-8")
    rooms = [path.name for path in (ROOT / "afterflow").iterdir() if path.is_dir()]
    for path in re.findall(rf"\b((?:afterflow|tests|bench|sidecars|examples|{'|'.join(rooms)})/[\w/.\-]+\w)", text):
        top = path.split("/")[0]
        file = ROOT / path if top == "afterflow" or top not in rooms else ROOT / "afterflow" / path
        named = file.suffix == ".py" or top not in rooms  # rewards/name is a phrase
        assert not named or file.exists() or file.stem == "NAME", f"{name(page)}: {path} is not there"


@cache
def source():
    """Return every word of the package, its scripts and its recipes, without the table of old names."""
    files = [path for folder in ("afterflow", "bench", "sidecars") for path in (ROOT / folder).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files if path.name != "compatibility.py")
    others = [ROOT / "pyproject.toml", ROOT / "afterflow" / "recipes" / "evidence.json"]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    text += " ".join(re.findall(r"def (test_\w+)", tests))
    return set(re.findall(r"\w+", text + "".join(path.read_text(encoding="utf-8") for path in others)))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_names_and_options_in_code_exist(page):
    """A renamed class, field, function or option must be renamed in the docs too."""
    text, words_of_code = page.read_text(encoding="utf-8"), source()
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    names = {span.split("(")[0] for span in spans if re.fullmatch(r"[A-Za-z]\w+(\([\w, →]*\))?", span)}
    commands = re.findall(r"^ *afterflow .*$|`afterflow [^`]*`", text, re.M) + [
        span for span in spans if span[0] == "-"
    ]
    options = {option for command in commands for option in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", command)}
    parts = {part.replace("-", "_") for option in options for part in option.split(".")}
    sketched = set(re.findall(r"\bdef (\w+)", text)) if page.name == "CONTRIBUTING.md" else set()
    switched_off = {part for part in parts if part.removeprefix("no_") in words_of_code}
    gone = (names | parts | sketched) - words_of_code - switched_off - NOT_OURS
    assert not gone, f"{name(page)}: {sorted(gone)} is nowhere in the code"


def test_the_change_log_names_every_renamed_option():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `--([\w.-]+)` \| `--([\w.-]+)` \|", text, re.M))
    assert rows.items() >= {(old.replace("_", "-"), new.replace("_", "-")) for old, new in RENAMED.items()}


@pytest.mark.parametrize("language", TRANSLATED)
def test_the_quickstarts_have_the_same_commands(language):
    english = FENCE.findall((ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8"))
    assert len(english) >= 5
    assert FENCE.findall((ROOT / "docs" / language / "README.md").read_text(encoding="utf-8")) == english


def translations():
    """The glossary's table of translated terms: English term → its words in the other languages."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    start = next(i for i, row in enumerate(rows) if row[1:] == ["中文", "日本語", "한국어"])
    table = [row for row in rows[start + 2 :] if len(row) == 4]
    return {row[0]: dict(zip(TRANSLATED, row[1:])) for row in table}


def test_the_main_terms_are_translated():
    terms = translations()
    assert len(terms) >= 25
    assert all(len(row) == 3 and all(row.values()) for row in terms.values())


@pytest.mark.parametrize("language", TRANSLATED)
def test_the_quickstarts_use_the_glossary(language):
    english = FENCE.sub("", (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")).lower()
    page = FENCE.sub("", (ROOT / "docs" / language / "README.md").read_text(encoding="utf-8"))
    used = {term: row[language] for term, row in translations().items() if re.search(rf"\b{term.lower()}s?\b", english)}
    assert len(used) >= 12
    missing = {term: word for term, word in used.items() if word not in page}
    assert not missing, f"docs/{language}/README.md does not use the glossary's words: {missing}"


def test_the_glossary_is_in_order():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        terms = [line.split("|")[1].strip(" `").lower() for line in section.splitlines() if line.startswith("| ")][1:]
        assert all(a <= b for a, b in pairwise(terms)), "one line a term, by the alphabet"
