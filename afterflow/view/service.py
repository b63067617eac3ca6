"""The local page of runs: it only reads, and answers at this machine alone, below an address with a random token."""

import json

from fastapi import FastAPI, Request, Response

from ..experiment.run_folder import PICTURE_SUFFIXES
from ..rewards.remote.local_page import FILES, PageGate, file_of_page, refusal
from ..system.errors import InputError
from ..system.escapes import printable
from .answers import Answers
from .report_file import PAGE_FOLDER

ICON = "icon.svg"
"""The sign of the page in a browser's tab."""
MOST_NAMES = 64
"""Number of curves that one request names, at most."""


def build_view(answers: Answers, token: str) -> FastAPI:
    """Return the service of the page below /TOKEN/, whose requests `web/page.js` makes; it takes nothing but GET."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(PageGate, token=token, command="afterflow view")

    @app.get(f"/{token}/picture/{{index}}/{{set_name}}/{{step}}/{{file}}")
    def picture(index: str, set_name: str, step: str, file: str) -> Response:
        path = answers.picture(index, set_name, step, file)
        if path is None:
            return refusal(404, "there is no such picture")
        try:
            content = path.read_bytes()
        except OSError as error:
            return refusal(422, printable(str(error)))
        return Response(content, 200, None, PICTURE_SUFFIXES[path.suffix][1])

    @app.get(f"/{token}/{{path:path}}")
    def answer(path: str, request: Request) -> Response:
        if path == ICON:
            return Response((PAGE_FOLDER / ICON).read_bytes(), 200, None, "image/svg+xml")
        if path in FILES:
            return file_of_page(PAGE_FOLDER, path)
        names = request.query_params.getlist("name")[:MOST_NAMES]
        try:
            content = answers.answer(path, names)
        except (InputError, OSError) as error:
            return refusal(422, printable(str(error)))
        if content is None:
            return refusal(404, "there is no such run, set or step")
        return Response(json.dumps(content), 200, None, "application/json")

    return app
