"""Press every key of the page of `afterflow view` in a real browser, on a desk and on a phone of 390 px, and time it.

pip install playwright            # its driver; the browser is the system's, such as Debian's package chromium
python bench/view_browser.py --browser /usr/bin/chromium --out screenshots
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import provenance, write_json
from page_checks import check_focus, check_page
from playwright.sync_api import Browser, Page, sync_playwright

from afterflow.envs.shapes.prompts import suite
from afterflow.envs.shapes.render import render_image
from afterflow.experiment.picture_store import PictureStore, encode_picture

HOSTILE = "a cat</h1></script><img src=x onerror=alert(1)><script>document.title = 'owned'</script> \u202eand so on"
TITLE = "afterflow: runs"
NAMES = tuple(f"{run} <b> shapes_flow_grpo_guard_with_a_name_that_is_long_0" for run in ("one", "two"))
RUNS, ITERATIONS, PICTURES = 20, 5000, 100
"""Runs, iterations of each, and pictures of each, of the folder that is timed."""


def main() -> None:
    """Look at runs that are made here; AssertionError where the page does something else than it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--out", default="screenshots")
    parser.add_argument("--json", default="-", help="file of what was timed; - prints it only")
    args = parser.parse_args()
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        folder = Path(name)
        browser = driver.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        for run in NAMES:
            make_run(folder / "small" / "runs" / run, 40, 12)
        with Server(folder / "small") as server:
            errors: list[str] = []
            desk, phone = open_pages(browser, server.address, errors, out)
            walk(desk, out / "desk")
            walk(phone, out / "phone")
            assert phone.evaluate("document.documentElement.scrollWidth") == 390
            see_iteration(desk, folder / "small" / "runs" / NAMES[0])
            assert not errors and desk.title() == phone.title() == TITLE, errors
            read_from_elsewhere(browser, server.address)
        see_report(browser, folder / "small", out)
        for index in range(RUNS):
            make_run(folder / "large" / "runs" / f"run_{index:02d}", ITERATIONS, PICTURES)
        with Server(folder / "large") as server:
            timed = open_large(browser, server)
        browser.close()
    sizes = {"runs": RUNS, "iterations": ITERATIONS, "pictures": RUNS * PICTURES}
    command = "python bench/view_browser.py --json bench/results/view.json"
    write_json({**sizes, **timed, **provenance(command)}, args.json, indent=2)
    print(f"every key did what it should; look at the pictures in {out}")


class Server:
    """The command, in a folder with runs."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "afterflow", "view", "--port", "0"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment)
        assert self.process.stdout is not None
        self.address = next(word for line in self.process.stdout for word in line.split() if word.startswith("http"))
        while "ready" not in self.process.stdout.readline():
            pass

    def megabytes(self) -> float:
        """Return the memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1000

    def cpu_seconds(self) -> float:
        """Return the seconds that the process has computed so far, which another program does not lengthen much."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()  # a process in the background may have to ignore SIGINT
        self.process.wait(20)


def make_run(folder: Path, iterations: int, pictures: int) -> None:
    """Write a run with a hidden evaluator that falls, an alarm, pictures of a hostile prompt, and a tree."""
    folder.mkdir(parents=True)
    config = {
        "algorithm": {"type": "BranchGRPO", "weights": {"strict": 1.0}},
        "batches": {"iterations": iterations + 9},
    }
    (folder / "run.json").write_text(json.dumps({"config": config, "recipe": HOSTILE}))
    draws = np.random.default_rng(0)
    numbers = {f"metric/{i}": 0.5 for i in range(30)}
    with (folder / "metrics.jsonl").open("w") as stream:
        for step in range(iterations):
            line = {
                "step": step,
                "seconds_trained": float(step),
                "reward": draws.random(),
                **numbers,
                "kl": step * 1e-6,
            }
            stream.write(json.dumps(line | ({"alarm": 1.0} if step == iterations - 5 else {})) + "\n")
    with (folder / "held_out.jsonl").open("w") as stream:
        for step in range(0, iterations, max(1, iterations // 20)):
            rise = step / iterations
            line = {
                "step": step,
                "strict": (draws.random(40) + rise).tolist(),
                "clean": (1 - rise * draws.random(40)).tolist(),
            }
            stream.write(json.dumps(line) + "\n")
    records = [*suite("test", 1, 0, tags=("counting", "text")), {"prompt": HOSTILE, "tag": "<i>"}]
    store, steps = PictureStore(folder, "samples"), max(2, pictures // 6)
    store.begin(0, records, 2)
    for i in range(steps):
        images = [render_image(records[n // 2 % 2], 32, draws) for n in range(6)]
        scores = {"strict": [float((n + i) % 2) for n in range(6)]}
        store.write(i - 1, [encode_picture(image) for image in images], {"scores": scores, "parts": {}})
    make_group(folder, records)


def make_group(folder: Path, records: list[dict]) -> None:
    """Store a group with a tree."""
    groups = PictureStore(folder, "groups")
    groups.begin(0)
    tree = [
        {"step": 0, "parents": [0], "rewards": [0.5]},
        {"step": 1, "parents": [0, 0], "rewards": [0.25, 0.75]},
        {"step": 3, "parents": [0, 0, 1, 1], "rewards": [0.0, 0.5, 0.5, 1.0]},
    ]
    total = {"total": [0.0, 0.5, 0.5, 1.0], "rewards": {"strict": [0.0, 0.5, 0.5, 1.0]}, "parts": {}}
    group = {"record": records[0], **total, "best": 3, "worst": 0, "tree": tree}
    image = encode_picture(render_image(records[0], 32, np.random.default_rng(0)))
    groups.write(0, [image, image], {"groups": [group]})


def open_pages(browser: Browser, address: str, errors: list[str], out: Path) -> list[Page]:
    """Open the page on a desk and on a phone, and note every error of the console."""
    desk = browser.new_page(viewport={"width": 1280, "height": 800})
    phone = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for page in (desk, phone):
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.goto(address)
        wait(page, "runs.length === 2 && document.querySelectorAll('article').length === 2")
    return [desk, phone]


def wait(page: Page, condition: str, seconds: float = 10) -> None:
    """Wait until an expression of the page is true; its policy allows no polling by the driver itself."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def walk(page: Page, picture: Path) -> None:
    """Go through all views by the keyboard, and check what each key does."""
    page.keyboard.press("2")
    wait(page, "state.view === 'run' && cards.length === 3 && document.querySelectorAll('svg.chart').length === 4")
    assert page.evaluate("document.querySelectorAll('line.alarm').length") >= 3, "the alarm is marked"
    last = page.evaluate("state.step")
    source = "document.querySelector('.cells img').getAttribute('src')"
    before = page.evaluate(source)
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("state.step") == last - 1 and page.evaluate(source) != before
    page.keyboard.press("ArrowRight")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert HOSTILE.split("<")[0] not in page.evaluate("document.activeElement.querySelector('h3').textContent")
    page.keyboard.press("k")
    page.keyboard.press("o")
    wait(page, "document.querySelectorAll('.frame svg').length >= 4 && document.querySelector('.words')")
    look(page, picture, "run")
    page.keyboard.press("t")
    assert page.evaluate("state.tag !== '' && cards.filter((card) => !card.element.hidden).length === 1")
    while page.evaluate("state.tag"):
        page.keyboard.press("t")
    page.keyboard.press("w")
    assert page.evaluate("state.worse")
    page.keyboard.press("w")
    page.keyboard.press("?")
    assert page.evaluate("document.getElementById('help').open")
    look(page, picture, "help")
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    wait(page, "document.querySelector('svg.tree') && document.querySelector('svg.strip')")
    look(page, picture, "groups")
    page.keyboard.press("4")
    wait(page, "state.view === 'compare' && cards.length === 3 && cards[0].sides.every((side) => side)")
    look(page, picture, "compare")
    page.keyboard.press("1")
    wait(page, "state.view === 'runs' && document.querySelector('#open-0')")
    look(page, picture, "runs")
    page.keyboard.press("2")
    wait(page, "state.view === 'run'")


def look(page: Page, picture: Path, view: str) -> None:
    """Check that everybody can read and reach what a view shows, and take pictures of it in light and in dark."""
    check_page(page, f"{picture.name} {view}")
    if view != "help":  # where Tab goes on to the browser
        check_focus(page, f"{picture.name} {view}")
    page.evaluate("scrollTo(0, 0)")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=f"{picture}_{view}_{scheme}.png", full_page=True)
    page.emulate_media(color_scheme="light")


def see_iteration(page: Page, run: Path) -> None:
    """Check that a new iteration is shown within two seconds, and that the slider that was moved stays."""
    page.keyboard.press("ArrowLeft")
    step = page.evaluate("state.step")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4000, "seconds_trained": 99.0, "reward": 7.0}\n')
    wait(page, "runs[0].iteration === 4000 && answer('curves/0').reward.at(-1)[1] === 7", seconds=2)
    assert page.evaluate("state.step") == step


def read_from_elsewhere(browser: Browser, address: str) -> None:
    """Check that another page of the same browser gets nothing, although it knows the address."""
    page = browser.new_page()
    page.goto("data:text/html,<p>another page</p>")
    fetched = page.evaluate("(address) => fetch(address).then((r) => r.text(), () => 'refused')", address + "runs")
    assert fetched == "refused", fetched
    frame = "const frame = document.createElement('iframe'); frame.src = address; document.body.append(frame);"
    page.evaluate(f"(address) => {{ {frame} }}", address)
    time.sleep(1)
    shown = [frame.url for frame in page.frames[1:]]
    assert all("runs" not in (frame.content() if frame.url.startswith("http") else "") for frame in page.frames[1:]), (
        shown
    )


def see_report(browser: Browser, folder: Path, out: Path) -> None:
    """Check that the page as one file works without a server."""
    file = folder / "report.html"
    run = next((folder / "runs").iterdir())
    subprocess.run([sys.executable, "-m", "afterflow", "view", str(run), "--html", str(file)], check=True)
    page, errors = browser.new_page(viewport={"width": 390, "height": 844}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.goto(file.as_uri())
    wait(page, "state.view === 'run' && cards.length === 3")
    page.keyboard.press("o")
    wait(page, "document.querySelector('.frame svg')")
    wait(page, "[...document.images].every((image) => image.hidden || (image.complete && image.naturalWidth))")
    page.screenshot(path=out / "report.png", full_page=True)
    assert not errors and page.title() == TITLE and file.stat().st_size <= 3_000_000, errors


def open_large(browser: Browser, server: Server) -> dict[str, float]:
    """Time how long it takes until all runs are shown, and until each was opened; measure the memory after that.

    `cpu` are the seconds that the server computed, whatever else the machine did.
    """
    page, before = browser.new_page(viewport={"width": 1280, "height": 800}), server.cpu_seconds()
    start = time.monotonic()
    page.goto(server.address)
    wait(page, f"document.querySelectorAll('article').length === {RUNS}", seconds=30)
    timed = {"seconds_all_shown": time.monotonic() - start, "cpu_all_shown": server.cpu_seconds() - before}
    before, opened = server.cpu_seconds(), []
    for run in range(RUNS):
        start = time.monotonic()
        page.keyboard.press("]" if run else "2")
        charts = "document.querySelectorAll('svg.chart').length === 4"
        wait(page, f"state.run === {run} && answer('curves/{run}') && cards.length === 3 && {charts}", seconds=30)
        opened.append(time.monotonic() - start)
    timed |= {"median_seconds_a_run": statistics.median(opened), "cpu_a_run": (server.cpu_seconds() - before) / RUNS}
    return {name: round(value, 3) for name, value in timed.items()} | {"megabytes": round(server.megabytes())}


if __name__ == "__main__":
    main()
