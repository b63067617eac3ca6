"""The page on which people judge pairs: one page and two files beside it, which work without a network.

It answers at this machine alone and only below an address with a random token.  Texts of prompts travel as JSON and are
set as text, so that none of them is markup; pictures are decoded here and sent as PNG.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from ...system.errors import InputError, OutputError
from ...system.escapes import printable
from ...system.text_files import decode_text, parse_json
from ...system.verdicts import LEFT_WINS
from ..remote.local_page import PageGate, file_of_page, refusal
from .voting import NotShown, ShownPair, Voting

WEB = Path(__file__).parent / "web"
SESSION = re.compile(r"[0-9a-f]{16,64}")
MAX_BODY = 4096
"""Largest request of the page in bytes."""


def build_page(voting: Voting, token: str) -> FastAPI:
    """Return the service of the page below /TOKEN/, whose requests `web/page.js` makes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(PageGate, token=token, command="afterflow vote")

    @app.get(f"/{token}/{{name}}")
    async def file(name: str) -> Response:
        return file_of_page(WEB, name)

    @app.get(f"/{token}/")
    async def page() -> Response:
        return await file("")

    @app.get(f"/{token}/picture/{{shown}}/{{side}}")
    async def picture(shown: str, side: str) -> Response:
        png = encode_shown(voting, shown, side)
        return (
            refusal(404, "the picture is not shown now, or gone")
            if png is None
            else Response(png, 200, None, "image/png")
        )

    @app.post(f"/{token}/{{what}}")
    async def act(what: str, request: Request) -> Response:
        try:
            return JSONResponse(reply_to(voting, what, await read_fields(request)))
        except NotShown as error:
            return refusal(409, str(error))
        except InputError as error:
            return refusal(422, str(error))
        except OutputError as error:
            return refusal(507, str(error))

    return app


async def read_fields(request: Request) -> dict:
    """Return the JSON object of a request with its session.  InputError for anything else."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            raise InputError(f"a request of the page has at most {MAX_BODY} bytes")
    body = parse_json(decode_text(content, "the request"), "the request")
    if not isinstance(body, dict) or not isinstance(body.get("session"), str) or not SESSION.fullmatch(body["session"]):
        raise InputError("a request is an object with the session of its page")
    return body


def reply_to(voting: Voting, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Do what the page asks for and return what it shows then.  InputError for what is no request of it."""
    session = body["session"]
    if what == "leave":
        voting.leave(session)
        return {}
    if what == "vote":
        if not isinstance(body.get("pair"), str) or body.get("verdict") not in tuple(LEFT_WINS):
            raise InputError(f"a vote has the pair that is shown, and as verdict one of {', '.join(LEFT_WINS)}")
        voting.vote(session, body["pair"], body["verdict"])
    elif what == "undo":
        voting.undo(session)
    elif what != "next":
        raise InputError("the page asks for next, vote, undo or leave")
    shown = voting.show(session)
    return {"pair": None if shown is None else describe(shown), "undo": voting.can_undo(session), **voting.progress()}


def describe(shown: ShownPair) -> dict[str, str]:
    """Return a pair as the page gets it; signs that a reader would not see are written out."""
    return {"id": shown.id, "prompt": printable(shown.pair.prompt)}


def encode_shown(voting: Voting, shown: str, side: str) -> bytes | None:
    """Return a picture that a page shows, as PNG; None where no page shows it, or where it is gone."""
    pairs = [page.shown for page in voting.sessions.values() if page.shown is not None and page.shown.id == shown]
    if not pairs or side not in ("left", "right"):
        return None
    pixels = voting.pixels(getattr(pairs[0], side).path)
    if pixels is None:
        return None
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
