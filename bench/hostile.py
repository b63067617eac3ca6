"""Files that users bring, generated in every form and damage, through every command that reads such.

    python bench/hostile.py --json bench/results/hostile.json

A file either gives what a viewer shows, or the prompts that were written, computed here in another way; or the command
ends with one sentence that names it.  No traceback, and nothing silent.  A section is a function that returns a table
and the list of what was wrong.
"""

import contextlib
import io
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import make_parser, provenance, read_json, write_json

from afterflow.cli.main import main as afterflow

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str
    traceback: str

    def refuses(self, name: str) -> bool:
        """Whether it ended with one sentence that names a file."""
        sentences = [line for line in self.err.splitlines() if line.startswith("afterflow: ")]
        return self.code == 2 and not self.traceback and len(sentences) == 1 and name in sentences[0]

    def problem(self, case: str) -> str:
        """Say what was wrong, in one line."""
        last = (self.traceback or self.err or self.out or "no word").strip().splitlines()[-1]
        return f"{case}: code {self.code}, {last[:300]}"


def run(*words: object) -> Answer:
    """Call the command line in this process."""
    out, err, trace, code = io.StringIO(), io.StringIO(), "", 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = afterflow([str(word) for word in words])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception:
            trace = traceback.format_exc()
    return Answer(code, out.getvalue(), err.getvalue(), trace)


Section = Callable[[int, int], tuple[dict[str, Counter], list[str]]]
"""Function (files, seed) → (command → outcome → number of files, what was wrong)."""


def main() -> None:
    from hostile_pictures import pictures
    from hostile_texts import texts

    sections: dict[str, Section] = {"pictures": pictures, "texts": texts}
    parser = make_parser(__doc__)
    parser.add_argument("--section", choices=sections, nargs="*", default=list(sections))
    parser.add_argument("--count", type=int, default=300, help="number of files of a section")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    target = Path(options.json).resolve() if options.json != "-" else options.json
    result = read_json(str(target))
    for name in options.section:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            os.environ["AFTERFLOW_CACHE"] = f"{folder}/cache"
            table, wrong = sections[name](options.count, options.seed)
        result[name] = {"files": options.count, "outcomes": table, "wrong": wrong}
    write_json(result | provenance("python bench/hostile.py"), str(target), indent=2)


if __name__ == "__main__":
    main()
