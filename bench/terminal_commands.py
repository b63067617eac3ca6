"""The commands that do not train alone: where they print, where they write, and a signal while they work.

Each gets a stdout without a reader and on a full disk, a full disk where it writes, and the three signals at the moment
at which it works.  Its exit code is the shell's, it says one sentence, and what it made before stays.
"""

import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from desk import CHANGED, HUP, INT, RUN, TERM, Answer, Desk, at, case, closed_reader, fill, mount, send

TREE = Path("runs/short_tree")
"""Folder of a run of BranchGRPO."""
SMALL = ("--prompts", "7", "--images", "1")
FEW = ("--steps", "1", "--images", "1", "--max-sequence-length", "0")


@dataclass(frozen=True)
class Work:
    """What a command does here."""

    words: tuple[str, ...]
    """Its words; MODEL is the desk's pipeline."""
    made: str | None = None
    """A file that it makes in the folder `out`, or in runs/."""
    point: str | None = None
    """The moment at which it works."""
    lasting: bool = False
    """Whether its result is a folder, and what it prints are messages."""


WORKS = {
    "recipes": Work(("recipes",)),
    "status": Work(("status",)),
    "doctor": Work(("doctor", "short"), point="examining"),
    "train --plan": Work(("train", "short", "--plan")),
    "sample": Work(("sample", "MODEL", "a star", *FEW, "--out", "out/grid.png"), "out/grid.png", "sampling"),
    "eval --json": Work(("eval", "MODEL", "--prompts", "7", *FEW, "--json", "out/it.json"), "out/it.json", "sampling"),
    "eval --grid": Work(("eval", "MODEL", "--prompts", "7", *FEW, "--grid", "out/it.png"), "out/it.png", "sampling"),
    "eval --suite ocr": Work(
        (
            "eval",
            "MODEL",
            "--suite",
            "ocr",
            "--rewards",
            "jpeg_compressibility",
            "--prompts",
            "2",
            *FEW,
            "--out",
            "out",
        ),
        "out/tuned/00001/metadata.jsonl",
        "drawing",
    ),
    "merge": Work(("merge", str(RUN), str(TREE), "--out", "out/lora"), "out/lora/comfyui.safetensors", "merging"),
    "export": Work(("export", str(RUN), "--out", "out/it.safetensors"), "out/it.safetensors", "exporting"),
    "tree": Work(("tree", str(TREE), "a star", "--out", "out/tree.png"), "out/tree.png", "growing"),
    "report": Work(("report", str(RUN), str(TREE), "--out", "out", *SMALL), "out/index.html", "judging"),
    "push": Work(("push", "me/mine", str(RUN)), None, "uploading"),
    "compare": Work(("compare", "short", "--name", "out", *SMALL), "runs/out/index.html", "judging", lasting=True),
    "demo": Work(("demo",), "runs/short/summary.json", "judging base and result", lasting=True),
}
"""Command → what it does here."""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    def do_GET(self) -> None:
        self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer({"files": files})
        where = f"http://{self.headers['Host']}/me/mine"
        return self.answer(
            {"url": where, "name": "me/mine", "id": "me/mine", "commitUrl": where, "commitOid": "0" * 40}
        )

    def answer(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def serve_hub() -> Callable[[], None]:
    """Serve a hub in this process, and return what lets a command ask it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def arm() -> None:
        from huggingface_hub import constants

        constants.ENDPOINT = f"http://127.0.0.1:{server.server_port}"
        os.environ["HF_TOKEN"] = "hf_x"

    return arm


def shorten_demo(desk: Desk) -> None:
    """Let the demo of this process train the desk's run, and judge few images."""
    from afterflow.cli import demo_run
    from afterflow.evaluation.report import ShapesSettings
    from afterflow.experiment.run_folder import read_run

    run = read_run(desk.record)[0]
    demo_run.demo = lambda: run
    demo_run.SUITE = ShapesSettings(prompts=7, images=2, steps=1)


def do(desk: Desk, command: str, arm: Callable[[], object] | None = None, files: Any = (None,) * 3) -> Answer:
    """Carry out a command, beside the runs that it needs."""
    for run in (RUN, TREE) if command not in ("demo", "doctor") else ():
        if not run.exists():
            shutil.copytree(desk.record.parents[1] / run.name, run, symlinks=True)
    pipeline = str(desk.record.parents[2] / "pipeline")
    words = [pipeline if word == "MODEL" else word for word in WORKS[command].words]
    prepare = {"push": serve_hub, "demo": lambda: lambda: shorten_demo(desk)}.get(command, lambda: lambda: None)()
    return desk.run(*words, arm=lambda: (prepare(), arm and arm()), files=files)


for command, work in WORKS.items():

    @case(f"{command} does its work and prints into a pipe without a reader")
    def _(desk: Desk, command=command, work=work) -> None:
        answer = do(desk, command, files=(None, closed_reader(), None))
        desk.ended(answer, 0 if work.lasting else 141)
        desk.check(not work.lasting or CHANGED in answer.err, "no word of the lost lines")
        desk.check(work.lasting or "afterflow:" not in answer.err, answer.err[-300:])
        desk.check(work.made is None or Path(work.made).is_file(), f"{work.made} is not there")

    @case(f"{command} does its work and prints onto a full disk")
    def _(desk: Desk, command=command, work=work) -> None:
        answer = do(desk, command, files=(None, os.open("/dev/full", os.O_WRONLY), None))
        desk.ended(answer, 0 if work.lasting else 1)
        sentence = CHANGED if work.lasting else "afterflow: the output: No space left on device"
        desk.check(sentence in answer.err, "no word of the lost lines")
        desk.check(work.made is None or Path(work.made).is_file(), f"{work.made} is not there")


for command, work in WORKS.items():
    if work.made is None:
        continue

    @case(f"{command} ends, the disk where it writes is full", mounts=True)
    def _(desk: Desk, command=command, work=work) -> None:
        disk = Path("runs" if work.lasting else "out")
        mount(disk, 64)
        work_point = work.point
        arm = lambda: at(work_point, 1, lambda: fill(disk))()
        answer = do(desk, command, arm)
        desk.ended(answer, 1, "No space left on device; make room or take another disk, then repeat the command")
        (disk / "filler").unlink()
        if command != "demo":
            desk.ended(do(desk, command), 0)
            desk.check(Path(work.made).is_file(), f"{work.made} is not there")


@case("push ends, the disk of temporary files is full", mounts=True)
def _(desk: Desk) -> None:
    mount(Path("tmp"), 1)
    fill(Path("tmp"))
    import tempfile

    answer = do(desk, "push", lambda: setattr(tempfile, "tempdir", str(Path("tmp").resolve())))
    desk.ended(answer, 1, "afterflow: ")


for command, work in WORKS.items():
    if work.point is None:
        continue
    for number, code in {HUP: 129, TERM: 143, INT: 130}.items():

        @case(f"{command} ends in one line, {number.name} while it works")
        def _(desk: Desk, command=command, work=work, number=number, code=code) -> None:
            answer = do(desk, command, at(work.point, 1, send(number)))
            desk.ended(answer, code, "checkpoints and results that were written are whole")
            desk.check(work.made is None or not Path(work.made).exists(), f"{work.made} is there")
            if command not in ("demo", "doctor"):
                desk.ended(do(desk, command), 0)


for number in (HUP, TERM, INT):

    @case(f"compare goes on by the same command, {number.name} while it trains")
    def _(desk: Desk, number=number) -> None:
        def interrupt() -> None:
            metrics = Path("runs/out/short_0/metrics.jsonl")

            def act() -> None:
                while not metrics.is_file() or not metrics.read_text():
                    threading.Event().wait(0.01)
                os.killpg(0, number)

            threading.Thread(target=act, daemon=True).start()

        answer = do(desk, "compare", interrupt)
        sentence = "was interrupted; the same command goes on with it" if number == INT else f"{number.name}; iteration"
        desk.ended(answer, 1, sentence)
        desk.ended(do(desk, "compare"), 0)
        desk.check(Path("runs/out/index.html").is_file(), "no page")
