"""The base's pictures of the suite `shapes`, drawn by a second process while a run trains on another core.

    python -m afterflow.evaluation.base_meanwhile < run_and_suite.json

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
from dataclasses import replace

import torch

from ..experiment.config import Run
from ..experiment.serialization import from_json, to_json
from .comparison import base_pictures
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
    command = [sys.executable, "-m", __name__]
    request = json.dumps({"run": to_json(run), "suite": to_json(settings)}).encode()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as drawer:
        assert drawer.stdin is not None
        try:
            drawer.stdin.write(request)
            drawer.stdin.close()
            yield
        except BaseException:
            drawer.kill()
            raise
        if drawer.wait():
            _log.warning(f"the base's pictures are drawn now: who drew them meanwhile ended with {drawer.returncode}")


def draw_requested_base() -> None:
    """Draw the base of the run on stdin as the training process will look for it, on as many threads."""
    request = json.load(sys.stdin)
    run, settings = from_json(Run, request["run"]), from_json(ShapesSettings, request["suite"])
    if run.distribution.threads is not None:
        torch.set_num_threads(run.distribution.threads)
    base_pictures(run.model, replace(settings, guidance=run.batches.guidance_scale))


if __name__ == "__main__":
    draw_requested_base()
