"""What a page of this machine is behind: a token in its address, no other host and no other page, and its headers."""

import hmac
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from ...system.page_style import with_palette
from .gate import Message, Receive, Send, is_this_machine

STYLE = "page.css"
"""The style of a page, which is served after the palette."""
FILES = {"": ("page.html", "text/html"), "page.js": ("page.js", "text/javascript"), STYLE: (STYLE, "text/css")}
"""Path below the token → the file of a page and its type."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Headers of every answer: nothing is loaded from elsewhere, embedded elsewhere or kept."""


class PageGate:
    """Lets in requests that know the token, name this machine and come from the page itself; adds the headers."""

    def __init__(self, app: Any, token: str, command: str) -> None:
        self.app, self.token, self.command = app, token, command

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        reason = self.refusal(scope["path"], dict(scope["headers"]))
        app = self.app if reason is None else refusal(403, reason)
        await app(scope, receive, send_with_headers)

    def refusal(self, path: str, headers: Mapping[bytes, bytes]) -> str | None:
        """Return why a request is refused; None where it is let in."""
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_this_machine(host):
            return "this page answers at 127.0.0.1 or localhost alone"
        if not hmac.compare_digest(path.removeprefix("/").partition("/")[0].encode(), self.token.encode()):
            return f"open the whole address that {self.command} has printed"
        if headers.get(b"origin", f"http://{host}".encode()) != f"http://{host}".encode():
            return "this page answers to no other page"
        return None


def refusal(status: int, reason: str) -> JSONResponse:
    """Return an answer that says why there is no other."""
    return JSONResponse({"error": reason}, HTTPStatus(status))


def file_of_page(web: Path, name: str) -> Response:
    """Return a file of a page from the folder `web`, or the answer that there is none of that name."""
    if name not in FILES:
        return refusal(404, "no such page")
    path, kind = FILES[name]
    content = with_palette(web / path).encode() if name == STYLE else (web / path).read_bytes()
    return Response(content, media_type=kind)
