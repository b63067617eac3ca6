"""Does a run train slower while its page is open?  Blocks of iterations with the page and without, in turn, of one run.

    pip install playwright
    python bench/view_cost.py --json bench/results/view_cost.json

The run computes on one thread.  The page shows its curves and pictures, and asks for news as it does for a user.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import make_parser, provenance, write_json
from playwright.sync_api import Page, sync_playwright
from scipy import stats
from view_browser import Server

BLOCK = 8
"""Iterations, whose median leaves out that in which the page is loaded."""
TRAINING = (
    *("train", "shapes_nft", "--name", "seen", "--batch", "2", "--algorithm.group", "8", "--threads", "1"),
    *("--sample-every", "16", "--held-out.count", "12", "--eval-every", "1000", "--mixed-precision", "no"),
)


def main() -> None:
    """Measure, and print the ratio of seconds with the page to seconds without."""
    parser = make_parser(__doc__)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--blocks", type=int, default=40, help="half of them with the page open")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        folder, iterations = Path(name), (options.blocks + 1) * BLOCK
        command = [sys.executable, "-m", "afterflow", *TRAINING, "--iterations", str(iterations)]
        training = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = folder / "runs" / "seen" / "metrics.jsonl"
        wait_for(metrics, BLOCK, training)  # the first are slower
        page = driver.chromium.launch(executable_path=options.browser, args=["--no-sandbox"]).new_page()
        with Server(folder) as server:
            shown, busy = watch(page, server, metrics, training, options.blocks)
        assert training.wait() == 0
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = np.diff([line["seconds_trained"] for line in lines])
    blocks = [float(np.median(seconds[(i + 1) * BLOCK : (i + 2) * BLOCK - 1])) for i in range(len(shown))]
    result = {"iterations": len(lines), "median_seconds": statistics.median(seconds), "server_share": busy}
    result |= ratio_of(blocks, shown)
    write_json(result | provenance(), options.json, indent=1)


def watch(
    page: Page, server: Server, metrics: Path, training: subprocess.Popen, blocks: int
) -> tuple[list[bool], float]:
    """Open the page for half of the blocks, by turns with, without, without, with.

    Returns which blocks saw it, and the share of a core that the server computed on while it was open.
    """
    shown, busy, passed = [], 0.0, 0.0
    for block in range(blocks):
        shown.append(block % 4 in (0, 3))  # so that neither drift nor the pictures of every second block favour one
        start, before = time.monotonic(), server.cpu_seconds()
        page.goto(server.address if shown[-1] else "about:blank")
        wait_for(metrics, (block + 2) * BLOCK, training)
        if shown[-1]:
            busy, passed = busy + server.cpu_seconds() - before, passed + time.monotonic() - start
    return shown, busy / passed


def wait_for(metrics: Path, lines: int, training: subprocess.Popen) -> None:
    """Wait until the run has written so many lines; SystemExit where it ends before."""
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < lines:
        if training.poll() is not None:
            raise SystemExit("the run has ended before the page was seen often enough")
        time.sleep(0.05)


def ratio_of(blocks: list[float], shown: list[bool]) -> dict:
    """Return the ratio of a block with the page to its neighbour without, and its 95 % interval over pairs.

    No block is in two pairs, which the interval takes as independent.
    """
    neighbours = zip(blocks[::2], blocks[1::2], shown[::2], strict=False)
    pairs = [np.log(a / b) if first else np.log(b / a) for a, b, first in neighbours]
    mean, half = np.mean(pairs), stats.sem(pairs) * stats.t.ppf(0.975, len(pairs) - 1)
    ratio, low, high = (float(np.exp(log)) for log in (mean, mean - half, mean + half))
    return {"pairs": len(pairs), "ratio": ratio, "low": low, "high": high}


if __name__ == "__main__":
    main()
