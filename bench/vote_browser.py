"""Press every key of the page of `afterflow vote` in a real browser, tap on a phone of 390 px, and look at its layout.

pip install playwright            # its driver; the browser is the system's, such as Debian's package chromium
python bench/vote_browser.py --browser /usr/bin/chromium --out screenshots
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

HOSTILE = "a cat</h1><img src=x onerror=alert(1)><script>document.title = 'owned'</script> \u202eand so on, and so on"
KEYS = (("1", "left"), ("ArrowRight", "right"), ("=", "tie"), ("0", "tie"), ("ArrowLeft", "left"), ("s", "skip"))
READY = "pair && !acting && loaded === 2"


def main() -> None:
    """Judge pictures that are made here; AssertionError where the page does something else than it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--out", default="screenshots", help="folder of the screenshots")
    args = parser.parse_args()
    Path(args.out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = make_pictures(Path(name))
        command = [sys.executable, "-m", "afterflow", "vote", str(folder), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
            assert server.stdout is not None
            address = next(word for line in server.stdout for word in line.split() if word.startswith("http"))
            time.sleep(1)
            browser = driver.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
            desk = browser.new_page(viewport={"width": 1280, "height": 800})
            phone = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
            errors: list[str] = []
            for page, file in ((desk, "desk.png"), (phone, "phone.png")):
                page.on("pageerror", lambda error: errors.append(str(error)))
                page.on("dialog", lambda dialog: errors.append(dialog.message))
                page.goto(address)
                wait(page, READY)
                page.screenshot(path=Path(args.out) / file)
            press_keys(desk, folder)
            tap(phone, folder)
            assert not errors and desk.title() == phone.title() == "Which picture is better?", errors
            browser.close()
            server.terminate()
    print(f"every key and tap did what it should; look at {args.out}/desk.png and {args.out}/phone.png")


def make_pictures(folder: Path) -> Path:
    """Write four pictures of each of two prompts, of which one is hostile."""
    rows = []
    for p, prompt in enumerate((HOSTILE, "two red circles")):
        for k in range(4):
            y, x = np.mgrid[:256, :256]
            Image.fromarray(np.stack([x, y, x * 0 + 60 * k], -1).astype(np.uint8)).save(folder / f"{p}{k}.png")
            rows.append({"file_name": f"{p}{k}.png", "text": prompt})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def wait(page: Page, condition: str) -> None:
    """Wait until an expression of the page is true; its policy allows no polling by the driver itself."""
    deadline = time.monotonic() + 10
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def lines(folder: Path) -> list[dict]:
    """Return the lines of the file of verdicts."""
    return [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]


def press_keys(page: Page, folder: Path) -> None:
    """Press each key once, and u after the last."""
    for number, (key, verdict) in enumerate(KEYS, 1):
        before = page.evaluate("pair.id")
        page.keyboard.press(key)
        wait(page, f"{READY} && pair.id !== '{before}'")
        assert len(lines(folder)) == number and lines(folder)[-1]["verdict"] == verdict, key
    page.keyboard.press("u")
    wait(page, READY)
    assert lines(folder)[-1]["undo"] == lines(folder)[-2]["id"]


def tap(page: Page, folder: Path) -> None:
    """Check that everything fits on a phone's screen, one picture above the other, and tap on the lower one."""
    boxes = [page.locator(selector).bounding_box() for selector in (".picture >> nth=0", ".picture >> nth=1", "nav")]
    first, second, buttons = (box for box in boxes if box is not None)
    assert first["y"] + first["height"] <= second["y"] and second["y"] + second["height"] <= buttons["y"]
    assert first["x"] == second["x"] and first["width"] > 350 and first["height"] > 250
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.documentElement.scrollHeight") <= 844
    page.locator("#right").tap()
    wait(page, "!acting")
    assert lines(folder)[-1]["verdict"] == "right" and lines(folder)[-1]["session"] != lines(folder)[0]["session"]


if __name__ == "__main__":
    main()
