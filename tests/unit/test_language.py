"""The language of the package: words, lengths and docstrings.  A rule is a function from source to complaints."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "afterflow"
FILES = {str(file.relative_to(PACKAGE.parent)): file.read_text() for file in sorted(PACKAGE.rglob("*.py"))}

DIALECT = {"found", "told", "said", "asked", "asks", "mine", "place", "kept", "gone_on", "go_on"}
"""Words that named a value by the author's sentence instead of by what it holds."""
MAX_LINES, MAX_ARGUMENTS, MAX_DEPTH, MAX_UNDESCRIBED = 45, 8, 4, 4
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
NESTING = ast.If | ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Try | ast.Match


def bound_names(node):
    """The names that a node gives to something, of which a nested name is one."""
    if isinstance(node, ast.Name | ast.Attribute) and not isinstance(node.ctx, ast.Store):
        return []
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
            return [name]
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return [name]
    return []


def dialect(tree):
    names = [(node, name) for node in ast.walk(tree) for name in bound_names(node)]
    return [f"{getattr(node, 'lineno', 0)}: the name {name}" for node, name in names if name.strip("_") in DIALECT]


def parameters(function):
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def depth(node, level=0):
    """How many blocks stand inside each other; a function inside counts for itself, and `elif` does not nest."""
    deepest = level
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTION | ast.ClassDef | ast.Lambda):
            continue
        chained = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        deepest = max(deepest, depth(child, level + (isinstance(child, NESTING) and not chained)))
    return deepest


def sizes(tree):
    complaints = []
    for node in ast.walk(tree):
        if isinstance(node, FUNCTION):
            lines, arguments, levels = node.end_lineno - node.lineno + 1, len(parameters(node)), depth(node)
            complaints += [f"{node.lineno}: {node.name} has {lines} lines"] * (lines > MAX_LINES)
            complaints += [f"{node.lineno}: {node.name} takes {arguments} arguments"] * (arguments > MAX_ARGUMENTS)
            complaints += [f"{node.lineno}: {node.name} nests {levels} deep"] * (levels > MAX_DEPTH)
    return complaints


def public_definitions(body, inside=""):
    """Public functions, classes and methods with their dotted names, without overloads and setters."""
    for node in body:
        if not isinstance(node, FUNCTION | ast.ClassDef) or node.name.startswith("_"):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if not any(re.search(r"overload|\.setter", decorator) for decorator in decorators):
            yield f"{inside}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node.body, f"{inside}{node.name}.")


def whole_sentence(docstring):
    """Whether the first paragraph begins like a sentence, a formula or a command line, and comes to an end."""
    first = docstring.strip().split("\n\n")[0]
    begins = first[0].isupper() or not first[0].isalpha() or first.startswith(("afterflow ", "python "))
    return begins and bool(re.search(r"[.:)`](\s|$)", first))


def docstrings(tree):
    complaints = []
    for name, node in public_definitions(tree.body):
        docstring = ast.get_docstring(node)
        if not docstring:
            complaints.append(f"{node.lineno}: {name} has no docstring")
            continue
        if not whole_sentence(docstring):
            complaints.append(f"{node.lineno}: {name} does not begin with a whole sentence")
        if isinstance(node, FUNCTION) and len(parameters(node)) > MAX_UNDESCRIBED and "Args:" not in docstring:
            complaints.append(f"{node.lineno}: {name} has {len(parameters(node))} parameters and no Args: block")
    return complaints


def public_names(tree):
    """The public names that a module defines; those it only imports are another's."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_"))


def repeated(sources):
    """Public names that more than one of these files define."""
    homes = defaultdict(list)
    for file, source in sources.items():
        for name in dict.fromkeys(public_names(ast.parse(source))):
            homes[name].append(file)
    return [f"{name}: {', '.join(files)}" for name, files in sorted(homes.items()) if len(files) > 1]


@pytest.mark.parametrize("rule", [dialect, sizes, docstrings], ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule):
    complaints = [f"{file}:{line}" for file, source in FILES.items() for line in rule(ast.parse(source))]
    assert not complaints, "\n".join(complaints)


def test_a_public_name_is_defined_in_one_module():
    assert len(FILES) > 100
    complaints = repeated(FILES)
    assert not complaints, "\n".join(complaints)


LONG = "def f():\n" + "    x = 1\n" * MAX_LINES
HEADS = ("if a:", "for b in a:", "while b:", "with b:")
FOUR_DEEP = "def f(a):\n" + "".join("    " * (level + 1) + head + "\n" for level, head in enumerate(HEADS))
FIVE_DEEP = FOUR_DEEP + " " * 20 + "if b:\n" + " " * 24 + "pass"
FOUR_DEEP += " " * 20 + "pass"


@pytest.mark.parametrize(
    "rule, source, words",
    [
        (dialect, "found = 1", "the name found"),
        (dialect, "def f(mine): ...", "the name mine"),
        (dialect, "def asked(): ...", "the name asked"),
        (dialect, "class A:\n    kept: int = 1", "the name kept"),
        (dialect, "a.place = 1", "the name place"),
        (dialect, "for _, said in pairs: ...", "the name said"),
        (dialect, "with open() as told: ...", "the name told"),
        (dialect, "import numpy as go_on", "the name go_on"),
        (dialect, "_found = lambda: 1", "the name _found"),
        (dialect, "if (asks := 1): ...", "the name asks"),
        (sizes, LONG, "f has 46 lines"),
        (sizes, "def f(a, b, c, d, e, f, g, *, h, i): ...", "f takes 9 arguments"),
        (sizes, FIVE_DEEP, "f nests 5 deep"),
        (docstrings, "def f(): ...", "f has no docstring"),
        (docstrings, "class A:\n    '''A whole sentence.'''\n    def f(self): ...", "A.f has no docstring"),
        (docstrings, "def f():\n    '''of the bootstrap.'''", "f does not begin with a whole sentence"),
        (docstrings, "def f():\n    '''Of the bootstrap'''", "f does not begin with a whole sentence"),
        (docstrings, "def f(a, b, c, d, e):\n    '''Return a.'''", "f has 5 parameters and no Args: block"),
    ],
)
def test_what_breaks_a_rule_is_named(rule, source, words):
    [complaint] = rule(ast.parse(source))
    assert words in complaint


@pytest.mark.parametrize(
    "rule, source",
    [
        (dialect, "scores = a.found + told\nfoundation = placement = 1"),
        (sizes, LONG.replace("    x = 1\n", "", 1) + "\ndef g(self, a, b, c, d, e, f, g, h): ..."),
        (sizes, FOUR_DEEP),
        (sizes, "def f(a):\n    if a:\n        pass\n" + "    elif a:\n        pass\n" * 9),
        (docstrings, "def _f(): ...\ndef g(a, b, c, d):\n    '''(P, G) → (P,): the mean over images.'''"),
        (docstrings, "def f(a, b, c, d, e):\n    '''Return a.\n\n    Args:\n        a: The first.\n    '''"),
        (docstrings, "class A:\n    '''A thing.'''\n    @x.setter\n    def x(self, y): ..."),
    ],
)
def test_what_keeps_the_rules_passes(rule, source):
    assert rule(ast.parse(source)) == []


def test_a_name_in_two_modules_is_seen_and_an_import_is_none():
    one = {"a.py": "def f(): ...\nX = 1", "b.py": "X: int = 2\nfrom a import f\ndef _g(): ...", "c.py": "def _g(): ..."}
    assert repeated(one) == ["X: a.py, b.py"]
