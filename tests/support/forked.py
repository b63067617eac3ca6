"""Processes forked from this one, which has imported what takes a new one ten seconds to import.

Tests about starting, importing, signals and the console start a process of Python instead.
"""

import os
import sys
from multiprocessing import get_context

import psutil


class Forked:
    """A process that runs a function, and ends with the exit code it returns or with a traceback and 1."""

    def __init__(self, function, *arguments):
        self.process = get_context("fork").Process(target=lambda: sys.exit(in_one_thread(function, *arguments)))
        self.process.start()

    def wait(self, timeout=None):
        """Return the exit code; a process that has not ended in time is killed, with those that it has started."""
        self.process.join(timeout)
        if self.process.is_alive():
            process = psutil.Process(self.process.pid)
            # Stopped first: it would start further ones, or end as if nothing had been once they are killed.
            process.suspend()
            for started in process.children(recursive=True):
                started.kill()
        self.process.kill()
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)


def in_one_thread(function, *arguments):
    """Call a function in a forked process, where torch stays on one thread whatever a run asks for.

    Where this process has once computed with several, a second thread of its child would wait for them for ever.
    """
    import torch

    torch.set_num_threads(1)
    torch.set_num_threads = lambda count: None
    return function(*arguments)


def forked_command(command, env):
    """Stand in for subprocess.Popen where that starts `python -m afterflow WORDS`."""
    from afterflow.cli.main import main

    assert command[:3] == [sys.executable, "-m", "afterflow"], command

    def started():
        os.environ.clear()
        os.environ.update(env)
        return main(command[3:])

    return Forked(started)
