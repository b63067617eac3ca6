"""All attacks one after another: on the service and its clients, by records and models, and on the terminal and desk.

    python bench/attack.py

Each is a benchmark of its own, in a process of its own, and stores its result in --results; a line sums it up.  The
exit code is 1 where one was not as designed.  They take about half an hour on two cores.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import make_parser

from afterflow.system.ended import signal_name

Result = dict
HERE = Path(__file__).parent


def service_summary(result: Result) -> tuple[bool, str]:
    """Return whether the attacks on the service were as designed, and what was attacked."""
    sections = {name: section for name, section in result.items() if isinstance(section, dict) and "ok" in section}
    bad = [name for name, section in sections.items() if not section["ok"]]
    memory = result.get("abuse", {}).get("memory")
    grown = "" if memory is None else f", memory {memory['grown']:+.1%} after {result['abuse']['seconds']:g} s of abuse"
    return result["as_designed"], f"{len(sections) - len(bad)} of {len(sections)} sections{grown}"


def records_summary(result: Result) -> tuple[bool, str]:
    """Return whether all records and models were as designed, and how many there were."""
    cases = sum(table["cases"] for table in result.values() if isinstance(table, dict) and "cases" in table)
    return not result["wrong"], f"{cases} records, folders, LoRAs and pipelines, {len(result['wrong'])} commands wrong"


def terminal_summary(result: Result) -> tuple[bool, str]:
    """Return whether all faults of a terminal and a desk were as designed, and how many there were."""
    return not result["wrong"], f"{result['as_designed']} of {result['faults']} faults"


SUMMARIES: dict[str, Callable[[Result], tuple[bool, str]]] = {
    "attack_service": service_summary,
    "attack_records": records_summary,
    "attack_terminal": terminal_summary,
}
"""Benchmark → what sums its stored result up."""


def attack(name: str, file: Path, options: list[str]) -> bool:
    """Run a benchmark, print its summary, and return whether it ended and all was as designed."""
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder, file.name)
        code = subprocess.run([sys.executable, HERE / f"{name}.py", "--json", new, *options]).returncode
        if not new.is_file():
            how = f"by {signal_name(-code)}" if code < 0 else f"with exit code {code}"
            print(f"{name}: NOT AS DESIGNED: it ended {how} and left no result", flush=True)
            return False
        shutil.copyfile(new, file)
    good, words = SUMMARIES[name](json.loads(file.read_text()))
    good = good and code == 0
    print(f"{name}: {'as designed' if good else 'NOT AS DESIGNED'}: {words}; {file}", flush=True)
    return good


def main() -> None:
    """Run the benchmarks that are asked for."""
    parser = make_parser(__doc__, stores=False)
    parser.add_argument("--only", nargs="*", choices=SUMMARIES, default=list(SUMMARIES), help="which attacks")
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the abuse of the service")
    parser.add_argument("--cases", nargs="*", default=[""], help="parts of names of the cases of the terminal")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results")
    given = parser.parse_args()
    options = {"attack_service": ["--seconds", str(given.seconds)], "attack_terminal": ["--only", *given.cases]}
    sys.exit(not all([attack(name, given.results / f"{name}.json", options.get(name, [])) for name in given.only]))


if __name__ == "__main__":
    main()
