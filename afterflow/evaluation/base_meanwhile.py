"""The base's pictures of the suite `shapes`, drawn by a second process while a run trains on another core.

    python -m afterflow.evaluation.base_meanwhile '{"run": ..., "suite": ...}'

They land in the cache, where `base_pictures` looks for them.  A process that fails costs time alone: what is not
there is drawn later.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..experiment.config import Run
from ..experiment.serialization import from_json, to_json
from ..train.cpu_threads import cpu_threads
from .comparison import base_pictures, guided_settings
from .report import ShapesSettings

_log = logging.getLogger(__name__)


@contextmanager
def base_drawn_meanwhile(run: Run, settings: ShapesSettings) -> Iterator[None]:
    """Draw the pictures of a run's base while the block trains it, where the run leaves a core idle.

    The process is waited for at the end of the block, or ended with it where the block raises.
    """
    if run.distribution.threads is None or (os.cpu_count() or 1) <= run.distribution.threads:
        yield
        return
    request = json.dumps({"run": to_json(run), "suite": to_json(settings)})
    command, nowhere = [sys.executable, "-m", __name__, request], subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere) as drawer:
        try:
            yield
            code = drawer.wait()
        except BaseException:
            drawer.kill()
            raise
    if code != 0:
        _log.warning(f"the process that was to draw the base's pictures ended with {code}; they are drawn now")


def draw_requested_base() -> None:
    """Draw the base of the requested run as the training process will look for it, on as many threads."""
    request = json.loads(sys.argv[1])
    run, settings = from_json(Run, request["run"]), from_json(ShapesSettings, request["suite"])
    with cpu_threads(run.distribution.threads):
        base_pictures(run.model, guided_settings(run, settings))


if __name__ == "__main__":
    draw_requested_base()
