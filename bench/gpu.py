"""Everything of afterflow that only a GPU can show, in one command of at most nine minutes.

    bench/gpu.sh                 # on a machine with an NVIDIA card, after `make demo`
    bench/gpu.sh --rehearse      # the same parts on the CPU with tiny models: tries this script, measures nothing

Each part has a process of its own and so many seconds at the least; what one leaves goes to the next.  A part that
fails or is cut is stored as such, with its reason and with what it had measured by then, and the others go on.  The
exit status is 1 where one was not done.

Results go to bench/results/gpu/NAME.json, after the card, and a summary to NAME.md: machine, versions and commit, and
for each part its cases.  `bench/gpu.sh PART` measures a part again: the others stay in the file, each with the commit
and the versions that it was measured with.  No weights are fetched: models have random ones.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from gpu_parts import PARTS, peak_gib, reset_peak
from harness import failure, provenance, read_json, write_json

from afterflow.experiment.provenance import LIBRARIES
from afterflow.system.atomic_files import write_text_atomically

TOTAL_SECONDS = 535
"""Seconds of all parts together."""
MARK = "RESULT "
"""What a line begins with by which a part reports a case."""
REHEARSAL = 900
"""Limit of a part that is rehearsed, in seconds."""
ROOT = Path(__file__).parents[1]


def carry_out(name: str, rehearsal: bool) -> None:
    """Measure the cases of a part in this process, and report each on a line of its own."""
    from afterflow.models.pipeline import no_progress_bars

    no_progress_bars()
    for case, call in PARTS[name].cases(rehearsal):
        reset_peak()
        try:
            result = call()
        except Exception as error:  # the others are worth having all the same; what failed is reported
            lines = str(error).splitlines() or [""]
            result = {"failed": f"{type(error).__name__}: {lines[0]}"}
        peak = {} if peak_gib() is None else {"peak_gib": peak_gib()}
        print("\n" + MARK + json.dumps([case, result | peak]), flush=True)  # what a library says may end in no newline


def run_part(name: str, seconds: float, rehearsal: bool, folder: str) -> dict:
    """Carry out a part in a process of its own within so many seconds, and return what came of it.

    folder: for what it says, and for what is counted and compiled, which later parts find there.
    """
    command = [sys.executable, __file__, "--part", name, *(["--rehearse"] if rehearsal else [])]
    caches = {"AFTERFLOW_CACHE": f"{folder}/cache", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
    started, out = time.monotonic(), Path(folder) / "out"
    with out.open("w") as text:
        # A group of its own, so that the compiler's processes end with it.
        process = subprocess.Popen(
            command, stdout=text, stderr=subprocess.STDOUT, env=os.environ | caches, start_new_session=True
        )
        try:
            code = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
    lines = out.read_text(errors="replace").splitlines(keepends=True)
    if lines and lines[-1].startswith(MARK) and not lines[-1].endswith("\n"):
        lines.pop()  # it was cut while it wrote this
    result = {"limit": round(seconds), "seconds": round(time.monotonic() - started, 1)}
    return result | outcome(code, [line.rstrip() for line in lines], seconds)


def end_group(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def end(number: int, frame: object) -> None:
    """End this process at a signal in the order of an exception, so that the part that is running ends with it."""
    sys.exit(128 + number)


def outcome(code: int | None, lines: list[str], seconds: float) -> dict:
    """Return the state of a part, the reason where it is not done, and its cases, from its exit status and its lines.

    code: The exit status; None where the part was cut.
    """
    cases = dict(json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK))
    wrong = [f"{name}: {case['failed']}" for name, case in cases.items() if "failed" in case]
    messages = [line for line in lines if not line.startswith(MARK)]
    if code is None:
        reason = f"cut after {seconds:.0f} s, with {len(cases)} cases measured"
        return {"state": "cut", "reason": reason, "cases": cases}
    if code:
        return {"state": "failed", "reason": failure(code, messages), "cases": cases}
    return (
        {"state": "failed", "reason": "; ".join(wrong), "cases": cases} if wrong else {"state": "done", "cases": cases}
    )


def card() -> dict:
    """Return the card, its driver and the versions of what computes on it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    try:
        cards = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        cards = []
    return {
        "cards": cards,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def summary(result: dict) -> str:
    """Return the result in words: a table of the parts, and one of the cases of each."""
    lines = [f"# {result['name']}", "", "| part | state | seconds | commit | about |", "|---|---|---|---|---|"]
    for name, part in result["parts"].items():
        state = part["state"] + (f": {part['reason']}" if "reason" in part else "")
        about = PARTS[name].about if name in PARTS else ""  # a file may hold a part of an earlier commit
        commit = (part["git_commit"] or "")[:10]
        lines.append(f"| {name} | {cell_text(state)} | {part['seconds']} | {commit} | {about} |")
    for name, part in result["parts"].items():
        lines += ["", f"## {name}", "", "| case | result |", "|---|---|"]
        lines += [f"| {case} | {cell_text(short_words(values))} |" for case, values in part["cases"].items()]
    return "\n".join(lines) + "\n"


def short_words(values: dict) -> str:
    """Return the numbers and words of a case in a line; of doctor the number of checks that passed."""
    if "checks" in values:
        passed = [check[0] for check in values["checks"].values() if check[0] is not None]
        values = {"passed": f"{sum(passed)} of {len(passed)}"} | {k: v for k, v in values.items() if k == "failed"}
    shown = {name: value for name, value in values.items() if name != "lines"}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )


def cell_text(text: str) -> str:
    """Return a text that ends no cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def carry_out_all(names: list[str], rehearsal: bool, folder: Path) -> int:
    """Carry out parts in turn within the time of all, storing after each; return how many were not done."""
    name = "rehearsal" if rehearsal else re.sub(r"\W+", "_", torch.cuda.get_device_name())
    folder.mkdir(parents=True, exist_ok=True)
    about = {"name": name, "rehearsal": rehearsal, "card": card(), **provenance("bench/gpu.sh")}
    parts, begun = stored_parts(folder / f"{name}.json"), time.monotonic()
    # Of the compiler's processes one may still write where all are about to end.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for i, part in enumerate(names):
            seconds = REHEARSAL if rehearsal else limit(names[i:], TOTAL_SECONDS - (time.monotonic() - begun))
            parts[part] = made = run_part(part, seconds, rehearsal, scratch) | made_with(about)
            reason = f" ({made['reason']})" if "reason" in made else ""
            print(f"{part}: {made['state']} after {made['seconds']} s{reason}", flush=True)
            store(about, parts, folder)
    print(f"\nresult: {folder / name}.json, summary: {folder / name}.md")
    return sum(parts[part]["state"] != "done" for part in names)


def limit(names: list[str], left: float) -> float:
    """Return the seconds that the first of the parts to come may take: all that are left beyond the others' least."""
    return left - sum(PARTS[name].seconds for name in names[1:])


def made_with(about: dict) -> dict:
    """Return what a part keeps of the call that measured it: commit, card and versions."""
    return {name: about.get(name) for name in ("git_commit", "card")}


def stored_parts(file: Path) -> dict[str, dict]:
    """Return the parts that a file of results holds, none without a file; SystemExit where it cannot be read."""
    try:
        stored = read_json(str(file))
        parts = {name: made_with(stored) | part for name, part in stored.get("parts", {}).items()}
        summary({"name": "", "parts": parts})  # which reads all that is needed of them
        return parts
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        sys.exit(f"bench/gpu.sh: {file} does not hold results ({error}); move it away or name another folder: --out")


def store(about: dict, parts: dict[str, dict], folder: Path) -> None:
    """Write the parts measured so far and their summary to a folder, in the order of PARTS."""
    ordered = {name: parts[name] for name in [*PARTS, *parts] if name in parts}
    seconds = round(sum(part["seconds"] for part in parts.values()), 1)
    result = about | {"seconds": seconds, "parts": ordered}
    write_json(result, str(folder / f"{about['name']}.json"), indent=1, show=False)
    write_text_atomically(folder / f"{about['name']}.md", summary(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all without a name: {'; '.join(PARTS)}")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with tiny models")
    parser.add_argument("--out", type=Path, help="folder of result and summary")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are: {'; '.join(PARTS)}")
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("bench/gpu.sh: torch sees no GPU here; bench/gpu.sh --rehearse tries the script without one")
    if options.part:
        carry_out(options.part, options.rehearse)
        return
    signal.signal(signal.SIGTERM, end)
    folder = options.out or (
        ROOT / "runs" / "gpu_rehearsal" if options.rehearse else ROOT / "bench" / "results" / "gpu"
    )
    sys.exit(min(1, carry_out_all(list(dict.fromkeys(options.parts or PARTS)), options.rehearse, folder)))


if __name__ == "__main__":
    main()
