"""Signals at every moment of a run, and to commands that do not train."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from desk import HUP, INT, KILL, RUN, TERM, Desk, at, case, closed_reader, lora_digest, send
from terminal_streams import piped_words

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))


# Signals

MOMENTS = {"rollout": 2, "update": 2, "evaluation": 2, "metrics": 3, "checkpoint": 5, "picture": 2}
for number in (HUP, TERM):
    for moment, call in MOMENTS.items():

        @case(f"train ends, {number.name} at the {moment}")
        def _(desk: Desk, number=number, moment=moment, call=call) -> None:
            answer = desk.train(at(moment, call, send(number)))
            desk.ended(answer, 1, "go on with: afterflow train --resume runs/short")
            desk.check(f"{number.name}: finishing iteration" in answer.err, "no answer at once")
            desk.goes_on()

    @case(f"train ends, {number.name} before it begins")
    def _(desk: Desk, number=number) -> None:
        answer = desk.train(at("load", 1, send(number)))
        desk.ended(answer, 128 + number, f"afterflow: {number.name}: ended")
        desk.goes_on()

    @case(f"train ends, {number.name} while the LoRA is written")
    def _(desk: Desk, number=number) -> None:
        last = lambda: at("LoRA", 1, send(number), after=True)()
        answer = desk.train(at("result", 1, last))
        desk.ended(answer, 128 + number, f"afterflow: {number.name}: ended")
        desk.check(lora_digest() is None, "half a LoRA is there")
        desk.goes_on()


for moment, call in {"rollout": 2, "checkpoint": 5, "picture": 2, "result": 1}.items():

    @case(f"train goes on, SIGHUP at the {moment} under nohup")
    def _(desk: Desk, moment=moment, call=call) -> None:
        arm = lambda: (signal.signal(HUP, signal.SIG_IGN), at(moment, call, send(HUP))())
        desk.ended(desk.train(arm), 0)
        desk.is_whole()


@case("train goes on, SIGINT where it was ignored at the start, as in the background of a script")
def _(desk: Desk) -> None:
    arm = lambda: (signal.signal(INT, signal.SIG_IGN), at("update", 2, send(INT, 2))())
    desk.ended(desk.train(arm), 0)
    desk.is_whole()


for moment, call in {"rollout": 2, "update": 2, "evaluation": 2, "checkpoint": 5, "picture": 2}.items():

    @case(f"train ends after the iteration, Ctrl-C at the {moment}")
    def _(desk: Desk, moment=moment, call=call) -> None:
        answer = desk.train(at(moment, call, send(INT)))
        desk.ended(answer, 0, "Stopped after iteration")
        desk.check("and saving it; Ctrl-C again to stop now" in answer.err, "no answer at once")
        desk.check(lora_digest() != desk.expected, "it went on")  # that of the iterations which are done is there
        desk.goes_on()

    @case(f"train ends now, Ctrl-C twice at the {moment}")
    def _(desk: Desk, moment=moment, call=call) -> None:
        answer = desk.train(at(moment, call, send(INT, 2)))
        desk.ended(answer, 130, "afterflow: interrupted")
        desk.goes_on()


for moment, call in MOMENTS.items():

    @case(f"train killed at the {moment}")
    def _(desk: Desk, moment=moment, call=call) -> None:
        desk.ended(desk.train(at(moment, call, send(KILL))), -9)
        desk.goes_on()


@case("train killed while the LoRA is written")
def _(desk: Desk) -> None:
    answer = desk.train(at("result", 1, lambda: at("LoRA", 1, send(KILL), after=True)()))
    desk.ended(answer, -9)
    desk.check(lora_digest() is None, "half a LoRA is there")
    desk.goes_on()


@case("train killed while best/ is written")
def _(desk: Desk) -> None:
    answer = desk.train(at("LoRA", 1, send(KILL), after=True), (None, None, None), "--best-by", "jpeg_compressibility")
    desk.ended(answer, -9)
    desk.check(not (RUN / "best" / "lora").exists(), "half of best/ is there")


for number in (signal.SIGTSTP, signal.SIGSTOP):

    @case(f"train goes on, {number.name} for 8 seconds, which are not counted")
    def _(desk: Desk, number=number) -> None:
        began = time.monotonic()
        child = desk.start(["train", "--from", str(desk.record)], at("update", 3, send(number)))
        while os.waitpid(child, os.WNOHANG | os.WUNTRACED) == (0, 0):
            time.sleep(0.05)
        time.sleep(8)
        os.kill(child, signal.SIGCONT)
        desk.ended(desk.end(child, began), 0)
        desk.is_whole()
        seconds = json.loads((RUN / "metrics.jsonl").read_text().splitlines()[-1])
        desk.check(seconds["seconds_trained"] < 8 and seconds["seconds"] < 8, f"{seconds['seconds_trained']:.1f} s")


@case("train goes on, stopped and continued for a moment, ten times")
def _(desk: Desk) -> None:
    began = time.monotonic()
    child = desk.start(["train", "--from", str(desk.record)])
    for _ in range(10):
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.05)
        os.kill(child, signal.SIGCONT)
        time.sleep(0.1)
    desk.ended(desk.end(child, began), 0)
    desk.is_whole()


for number, code in {HUP: 129, TERM: 143, INT: 130}.items():

    @case(f"eval ends, {number.name} while it draws, and continues")
    def _(desk: Desk, number=number, code=code) -> None:
        words = piped_words(desk, "eval")
        answer = desk.run(*words, arm=at("drawing", 2, send(number)))
        desk.ended(answer, code, "whole")
        desk.check(Path("drawn/tuned/00000/metadata.jsonl").is_file(), "the first prompt is lost")
        desk.ended(desk.run(*words), 0)

    @case(f"doctor ends, {number.name} in the middle, and leaves nothing")
    def _(desk: Desk, number=number, code=code) -> None:
        desk.ended(desk.run("doctor", "short", arm=at("examining", 1, send(number))), code)
        desk.check(not Path("runs").exists(), "a folder stays")


for number in (HUP, TERM, INT):

    @case(f"serve-rewards ends in good order, {number.name}")
    def _(desk: Desk, number=number) -> None:
        began = time.monotonic()
        child = desk.start(["serve-rewards", "jpeg_compressibility", "--port", "0"])
        while "ready" not in Path(f"out.{child}").read_text() if Path(f"out.{child}").is_file() else True:
            time.sleep(0.1)
            if time.monotonic() - began > 60:
                break
        os.kill(child, number)
        desk.ended(desk.end(child, began, 80), 0)


@case("serve-rewards goes on, SIGHUP under nohup and no stdout")
def _(desk: Desk) -> None:
    began = time.monotonic()
    arm = lambda: signal.signal(HUP, signal.SIG_IGN)
    child = desk.start(["serve-rewards", "jpeg_compressibility", "--port", "0"], arm, (None, closed_reader(), None))
    time.sleep(5)
    os.kill(child, HUP)
    time.sleep(0.5)
    desk.check(os.waitpid(child, os.WNOHANG) == (0, 0), "it ended")
    os.kill(child, TERM)
    desk.ended(desk.end(child, began), 0)
