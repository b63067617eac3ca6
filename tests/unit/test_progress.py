"""The line that shows how far a run is: what it says, and how it behaves on a terminal, in a notebook and in a file."""

import io
import json
import logging
import math
import os
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
from rich.cells import cell_len

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.sft import SFT
from afterflow.data.images import ShapesImages
from afterflow.data.pairs import PairFolder
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment import progress_display
from afterflow.experiment.monitor import items_of_iteration
from afterflow.experiment.progress import ARROWS, RunProgress, held_out_reward, main_trend, progress_words, time_beside
from afterflow.experiment.progress_display import Progress, arrows_of
from afterflow.system.messages import show_messages
from afterflow.system.side_outputs import SideOutputs
from afterflow.system.streams import LastingStream, lasting_streams
from afterflow.train.budget import Budget


def lines_of(rewards, **more):
    """Lines of metrics with these rewards, of iterations that take two seconds, or three with what is beside."""
    return [
        {
            "step": i,
            "reward": reward,
            "reward/strict": reward,
            "seconds": 3.0 * (i + 1),
            "seconds_trained": 2.0 * (i + 1),
        }
        | {name: values[i] for name, values in more.items() if values[i] is not None}
        for i, reward in enumerate(rewards)
    ]


def words_of(lines, budget, arrows=ARROWS, width=None, name="it"):
    budget.used = lines[-1]["seconds_trained"] if lines else 0.0
    return progress_words(name, RunProgress(budget, lines, (24, "images")).parts(arrows), width)


# What it says

RISING = lines_of([0.1] * 4 + [0.5] * 4, **{"eval/strict": [0.2, *[None] * 7], "eval/closed": [0.3, *[None] * 7]})
WHOLE = (
    "it: iteration 8 of 10 (80%), about 6 s to go, reward 0.5 ↑ (before 0.1), closed 0.3 held out, 2 s an iteration, "
    "12 images/s"
)


def test_the_line_says_position_time_reward_with_its_trend_held_out_reward_and_pace():
    assert words_of(RISING, Budget(10)) == WHOLE


def test_before_the_first_iteration_it_says_where_it_is():
    assert words_of([], Budget(10)) == "it: iteration 0 of 10 (0%)"


def test_one_iteration_alone_has_a_reward_and_no_trend():
    assert words_of(lines_of([0.25]), Budget(1)).startswith(
        "it: iteration 1 of 1 (100%), about 0 s to go, reward 0.25, "
    )


def test_a_budget_of_seconds_is_what_is_left_of_it():
    line = words_of(RISING, Budget(10**6, 116.0))
    assert line.startswith("it: iteration 8 (14%), about 2 min to go, reward")  # 100 s of training take 150
    assert words_of(RISING, Budget(10**6, 116.0), width=30) == "8, 2 min to go, reward 0.5 ↑"


@pytest.mark.parametrize(
    "rewards, value, before, direction",
    [
        ([0.1, 0.1, 0.3, 0.3], 0.3, 0.1, "up"),
        ([0.3, 0.3, 0.1, 0.1], 0.1, 0.3, "down"),
        ([0.2, 0.2, 0.2, 0.2], 0.2, 0.2, "flat"),
        ([0.0, 1.0, 0.1, 1.0], 0.55, 0.5, "flat"),
        ([0.9] + [0.1] * 20 + [0.4] * 20, 0.4, 0.1, "up"),
        ([math.nan, 0.1, 0.1, math.nan, 0.3, math.inf, 0.3], 0.3, 0.1, "up"),
        ([0.1, 0.2, 0.3], 0.3, None, "flat"),
    ],
)
def test_the_trend_is_the_mean_of_the_last_iterations_against_those_before(rewards, value, before, direction):
    trend = main_trend(lines_of(rewards))
    assert trend.value == pytest.approx(value) and trend.direction == direction
    assert trend.before == (before if before is None else pytest.approx(before))


@pytest.mark.parametrize("rewards", [[math.nan], [0.1] * 8 + [math.nan], [math.nan] * 9])
def test_a_reward_that_is_no_number_is_said_and_has_no_trend(rewards):
    line = words_of(lines_of(rewards), Budget(10))
    assert "reward nan, " in line and not any(arrow in line for arrow in ARROWS.values())


def test_a_method_without_reward_has_its_loss():
    lines = [{"step": 0, "flow_matching": 0.5, "seconds": 1.0, "seconds_trained": 1.0}]
    assert "flow_matching 0.5" in words_of(lines, Budget(10))
    assert "reward" not in words_of([{"step": 0, "seconds": 1.0, "seconds_trained": 1.0}], Budget(10))


def test_the_held_out_reward_is_the_first_that_is_not_trained_at_its_last_measurement():
    lines = lines_of([0, 0, 0], **{"eval/strict": [1, 2, None], "eval/std": [9, 9, None], "eval/clean": [3, 4, None]})
    assert held_out_reward(lines) == ("clean", 4)
    assert held_out_reward([{name: line[name] for name in line if name != "eval/clean"} for line in lines]) == (
        "strict",
        2,
    )
    assert held_out_reward(lines_of([0.0])) is None


def test_names_of_rewards_steer_no_terminal():
    assert "\\x1b[2J 1 held out" in words_of([{**lines_of([0.1])[0], "eval/\x1b[2J\n": 1.0}], Budget(10))


def test_what_is_beside_training_is_counted_since_the_run_was_resumed():
    lines = lines_of([0] * 6)
    assert time_beside(lines) == 1.5 and time_beside(lines[:1]) == 1.0
    resumed = [*lines[:3], *({**line, "seconds": line["seconds_trained"] * 2} for line in lines[3:])]
    resumed[2] = {**resumed[2], "seconds": 1000.0}
    assert time_beside(resumed) == 2.0
    # The first line and the last ones are kept; of the first, seconds are few as well.
    late = [{"seconds": 900 + 2.0 * i, "seconds_trained": 1000 + 1.0 * i} for i in range(20)]
    assert time_beside([lines[0], *late]) == 2.0


def test_the_longest_pause_is_that_of_a_measurement_or_of_pictures():
    lines = lines_of([0] * 4)
    assert RunProgress(Budget(10), lines).longest_pause == 1.0
    assert RunProgress(Budget(10), [{**lines[0], "seconds": 90.0}, *lines[2:]]).longest_pause == 88.0
    assert RunProgress(Budget(10), [*lines[1:3], {**lines[3], "seconds/eval": 70.0}]).longest_pause == 70.0
    later = [{**line, "seconds": line["seconds"] + 50} for line in lines[2:]]
    assert RunProgress(Budget(10), [*lines[:2], *later]).longest_pause == 51.0
    assert RunProgress(Budget(10), [lines[0], *later]).longest_pause == 1.0, "what is between is not known"


def test_a_line_fits_and_says_more_where_there_is_more_room():
    lines = [words_of(RISING, Budget(10), width=width, name="日本") for width in range(1, 140)]
    for width, line in enumerate(lines, 1):
        assert cell_len(line) <= max(width, len("8/10")) and "8/10" in line.replace(" of ", "/")
    lengths = [cell_len(line) for line in lines]
    assert lengths == sorted(lengths) and len(set(lines)) == 8


def test_words_stand_for_arrows_where_there_are_none():
    for encoding, knows in (
        ("utf-8", True),
        ("ascii", False),
        ("cp437", False),
        ("latin-1", False),
        ("nonsense", False),
    ):
        arrows = arrows_of(SimpleNamespace(encoding=encoding))
        line = words_of(RISING, Budget(10), arrows)
        assert ("↑" in line) == knows and ("reward 0.5 up (before 0.1)" in line) != knows
        assert knows or line.isascii()
    assert arrows_of(SimpleNamespace(encoding=None)) != ARROWS and arrows_of(object()) != ARROWS


@pytest.mark.parametrize(
    "algorithm, data, shape, items",
    [
        (FlowGRPO({"ocr": 1.0}, group=6), ShapesPrompts(), (4, 8, 8), (18, "images")),
        (BranchGRPO({"ocr": 1.0}, steps=8, splits=(0, 2, 4)), ShapesPrompts(), (4, 3, 8, 8), (3 * 8, "clips")),
        (SFT(), ShapesImages(), (4, 8, 8), (3, "images")),
        (DPO(), PairFolder("pairs"), (4, 8, 8), (3, "pairs")),
    ],
)
def test_an_iteration_has_as_many_images_as_it_draws_or_learns_from(algorithm, data, shape, items):
    run = SimpleNamespace(batches=SimpleNamespace(batch=3), data=data, seed=0)
    model = SimpleNamespace(latent_shape=shape)
    assert items_of_iteration(SimpleNamespace(run=run, model=model, algorithm=algorithm)) == items


# Where it is shown


class Screen:
    """A terminal without escape codes: carriage returns, line feeds and letters, in so many columns."""

    def __init__(self, columns):
        self.rows, self.column, self.columns, self.text = [""], 0, columns, ""

    def feed(self, text):
        self.text += text
        for char in text.replace("\r\n", "\n"):
            assert char in "\r\n" or char.isprintable(), f"a console without ANSI would show {char!r}"
            if char == "\n":
                self.rows.append("")
            if char in "\r\n":
                self.column = 0
                continue
            if self.column == self.columns:
                self.rows.append("")
                self.column = 0
            row = self.rows[-1].ljust(self.column)
            self.rows[-1] = row[: self.column] + char + row[self.column + 1 :]
            self.column += 1

    def shows(self):
        return [row.rstrip() for row in self.rows]


class Console(io.StringIO):
    """A stream that is a terminal."""

    encoding = "utf-8"

    def __init__(self, screen):
        super().__init__()
        self.screen = screen

    def write(self, text):
        self.screen.feed(text)
        return len(text)

    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 80 columns on which every state is shown."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress_display.TerminalDisplay, "seconds_between", 0.0)
    return Screen(80)


@contextmanager
def printing(stdout=None, stderr=None):
    """Let stdout and stderr be these streams, or screens, inside the block; None: what they are."""
    before = sys.stdout, sys.stderr
    streams = [Console(stream) if isinstance(stream, Screen) else stream for stream in (stdout, stderr)]
    sys.stdout, sys.stderr = (stream or old for stream, old in zip(streams, before))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def shown(budget, name="it", **options):
    """The progress of a run in the block, with its side outputs."""
    streams, outputs = lasting_streams(announces=False), SideOutputs()
    with streams, outputs as side, Progress(name, budget, side, (24, "images"), **options) as progress:
        yield progress


def train(rewards=(0.1, 0.1, 0.5, 0.5), each=lambda step: None, **options):
    """Show a run with these rewards; `each` is called after each iteration."""
    with shown(Budget(len(rewards)), **options) as progress:
        for step, line in enumerate(lines_of(rewards)):
            progress.budget.used = line["seconds_trained"]
            progress.show(step, line)
            each(step)
    return progress.side


def train_on(screen, **options):
    """The same on a screen that is stdout and stderr."""
    with printing(screen, screen):
        train(**options)


def test_a_terminal_has_one_line_that_is_written_again(screen):
    train_on(screen)
    assert screen.shows() == ["it: 4/4, 0 s to go, reward 0.5 ↑, 12 images/s", ""]
    assert [part.split(",")[0].rstrip() for part in screen.text.split("\r")[1:]] == [
        "it: iteration 0 of 4 (0%)",
        *(f"it: {i}/4" if i > 3 else f"it: iteration {i} of 4 ({25 * i}%)" for i in (1, 2, 3, 4)),
    ]


@pytest.mark.parametrize("columns", [4, 9, 20, 40, 80, 200])
def test_a_terminal_of_any_width_has_one_line(screen, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    screen.columns = columns
    train_on(screen)
    assert len(screen.shows()) == 2 and screen.shows()[0].strip("it: ")[:1] == ("4" if columns < 90 else "e")


def test_what_others_print_stands_above_the_line(screen):
    def each(step):
        if step == 1:
            print("a message", file=sys.stderr)
            print("half a ", end="")
        if step == 2:
            print("line")

    train_on(screen, each=each)
    assert screen.shows() == ["a message", "half a line", "it: 4/4, 0 s to go, reward 0.5 ↑, 12 images/s", ""]


def test_what_goes_to_a_file_stays_out_of_the_terminal(screen, tmp_path):
    with (tmp_path / "err").open("w") as file, printing(screen, file):
        train(each=lambda step: print("a warning", file=sys.stderr))
    assert screen.shows()[1:] == [""] and screen.text.count("\r") == 1 + 4
    assert (tmp_path / "err").read_text() == "a warning\n" * 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_error_leaves_the_terminal_on_a_new_line(screen, error):
    def each(step):
        if step == 1:
            sys.stdout.stream.write("^C")  # as a terminal prints it where the cursor is
            raise error

    with printing(screen, screen):
        with pytest.raises(error):
            train(each=each)
        print("afterflow: interrupted")
    assert screen.shows()[-2:] == ["afterflow: interrupted", ""] and len(screen.shows()) == 3


def test_ctrl_c_is_answered_on_a_line_of_its_own(screen):
    def each(step):
        if step == 1:
            sys.stdout.stream.write("^C")
            print("afterflow: finishing", file=sys.stderr)

    train_on(screen, each=each)
    assert screen.shows()[0] == "afterflow: finishing" and screen.shows()[1].startswith("it: 4/4")


@pytest.mark.parametrize("messages", [0, 1])
def test_a_terminal_that_shrinks_gets_no_line_that_is_too_long(screen, monkeypatch, messages):
    monkeypatch.setenv("COLUMNS", "120")
    screen.columns = 120

    def each(step):
        if step == 1:
            monkeypatch.setenv("COLUMNS", "30")
            before = len(screen.rows)
            screen.columns, screen.rows[-1], screen.column = 30, "", 0  # what it had wrapped is above
            each.rows = before
            print("a message\n" * messages, end="")

    train_on(screen, each=each)
    assert len(screen.rows) == each.rows + messages + 1


def test_quick_iterations_are_not_all_shown_and_the_last_is(screen, monkeypatch):
    monkeypatch.setattr(progress_display.TerminalDisplay, "seconds_between", 60.0)
    train_on(screen, rewards=[0.1] * 500)
    assert screen.text.count("\r") == 2 and "500/500" in screen.shows()[0]


def test_a_pseudo_terminal_gets_the_line_without_codes_and_colours(monkeypatch):
    if sys.platform == "win32":
        pytest.skip("pseudo terminals of POSIX")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    primary, secondary = os.openpty()
    texts = {}
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        with open(os.dup(secondary), "w", encoding="utf-8") as terminal, printing(terminal):
            train()
        texts[no_color] = b""
        while not texts[no_color].endswith(b"\n"):
            texts[no_color] += os.read(primary, 10_000)
    os.close(primary)
    os.close(secondary)
    screen = Screen(60)
    screen.feed(texts[False].decode())
    assert screen.shows() == ["it: 4/4, 0 s to go, reward 0.5 ↑, 12 images/s", ""]
    assert texts[True] == texts[False]


@pytest.fixture
def log(caplog):
    caplog.set_level("INFO", "afterflow")
    return lambda: [line for line in caplog.messages if line.startswith("it: ")]


def test_a_file_has_one_line_for_each_iteration(log, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("afterflow"), "handlers", [])  # no later test finds the one that prints
    show_messages()
    train()
    assert [line.split(",")[0] for line in log()] == [f"it: iteration {i} of 4 ({25 * i}%)" for i in (1, 2, 3, 4)]
    assert "reward 0.5 ↑ (before 0.1)" in log()[-1] and log()[-1].endswith("2 s an iteration, 12 images/s")
    assert capsys.readouterr().out.splitlines() == log()


def test_a_file_in_ascii_gets_words(log):
    with printing(io.TextIOWrapper(io.BytesIO(), encoding="ascii")):
        train()
    assert "reward 0.5 up (before 0.1)" in log()[-1]


def test_processes_but_the_first_show_nothing(screen, log):
    train_on(screen, shows=False)
    assert screen.text == "" and log() == []


def test_a_resumed_run_knows_what_was_before(screen):
    earlier = lines_of([0.1] * 60, **{"eval/clean": [0.5, *[None] * 59]})
    with printing(screen), shown(Budget(80, used=120.0), earlier=earlier) as progress:
        progress.show(60, {"reward": 0.1, "reward/strict": 0.1, "seconds": 3.0, "seconds_trained": 122.0})
    assert screen.shows()[0] == "it: 61/80, 38 s to go, reward 0.1 →, clean 0.5 held out, 12 images/s"


def test_a_long_run_keeps_few_lines_and_the_last_measurement():
    with SideOutputs() as side:
        progress = Progress("it", Budget(10**6), side, (24, "images"), shows=False)
        for line in lines_of([0.1] * 1000, **{"eval/clean": [i if i in (3, 500) else None for i in range(1000)]}):
            progress.show(line["step"], line)
    assert len(progress.lines) < 100 and progress.lines[0]["step"] == 0
    assert held_out_reward(progress.lines) == ("clean", 500)


class Handle:
    def __init__(self):
        self.shown = []

    def update(self, content, raw):
        assert raw is True
        self.shown.append(content)


@pytest.fixture
def notebook(monkeypatch):
    """IPython of a kernel, as far as it is used: what each output of a cell has shown, in order."""
    outputs = []

    def display(content, raw, display_id):
        assert raw is True and display_id is True
        handle = Handle()
        outputs.append(handle.shown)
        handle.update(content, raw)
        return handle

    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return ipython, outputs


def test_a_notebook_has_one_output_that_is_updated(notebook, screen, log):
    _, outputs = notebook
    train_on(screen, rewards=[0.5] * 300)
    (shown,) = outputs
    assert len(shown) < 20, "it is not flooded"
    assert shown[0]["text/plain"] == "it: iteration 0 of 300 (0%)"
    assert shown[-1]["text/plain"].startswith(
        "it: iteration 300 of 300 (100%), about 0 s to go, reward 0.5 → (before 0.5)"
    )
    assert shown[-1]["text/html"].startswith('<progress value="1.0000" max="1"></progress> it: iteration 300')
    assert screen.text == "" and log() == [] and json.dumps(shown)


def test_a_notebook_shows_names_as_text(notebook):
    with shown(Budget(1), name="<b>\x1b[31m&</b>"):
        pass
    assert "&lt;b&gt;\\x1b[31m&amp;&lt;/b&gt;:" in notebook[1][0][0]["text/html"]


def test_a_notebook_that_fails_ends_nothing(notebook, caplog):
    sys.modules["IPython.display"].display = lambda *args, **options: 1 / 0
    side = train()
    assert list(side.missing) == ["the progress line"] and caplog.text.count("the progress line failed") == 1


def test_ipython_in_a_terminal_has_the_line_of_a_terminal(notebook, screen):
    notebook[0].get_ipython = lambda: SimpleNamespace()
    train_on(screen)
    assert notebook[1] == [] and screen.shows()[0].startswith("it: 4/4")


def test_a_stream_that_is_no_lasting_one_has_a_line_too(screen):
    with printing(screen), SideOutputs() as side, Progress("it", Budget(1), side, (24, "images")):
        assert not isinstance(sys.stdout, LastingStream)
    assert screen.shows() == ["it: iteration 0 of 1 (0%)", ""]
