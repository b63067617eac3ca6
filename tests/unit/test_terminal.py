"""A terminal that closes, a disk that fills, a process that is stopped: what commands and runs do about them."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from afterflow.cli.main import guarded
from afterflow.experiment.metrics_file import MetricsFile
from afterflow.experiment.run_folder import read_lines
from afterflow.experiment.train_subprocess import training_processes
from afterflow.system import running_time
from afterflow.system.ended import TERMINATIONS, Ended, handlers, terminations_raised
from afterflow.system.errors import ConfigError, OutputError
from afterflow.system.folder_lock import check_unlocked, locked_folder
from afterflow.system.running_time import RunningTime
from afterflow.system.side_outputs import SideOutputs
from afterflow.system.streams import LastingStream, lasting_streams
from afterflow.train.clock import Clock
from afterflow.train.signals import interruptible

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and devices of POSIX")


class Refusing:
    """A stream that fails as the system does."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error, self.texts = error, []

    def write(self, text):
        if self.error is not None:
            raise self.error
        self.texts.append(text)

    def flush(self):
        self.write("")

    def isatty(self):
        return True


# Streams


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("I/O operation on closed file"),
    ],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_cannot_be_written_raises_nothing_and_is_told_once_on_the_other(monkeypatch, error, name):
    other = "stderr" if name == "stdout" else "stdout"
    broken, whole = Refusing(error), Refusing(None)
    monkeypatch.setattr(sys, name, broken)
    monkeypatch.setattr(sys, other, whole)
    with lasting_streams(announces=True):
        for _ in range(3):
            print("a line", file=getattr(sys, name), flush=True)
        assert getattr(sys, other).isatty()
    told = "".join(whole.texts)
    assert told.count(f"afterflow: {name} cannot be written ({getattr(error, 'strerror', None) or error})") == 1
    assert getattr(sys, name) is broken


def test_a_full_disk_is_written_again_when_it_has_room_and_a_closed_pipe_is_not():
    for code, texts in ((errno.ENOSPC, ["later"]), (errno.EPIPE, [])):
        stream = LastingStream(Refusing(OSError(code, "x")), "stdout")
        stream.write("lost")
        stream.stream.error = None
        stream.write("later")
        assert stream.stream.texts == texts and isinstance(stream.failure, OSError)


def test_letters_that_a_stream_does_not_know_are_replaced():
    import io

    raw = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(raw, "latin-1"), "stdout")
    stream.write("é 三\n")
    stream.flush()
    assert raw.getvalue() == "é ?\n".encode("latin-1") and stream.failure is None


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_files_that_are_closed_are_opened_so_that_no_file_is_printed_into(tmp_path, redirection):
    code = (
        "import os; from afterflow.cli.main import guarded; "
        "guarded(lambda: open('first', 'w').write(str(os.open('second', os.O_CREAT))) and None)"
    )
    subprocess.run(f'"{sys.executable}" -c "{code}" {redirection}', shell=True, cwd=tmp_path, timeout=60)
    assert int((tmp_path / "first").read_text()) > 3  # the first one has 3 at least


@pytest.mark.parametrize("prints_result, code", [(True, 141), (False, 0)])
def test_the_exit_code_tells_a_lost_result_and_no_lost_message(monkeypatch, capsys, prints_result, code):
    monkeypatch.setattr(sys, "stdout", Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    done = []

    def command():
        print("a line")
        done.append(True)

    assert guarded(command, prints_result) == code and done == [True]


# Signals


@pytest.mark.parametrize("number", TERMINATIONS)
def test_a_command_ends_in_one_line_and_unwinds(capsys, number):
    unwound = []

    def command():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            unwound.append(True)

    assert guarded(command) == 128 + number and unwound == [True]
    said = capsys.readouterr().err
    assert said == f"afterflow: {number.name}: ended; checkpoints and results that were written are whole\n"


OTHERS = [ImportError("half"), ValueError("x"), RuntimeError("x"), SystemExit(1), MemoryError(), OSError(5, "x")]


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("number", [signal.SIGINT, *TERMINATIONS])
def test_an_error_that_a_library_makes_of_a_signal_is_taken_for_the_signal(capsys, number, error):
    def command():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException:
            raise error from None  # as numpy does, half imported

    assert guarded(command) == 128 + number
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "checkpoints and results that were written are whole" in said


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(RuntimeError, match="ours"):
        guarded(lambda: (_ for _ in ()).throw(RuntimeError("ours")))


@pytest.fixture
def ignored():
    """SIGHUP and SIGINT are ignored, as under nohup and in the background of a script."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    yield list(before)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_that_were_ignored_at_the_start_stay_ignored(ignored):
    with terminations_raised(), interruptible(Clock(), 0.0, (), lambda: 0) as signals:
        for number in ignored:
            os.kill(os.getpid(), number)
        time.sleep(0.05)
    assert signals == [] and all(signal.getsignal(number) is signal.SIG_IGN for number in ignored)


def test_handlers_are_given_back(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Ended, match="SIGTERM"), terminations_raised():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # somebody handles it in C
    with handlers({signal.SIGTERM: lambda number, frame: None}) as taken:
        assert not taken


def test_ctrl_c_is_answered_at_once_and_a_second_one_stops_now(capsys):
    with (
        pytest.raises(KeyboardInterrupt),
        interruptible(Clock(), 0.0, (), lambda: 12) as signals,
    ):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert signals == [signal.SIGINT]
        said = capsys.readouterr().err
        assert said == "afterflow: finishing iteration 12 and saving it; Ctrl-C again to stop now\n"
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


@pytest.mark.parametrize("number", TERMINATIONS)
def test_a_closing_terminal_is_answered_as_a_machine_that_is_taken_away(capsys, number):
    with interruptible(Clock(), 60.0, (), lambda: 3) as signals:
        os.kill(os.getpid(), number)
        time.sleep(0.02)
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        time.sleep(0.2)
        os.kill(os.getpid(), number)  # another one gives no more time
        time.sleep(0.02)
        assert signals == [number] * 2 and signal.getitimer(signal.ITIMER_REAL)[0] < left - 0.15
    assert capsys.readouterr().err.count(f"afterflow: {number.name}: finishing iteration 3 and saving it") == 2


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="as Linux lists processes")
def test_a_chain_passes_signals_on_to_those_that_train_and_not_to_their_launcher():
    assert training_processes(os.getpid(), processes=1) == [os.getpid()]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        assert worker.pid in training_processes(os.getpid(), processes=2)
        assert training_processes(worker.pid, processes=2) == [worker.pid]  # it has started nobody yet
        worker.communicate(b"\n")


# Clocks


def test_a_stop_is_no_running_time_and_work_and_waiting_are(monkeypatch):
    now, computed = [100.0], [0.0]
    monkeypatch.setattr(running_time.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(running_time.time, "process_time", lambda: computed[0])
    clock = RunningTime()

    def pass_by(seconds, share):
        before, now[0], computed[0] = clock.seconds(), now[0] + seconds, computed[0] + share * seconds
        return clock.seconds() - before

    assert pass_by(3600.0, 0.0) == 3600.0  # nobody watches, so that nobody knows
    monkeypatch.setattr(running_time, "BEAT_SECONDS", 3600.0)  # the thread does not look
    with clock.watched():
        assert pass_by(3600.0, 0.001) == 0.0  # stopped
        assert pass_by(3600.0, 0.5) == 3600.0  # an extension that computes and lets no thread run
        assert pass_by(1.0, 0.0) == 1.0  # waiting


def test_the_wall_clock_decides_nothing(monkeypatch):
    times = iter(range(10**6, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    clock = Clock()
    with clock("rollout"):
        time.sleep(0.01)
    assert 0 < clock.read()["seconds/rollout"] < 5


# What may fail


class Anything(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(3), Anything("x"), OSError(28, "full", "a")])
def test_a_side_output_may_raise_anything_and_is_told_once_and_at_the_end(caplog, error):
    with caplog.at_level(logging.WARNING), SideOutputs() as side:
        for step in (3, 6, 9):
            with side.making("sample pictures", step):
                raise error
        assert len(caplog.messages) == 1 and caplog.messages[0].startswith("iteration 3: sample pictures failed: ")
    assert caplog.messages[1].startswith("not there: sample pictures of 3 iterations, 3 to 9 (")
    with pytest.raises(KeyboardInterrupt), SideOutputs() as side, side.making("pictures"):
        raise KeyboardInterrupt


def test_a_thread_of_a_library_that_fails_is_a_sentence(caplog, capsys):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    before = threading.excepthook
    with caplog.at_level(logging.WARNING), SideOutputs():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    assert "a thread of a library failed: OSError: " in caplog.messages[0] and capsys.readouterr().err == ""
    assert threading.excepthook is before


# metrics.jsonl


@pytest.fixture
def file(tmp_path):
    return MetricsFile(tmp_path / "metrics.jsonl", 0)


class Full:
    """A file that takes a few bytes more, and then no more until there is room."""

    def __init__(self, stream, room):
        self.stream, self.room = stream, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.stream.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name):
        return getattr(self.stream, name)


def test_lines_that_a_disk_refuses_are_kept_and_written_when_it_has_room(file, caplog):
    file.write(0, {"reward": 0.5})
    file.stream = Full(file.stream, room=7)
    with caplog.at_level(logging.WARNING):
        file.write(1, {"reward": 0.6})
        file.write(2, {"reward": 0.7})
    assert len(caplog.messages) == 1 and "metrics.jsonl cannot be written: No space left" in caplog.messages[0]
    assert isinstance(file.failure, OutputError) and file.file.read_text() == '{"step": 0, "reward": 0.5}\n'
    assert file.unwritten() == {"metrics.jsonl": '{"step": 1, "reward": 0.6}\n{"step": 2, "reward": 0.7}\n'}
    file.stream.room = 10**6
    file.write(3, {"reward": 0.8})
    assert [line["step"] for line in read_lines(file.file)] == [0, 1, 2, 3]
    assert file.failure is None and file.unwritten() == {}


def test_a_run_that_goes_on_has_the_lines_that_its_checkpoint_kept(file, tmp_path):
    file.write(0, {"reward": 0.5})
    file.write(1, {"reward": 0.6})
    file.close()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "metrics.jsonl").write_text('{"step": 2, "reward": 0.7}\n{"step": 3, "reward": 0.8}\n')
    resumed = MetricsFile(file.file, 4, tmp_path / "kept")
    assert [line["step"] for line in read_lines(file.file)] == [0, 1, 2, 3]
    assert resumed.before == {"step": 3, "reward": 0.8}


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.rename(path.with_name("moved"))])
def test_metrics_whose_file_is_gone_are_made_anew(file, caplog, harm):
    file.write(0, {"reward": 0.5})
    harm(file.file)
    with caplog.at_level(logging.WARNING):
        file.write(1, {"reward": 0.6})
    assert [line["step"] for line in read_lines(file.file)] == [0, 1]
    assert caplog.messages == [f"{file.file} is gone and is made anew"]


# Two at once


def test_a_held_folder_is_refused_without_a_trace_and_a_free_one_is_not(tmp_path):
    check_unlocked(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    with locked_folder(tmp_path / "run"):
        (tmp_path / "run" / "a").touch()
        with pytest.raises(ConfigError, match="in use by process"):
            check_unlocked(tmp_path / "run")
    check_unlocked(tmp_path / "run")
