"""What a page has to keep for every reader, checked in a browser: contrast, names, ids, headings, pictures, focus.

Contrast is that of WCAG 2: 4.5 for text, 3 for the mark of the focus.  Text that is drawn on pictures has an outline
instead.
"""

from pathlib import Path

from playwright.sync_api import Page

SCRIPT = Path(__file__).with_suffix(".js").read_text()
CONTRAST, FOCUS_CONTRAST = 4.5, 3.0
MOST_TABS = 400
"""Number of times that Tab is pressed, at most."""
SCHEMES = ("light", "dark")


def check_page(page: Page, where: str) -> None:
    """Check a page as it is shown now, in light and in dark; AssertionError names everything that is wrong."""
    faults = page.evaluate(f"{SCRIPT}.structure()")
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        faults += [f"{scheme}: {fault}" for fault in page.evaluate(f"{SCRIPT}.texts({CONTRAST})")]
    page.emulate_media(color_scheme="light")
    assert not faults, f"{where}:\n" + "\n".join(faults)


def check_focus(page: Page, where: str) -> None:
    """Check that Tab reaches every control, and that each shows that it has the focus, in light and in dark."""
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        page.evaluate("document.activeElement.blur()")
        reached = []
        for _ in range(MOST_TABS):
            page.keyboard.press("Tab")
            focused = page.evaluate(f"{SCRIPT}.focus({FOCUS_CONTRAST})")
            if focused is None:
                break
            reached.append(focused)
        unmarked = {name for name, is_marked in reached if not is_marked}
        assert not unmarked, f"{where}, {scheme}: nothing marks the focus of {sorted(unmarked)}"
        controls = page.evaluate(f"{SCRIPT}.controls()")
        assert len(reached) >= controls, f"{where}: Tab reaches {len(reached)} of {controls} controls"
    page.emulate_media(color_scheme="light")
