"""What pages of afterflow share: one palette, and the policy that lets in a page's own style and script alone."""

import base64
import hashlib
from pathlib import Path

PALETTE_FILE = Path(__file__).with_name("palette.css")
"""The colours of every page, as variables, on a light and on a dark ground."""


def with_palette(style: Path) -> str:
    """Return the style of a page, from its file, after the palette."""
    return PALETTE_FILE.read_text(encoding="utf-8") + style.read_text(encoding="utf-8")


def policy_digest(text: str) -> str:
    """Return the digest by which a policy lets in a block with this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
