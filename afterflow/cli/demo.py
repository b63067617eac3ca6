"""Post-train the shipped pipeline on this machine, then judge it on prompts it never saw.

python -m afterflow.cli.demo
"""

import sys

from ..system.slow_import import announced_import
from .main import guarded


def demo_command() -> None:
    """Run the demo; what it imports takes seconds, in which Ctrl-C is answered as later."""
    with announced_import("demo"):
        from .demo_run import run_demo

    run_demo()


if __name__ == "__main__":
    sys.exit(guarded(demo_command, prints_result=False))
