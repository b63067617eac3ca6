"""Do the tests notice a change of meaning?  Changes of one line, drawn with a fixed seed, against a module's own tests.

    python bench/mutants.py                        # 400 mutants, an hour or more; `make mutants`
    python bench/mutants.py --forward --count 150  # of the methods that noise their finished images again
    python bench/mutants.py --only soar --count 50
    python bench/mutants.py --show 17              # what mutant 17 changes

A mutant is a module of MODULES with one operator, comparison, constant, call, argument or statement changed.  Each runs
in a process forked after torch has been imported, in which the module's source is the mutant's; nothing is written into
the package.  It is caught where a test fails, or does not end.  equivalent_mutants.json lists mutants that change
nothing anybody could see, with the reason; they are drawn like the others and left out of the share.  Results are
stored as they come in bench/results/mutants.json, or mutants_forward.json.  What was caught there is not run again, nor
what survived the tests as they are; delete the file to run everything.  Other seeds draw others, and store nothing.
"""

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
COUNT = 400
SEED = 0
SECONDS = 240
"""Time that the tests of a mutant may take."""
QUICK = "not reward_rises and not teaches_the_plane and not fixed_point and not learns_the_data and not beta_keeps"
QUICK += " and not specialists_make and not merged_file_draws and not can_be_trained_on"
"""Tests that are run: those that train a toy for seconds would notice most, and say little."""

MODULES: dict[str, str] = {
    "sampling/conditioning": "rollout loop train",
    "sampling/flow": "flow loop soar",
    "sampling/kernels": "kernels",
    "sampling/rollout": "rollout solvers trees loop all_rows",
    "sampling/row_random": "rollout flow loop",
    "sampling/sampler_step": "soar loop",
    "sampling/schedules": "kernels flow solvers credit family",
    "sampling/seeds": "rollout train",
    "sampling/solvers": "solvers",
    "objectives/advantages": "advantages memory",
    "objectives/distillation": "distill flow_opd",
    "objectives/losses": "losses flow_grpo dpo",
    "objectives/preferences": "preferences",
    "objectives/tree_credit": "trees",
    "algorithms/base": "credit loop advantages family",
    "algorithms/branch_grpo": "credit family",
    "algorithms/dance_grpo": "credit family",
    "algorithms/ddpo": "memory credit family",
    "algorithms/dpo": "dpo credit",
    "algorithms/flow_grpo": "credit flow_grpo",
    "algorithms/flow_opd": "credit flow_opd",
    "algorithms/mix_grpo": "credit family",
    "algorithms/policy_gradient": "credit flow_grpo family",
    "algorithms/pref_grpo": "credit preferences family",
    "algorithms/pruning": "credit family",
    "algorithms/ratios": "flow_grpo credit",
    "algorithms/sft": "loop credit soar",
    "algorithms/soar": "loop credit soar",
    "algorithms/windows": "windows credit flow_grpo",
    "train/ema": "loop train",
    "train/explore": "loop all_rows train soar",
    "train/gradients": "loop all_rows train soar one_pass",
    "train/local_rows": "all_rows train",
    "train/loop": "loop all_rows train",
    "train/one_pass": "one_pass",
    "train/reward_hacking": "scoring loop",
    "train/reward_history": "memory",
    "train/scores": "scoring all_rows loop",
    "envs/geneval_rules": "geneval",
    "envs/shapes/verify": "shapes_verifier",
    "models/lora/merge": "merge",
    "models/lora/factors": "merge",
}
"""Modules and the names of the test files that are theirs."""
FORWARD: dict[str, str] = {
    "algorithms/awm": "forward_process",
    "algorithms/crd": "forward_process",
    "algorithms/dgpo": "forward_process",
    "algorithms/diffusion_nft": "forward_process",
    "algorithms/flow_awr": "forward_process",
    "algorithms/forward_process": "forward_process",
    "algorithms/lag": "forward_process",
    "algorithms/online_dpo": "forward_process dpo",
    "algorithms/v_grpo": "forward_process",
    "objectives/regression": "forward_process",
    "sampling/noised": "forward_process",
    "sampling/training_times": "forward_process",
}
"""The same of the methods that noise their finished images again, which have a draw and results of their own."""
TESTS = MODULES | FORWARD

EQUIVALENT: dict[str, str] = json.loads((ROOT / "bench" / "equivalent_mutants.json").read_text())
"""Reasons, by the name of a mutant, for which it changes nothing."""


@dataclass(frozen=True)
class Mutant:
    """A change of one expression or statement of a module."""

    module: str
    line: int
    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        """Return the module, the function's line as text, and the change: the same wherever the line moves to."""
        return f"{self.module}: {self.before}  →  {self.after}"


# Changes of an expression, as functions of a node to nodes.

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
OPERATORS |= {ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARISONS |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
DROPPED = "detach float double clamp abs sqrt square nan_to_num exp log sin cos flip argsort unflatten sigmoid floor"
RENAMED = {"mean": "sum", "sum": "mean", "any": "all", "all": "any", "min": "max", "max": "min", "amin": "amax"}
RENAMED |= {"nanmean": "nansum", "nansum": "nanmean", "argmax": "argmin", "minimum": "maximum", "maximum": "minimum"}
RENAMED |= {"ones_like": "zeros_like", "zeros_like": "ones_like", "double": "float", "randperm": "arange", "sin": "cos"}
RENAMED |= {"cos": "sin", "ones": "zeros", "floor": "ceil", "ceil": "floor", "append": "count", "update": "copy"}
COMMUTATIVE = {"min", "max", "minimum", "maximum", "allclose", "equal"}
SPOKEN = {"require", "warning", "info", "ValueError", "ConfigError", "InputError", "TrainingStopped", "_report"}
"""Calls whose texts are for readers; of `require` the condition is mutated."""
TYPED = {"cast", "field", "TypeVar", "getLogger", "super", "isinstance", "dataclass", "property", "timedelta"}


def changes(node: ast.expr) -> Iterator[ast.expr]:
    """Yield what may stand in the place of an expression."""
    new = copy.copy(node)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0)
    elif isinstance(node, ast.Attribute) and node.attr in ("float64", "float32"):
        yield ast.Attribute(node.value, "float32" if node.attr == "float64" else "bfloat16", node.ctx)
    elif isinstance(node, ast.Call):
        yield from changed_calls(node, new)


def changed_calls(node: ast.Call, new: ast.expr) -> Iterator[ast.expr]:
    """Yield a call without itself, under another name, with arguments swapped, dropped or replaced."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in TYPED:
        return
    if isinstance(node.func, ast.Attribute) and name in DROPPED.split():
        yield node.func.value
    if name in RENAMED:
        func = copy.copy(node.func)
        setattr(func, "attr" if isinstance(func, ast.Attribute) else "id", RENAMED[name])
        yield ast.Call(func, node.args, node.keywords)
    if name in ("generator", "number", "manual_seed"):  # of what it should depend on, one thing is left out
        for i in range(len(node.args)):
            rest = [*node.args[:i], *([ast.Constant(0)] if name == "manual_seed" else []), *node.args[i + 1 :]]
            yield ast.Call(node.func, rest, node.keywords)
    elif (
        len(node.args) >= 2
        and name not in COMMUTATIVE
        and not any(isinstance(a, ast.Starred) for a in node.args[:2])
        and differ(*node.args[:2])
    ):
        yield ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)
    for keyword in node.keywords:
        if keyword.arg not in (None, "device"):
            yield ast.Call(node.func, node.args, [k for k in node.keywords if k is not keyword])


def differ(first: ast.expr, second: ast.expr) -> bool:
    """Return whether two expressions are not the same text."""
    return ast.dump(first) != ast.dump(second)


def statements(node: ast.stmt) -> Iterator[ast.stmt]:
    """Yield what may stand in the place of a statement of one line."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Yield):
        yield ast.Pass()
    if isinstance(node, ast.AugAssign | ast.Break | ast.Continue):
        yield ast.Pass()
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
        yield ast.Pass()


def spoken(node: ast.AST) -> bool:
    """Return whether a call only says something."""
    func = node.func if isinstance(node, ast.Call) else None
    return (func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")) in SPOKEN


def nodes_of(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the expressions and statements that mean something, without annotations, texts and asserts."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases") or value is None:
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(
                child, ast.Assert | ast.Raise | ast.Import | ast.ImportFrom
            ):
                continue
            if isinstance(child, ast.JoinedStr) or (isinstance(child, ast.Subscript) and is_type(child)):
                continue
            if spoken(child):
                if child.func.id == "require" if isinstance(child.func, ast.Name) else False:  # type: ignore
                    yield child.args[0]  # type: ignore
                    yield from nodes_of(child.args[0])  # type: ignore
                continue
            yield child
            yield from nodes_of(child)


def is_type(node: ast.Subscript) -> bool:
    """Return whether a subscript is a type, such as Literal["a", "b"]."""
    return isinstance(node.value, ast.Name) and node.value.id in ("Literal", "Callable", "Mapping", "Sequence", "dict")


def negated(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield the condition of a branch and its opposite."""
    if isinstance(node, ast.If | ast.While):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)


def mutants_of(module: str) -> list[Mutant]:
    """Return all mutants of a module."""
    source = (ROOT / "afterflow" / f"{module}.py").read_text()
    mutants = []
    for node in nodes_of(ast.parse(source)):
        pairs = list(negated(node))
        if isinstance(node, ast.expr):
            pairs += [(node, new) for new in changes(node)]
        elif isinstance(node, ast.stmt):
            pairs += [(node, new) for new in statements(node)]  # type: ignore[misc]
        for old, new in pairs:
            mutated = with_change(module, source, old, new)
            if mutated is not None:
                mutants.append(mutated)
    return list({mutant.source: mutant for mutant in mutants}.values())


def with_change(module: str, source: str, old: ast.AST, new: ast.AST) -> Mutant | None:
    """Return the module with one node replaced; None where that is no program."""
    lines = source.splitlines(keepends=True)
    start = sum(len(line.encode()) for line in lines[: old.lineno - 1]) + old.col_offset  # type: ignore[attr-defined]
    end = sum(len(line.encode()) for line in lines[: old.end_lineno - 1]) + old.end_col_offset  # type: ignore
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(new)))
    text = f"({text})" if isinstance(old, ast.expr) and not isinstance(new, ast.Constant | ast.Call) else text
    data = source.encode()
    mutated = (data[:start] + text.encode() + data[end:]).decode()
    with contextlib.suppress(SyntaxError):
        compile(mutated, module, "exec")
        before = " ".join(data[start:end].decode().split())
        line = " ".join(lines[old.lineno - 1].split())  # type: ignore[attr-defined]
        return Mutant(module, old.lineno, f"{line}  |  {before}", text, mutated)  # type: ignore[attr-defined]
    return None


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a given source."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = f"afterflow.{mutant.module.replace('/', '.')}"
        self.file = str(ROOT / "afterflow" / f"{mutant.module}.py")
        self.source = mutant.source

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.file, loader=self) if name == self.name else None

    def create_module(self, spec):
        return None

    def exec_module(self, module) -> None:
        exec(compile(self.source, self.file, "exec"), module.__dict__)


def run_tests(mutant: Mutant | None, tests: list[str]) -> int:
    """Run the tests in this process and return pytest's exit code."""
    import pytest

    os.chdir(ROOT)
    if mutant is not None:
        sys.meta_path.insert(0, Finder(mutant))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore", "-k", QUICK]
    return int(pytest.main([*options, *(str(ROOT / "tests" / name) for name in tests)]))


def forked(mutant: Mutant, tests: list[str]) -> tuple[str, float]:
    """Run the tests of a mutant in a fork: what became of it, and the seconds that it took."""
    begun, child = time.monotonic(), os.fork()
    if child == 0:
        os.setsid()
        output = os.open(os.environ.get("MUTANT_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 9
        with contextlib.suppress(BaseException):
            code = run_tests(mutant, tests)
        os._exit(code)
    while time.monotonic() - begun < SECONDS:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            survived = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
            return "survived" if survived else "caught", time.monotonic() - begun
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out", time.monotonic() - begun


def warm() -> None:
    """Import what the tests import and is not ours, so that a fork need not."""
    import accelerate  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    for name in ("tinies", "toy"):  # diffusers and transformers, as tests/conftest.py asks for them
        importlib.import_module(name)
    importlib.import_module("afterflow.models.lora.merge")
    for name in [name for name in sys.modules if name.split(".")[0] in ("afterflow", "tinies", "toy")]:
        del sys.modules[name]


def tests_of(module: str) -> list[str]:
    """Return the test files of a module, below tests/."""
    files = [sorted((ROOT / "tests").glob(f"*/test_{name}.py")) for name in TESTS[module].split()]
    return [str(file.relative_to(ROOT / "tests")) for of_name in files for file in of_name]


def digest(*texts: str) -> str:
    """Return a short digest of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def digest_of_tests(module: str) -> str:
    """Return a digest of the test files of a module."""
    return digest(*((ROOT / "tests" / name).read_text() for name in tests_of(module)))


def drawn(count: int, seed: int = SEED, modules: Iterable[str] = MODULES) -> list[Mutant]:
    """Return the mutants of some modules in an order that the seed decides, or the first `count` of them."""
    everything = [mutant for module in modules for mutant in mutants_of(module)]
    random.Random(seed).shuffle(everything)
    return everything[:count]


def summary(results: list[dict]) -> dict:
    """Return how many mutants were caught of those that change anything."""
    counted = [result for result in results if result["name"] not in EQUIVALENT]
    caught = sum(result["outcome"] != "survived" for result in counted)
    return {
        "mutants": len(results),
        "equivalent": len(results) - len(counted),
        "caught": caught,
        "share": round(caught / max(1, len(counted)), 4),
    }


def store(results: list[dict], file: Path) -> None:
    """Write results to a file, the survivors with their reasons first."""
    survivors = [
        {"name": result["name"], "line": result["line"], "reason": EQUIVALENT.get(result["name"], "not caught")}
        for result in results
        if result["outcome"] == "survived"
    ]
    data = {**summary(results), "seed": SEED, "survivors": survivors, "results": results}
    file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", help="modules with one of these, between commas, in their names; nothing is stored")
    parser.add_argument("--forward", action="store_true", help="the methods that noise their finished images again")
    parser.add_argument("--show", type=int, help="print a mutant instead of running any")
    options = parser.parse_args()
    mutants = drawn(options.count, options.seed, FORWARD if options.forward else MODULES)
    file = RESULTS / ("mutants_forward.json" if options.forward else "mutants.json")
    if options.show is not None:
        print(mutants[options.show].name)
        return
    stored = json.loads(file.read_text())["results"] if file.is_file() else []
    known = {result["mutant"]: result for result in stored}
    if options.only:
        mutants = [mutant for mutant in mutants if any(part in mutant.module for part in options.only.split(","))]
    warm()
    results: dict[str, dict] = {}
    keys = [digest(mutant.source) for mutant in mutants]
    tests = {module: digest_of_tests(module) for module in TESTS}
    for number, (mutant, key) in enumerate(zip(mutants, keys)):
        result = known.get(key)
        if result is None or (result["outcome"] == "survived" and result["tests"] != tests[mutant.module]):
            outcome, seconds = forked(mutant, tests_of(mutant.module))
            result = {"name": mutant.name, "outcome": outcome, "mutant": key, "tests": tests[mutant.module]}
            unexplained = outcome == "survived" and mutant.name not in EQUIVALENT
            if unexplained or number % 25 == 0:
                print(f"{number} {outcome} {seconds:.0f} s  {mutant.name}", flush=True)
        results[key] = known[key] = {**result, "line": mutant.line}
        if not options.only and options.seed == SEED:
            store([known[key] for key in keys if key in known], file)
    print(json.dumps(summary(list(results.values()))))


if __name__ == "__main__":
    main()
