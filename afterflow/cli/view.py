"""afterflow view: a local page over the folders of runs."""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ..system.errors import ConfigError, InputError
from ..system.optional_dependencies import check_extra
from ..view.answers import Answers
from ..view.run_reader import check_run_folder, runs_below
from .output import print_progress
from .parsing import parse_options

_log = logging.getLogger(__name__)


def view_command(args: Sequence[str]) -> None:
    """Show runs on a local page: progress, curves, pictures at every stage, groups."""
    parse_options(View, args, "afterflow view")()


@dataclass(frozen=True)
class View:
    """Show runs on a page of this machine, while they train and after.  The page only reads.

    Keys are the arrows for the stage of training, j and k for prompts, o for what the verifier saw, and 1 to 4 for the
    views.  ? shows all keys.
    """

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs, as runs/NAME.  None: all that are in runs/, and those that are started there meanwhile."""
    html: str | None = None
    """Write one run to this file, which holds the page and its pictures, and serve nothing."""
    port: int = 8300
    """Port of the page at 127.0.0.1."""

    def __call__(self) -> None:
        runs = [check_run_folder(Path(path)) for path in self.runs]
        if self.html is not None:
            self.write(runs, Path(self.html))
            return
        check_extra("the page", ["fastapi", "uvicorn"], "serve")
        from ..rewards.remote.connections import bind, run_service
        from ..rewards.remote.limits import ServiceLimits
        from ..view.service import build_view

        below = None if runs else Path("runs")
        if below is not None and not runs_below(below):
            raise InputError("no run is in runs/; afterflow recipes lists what to train")
        with bind("127.0.0.1", self.port) as listener:
            token = secrets.token_urlsafe(24)
            app = build_view(Answers(runs, below), token)
            port = listener.getsockname()[1]
            _log.info(f"open http://127.0.0.1:{port}/{token}/ in a browser of this machine; Ctrl-C ends")
            run_service(app, listener, ServiceLimits())

    def write(self, runs: Sequence[Path], file: Path) -> None:
        """Write one run to a file of its own.  ConfigError where not one run is named."""
        from ..view.report_file import write_report_file

        if len(runs) != 1:
            raise ConfigError("--html writes one run to a file; name that run")
        write_report_file(runs[0], file)
        print_progress(f"{file} holds the page of {runs[0]} and its pictures; open it in a browser")
