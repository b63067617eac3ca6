"""Windows and macOS, as far as they can be simulated: no alarms, no flushing of folders, no encoding but our own."""

import ast
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from afterflow.system import atomic_files
from afterflow.system.atomic_files import write_text_atomically
from afterflow.train.clock import Clock
from afterflow.train.signals import Preempted, interruptible

PACKAGE = Path(__file__).parents[2] / "afterflow"
TEXT = {"read_text", "write_text", "open", "fdopen"}


def unencoded(tree):
    """The lines on which a text is read or written in whatever encoding a system prefers."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        words = {keyword.arg for keyword in node.keywords}
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        binary = any("b" in mode for mode in modes if len(mode) <= 3) or "mode" in words
        own = isinstance(node.func, ast.Name) and name != "open"  # read_text of ours
        if (
            name in TEXT
            and not own
            and "encoding" not in words
            and not binary
            and owner not in ("os", "Image", "tarfile")
        ):
            yield node.lineno


def test_every_text_is_read_and_written_in_an_encoding_of_ours():
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    trees = {file.relative_to(PACKAGE): ast.parse(file.read_text("utf-8")) for file in files}
    lines = [f"{file}:{n}" for file, tree in trees.items() for n in unencoded(tree)]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("source, count", [("p.read_text()", 1), ("open(p, 'w')", 1), ("p.open('rb')", 0)])
def test_a_text_without_encoding_is_seen(source, count):
    assert len(list(unencoded(ast.parse(source)))) == count


def test_a_console_that_knows_few_letters_gets_the_others_replaced():
    few = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code = "import sys; from afterflow.cli.main import main; sys.argv[1:] = []; sys.exit(main(['train', 'né→']))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, env=few)
    assert ended.returncode == 2 and ended.stderr.startswith(b"afterflow: no recipe is called")
    assert ended.stderr.count(b"\n") == 1


def test_a_folder_is_not_flushed_where_that_cannot_be(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(atomic_files.sys, "platform", "win32")
    monkeypatch.setattr(atomic_files.os, "fsync", flushed.append)

    def opened(path, flags, *mode):
        assert not Path(path).is_dir() and flags & os.O_RDWR  # what Windows allows
        return real(path, flags, *mode)

    real = os.open
    monkeypatch.setattr(atomic_files.os, "open", opened)
    write_text_atomically(tmp_path / "a", "é\n")
    assert len(flushed) == 1 and (tmp_path / "a").read_bytes() == "é\n".encode()


def test_without_alarms_sigterm_waits_for_the_iteration_and_stops_after_it(monkeypatch):
    for name in ("SIGALRM", "setitimer", "ITIMER_REAL"):
        monkeypatch.delattr(signal, name)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with interruptible(Clock(), 0.0, ("rollout",), lambda: 0) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert signals == [signal.SIGTERM]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no alarms on Windows")
def test_with_alarms_the_grace_ends_a_stage(monkeypatch):
    clock = Clock()
    with pytest.raises(Preempted), interruptible(clock, 0.0, ("rollout",), lambda: 0), clock("rollout"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)


def test_a_thread_that_may_not_handle_signals_trains_without(caplog):
    seen = []

    def work():
        with interruptible(Clock(), 0.0, (), lambda: 0) as signals:
            seen.append(signals)

    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [[]] and "not the main thread" in caplog.text
