"""Look at pages of `afterflow compare` and `afterflow report` in a real browser, on a desk and on a phone of 390 px.

pip install playwright            # its driver; the browser is the system's, such as Debian's package chromium
python bench/comparison_browser.py runs/compare/index.html --browser /usr/bin/chromium --out screenshots
"""

import argparse
from pathlib import Path

from page_checks import SCHEMES, check_focus, check_page
from playwright.sync_api import sync_playwright

SIZES = {"desk": (1280, 800), "phone": (390, 844)}
FIRST_SCREEN = ".answer, .first svg.plot, .first figcaption"
"""What a desk shows without scrolling."""
LOWEST = (
    "(names) => Math.max(...[...document.querySelectorAll(names)].map((one) => one.getBoundingClientRect().bottom))"
)


def main() -> None:
    """Look at each page; AssertionError where something of it cannot be read, reached or seen at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--out", default="screenshots", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        for file in args.pages:
            for size, (width, height) in SIZES.items():
                page, errors = browser.new_page(viewport={"width": width, "height": height}), []
                page.on("console", lambda message, errors=errors: errors.append(message.text))
                page.on("request", lambda request, errors=errors: errors.extend(elsewhere(request.url)))
                page.goto(file.resolve().as_uri())
                name = f"{file.resolve().parent.name}_{size}"
                check_page(page, name)
                check_focus(page, name)
                page.evaluate("scrollTo(0, 0)")
                foot = page.evaluate(LOWEST, FIRST_SCREEN)
                assert size == "phone" or foot <= height, f"{name}: the first screen ends at {foot:.0f} px"
                for scheme in SCHEMES:
                    page.emulate_media(color_scheme=scheme)
                    page.screenshot(path=args.out / f"{name}_{scheme}.png")
                page.emulate_media(color_scheme="light")
                page.screenshot(path=args.out / f"{name}_whole.png", full_page=True)
                assert not errors, errors
                page.close()
        browser.close()
    print(f"every page can be read and reached; look at the pictures in {args.out}")


def elsewhere(address: str) -> list[str]:
    """Return an address that a page loads and that is neither the page nor in it."""
    return [] if address.startswith(("file:", "data:")) else [address]


if __name__ == "__main__":
    main()
