"""The page on which people judge: who may open it, what it shows, what it stores, and a run that waits for it."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from afterflow.algorithms.base import Comparisons
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.cli.main import main
from afterflow.cli.train import overridden
from afterflow.cli.vote import Vote
from afterflow.data.prompts import ShapesPrompts
from afterflow.data.verdict_pairs import read_verdicts
from afterflow.evaluation.image_store import add_images
from afterflow.experiment.config import Run
from afterflow.experiment.doctor import check_judge
from afterflow.experiment.execute import execute
from afterflow.experiment.prompt_checks import prompt_records
from afterflow.experiment.prompt_encoder import encode_prompts
from afterflow.experiment.serialization import from_json, to_json
from afterflow.experiment.setup import TrainingSetup
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.models.wan import Wan
from afterflow.recipes import RECIPES
from afterflow.rewards.remote.local_page import HEADERS
from afterflow.rewards.shapes_judge import ShapesJudge
from afterflow.rewards.vlm.judge import VLMJudge
from afterflow.rewards.votes.judge import Votes
from afterflow.rewards.votes.voting import Voting
from afterflow.system.errors import ConfigError, InputError, TrainingStopped
from afterflow.system.input_pictures import png_address
from afterflow.system.verdicts import verdict_file
from served import served

A, B = "a" * 32, "b" * 32
# No connection is kept: the next test's server may get the port of one that is gone.
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
HOSTILE = "a cat</h1><script>document.title = 'owned'</script> & \"x\" \u202eevil \x1b[31m"


def pictures(folder, prompts=("a cat", HOSTILE), count=3):
    """A folder with some pictures of each prompt, all different."""
    rows = []
    for p, prompt in enumerate(prompts):
        for k in range(count):
            Image.fromarray(np.full((8, 8, 3), 40 * p + 10 * k, np.uint8)).save(folder / f"{p}{k}.png")
            rows.append({"file_name": f"{p}{k}.png", "text": prompt})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def page(tmp_path):
    """The address of a page, with its token, and the folder that it judges."""
    folder = pictures(tmp_path)
    with served(Vote(str(folder)).app(folder, "token")) as url:
        yield f"{url}/token", folder


def ask(url, what="next", session=A, **fields):
    reply = CLIENT.post(f"{url}/{what}", json={"session": session, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def vote(url, choice, session=A):
    """Judge what a page shows; the pair, and what it shows then."""
    pair = ask(url, session=session)["pair"]
    return pair, ask(url, "vote", session, pair=pair["id"], verdict=choice)


@pytest.mark.parametrize("path", ["", "/", "/tokem/", "/token2/", "/TOKEN/", "/page.js", "//token/", "/picture/x/left"])
def test_nothing_is_shown_without_the_token(page, path):
    root = page[0].removesuffix("/token")
    reply = CLIENT.get(root + path)
    assert reply.status_code == 403 and "whole address" in reply.json()["error"] and "token" not in reply.text
    assert CLIENT.post(f"{root}/next", json={"session": A}).status_code == 403


def test_only_this_machine_and_the_page_itself_are_answered(page):
    url, _ = page
    root = url.removesuffix("/token")
    get = lambda **headers: CLIENT.get(f"{url}/", headers=headers).status_code
    assert get() == 200 and get(Host="localhost:1") == 200
    assert get(Host="evil.example") == get(Host="127.0.0.1.evil.example") == 403, "a name made to point here"
    post = lambda **headers: CLIENT.post(f"{url}/next", json={"session": A}, headers=headers).status_code
    assert post() == post(Origin=root) == 200
    assert post(Origin="http://evil.example") == post(Origin="null") == post(Origin="http://127.0.0.1:1") == 403


def test_the_page_loads_nothing_from_elsewhere_and_every_answer_says_so(page):
    url, _ = page
    replies = [CLIENT.get(f"{url}/{name}") for name in ("", "page.js", "page.css", "nothing")]
    replies += [CLIENT.get(url.removesuffix("/token")), CLIENT.post(f"{url}/next", json={"session": A})]
    for reply in replies:
        assert {name: reply.headers[name] for name in HEADERS} == HEADERS
    assert [reply.status_code for reply in replies] == [200, 200, 200, 404, 403, 200]
    policy = HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    text = "".join(reply.text for reply in replies[:3])
    assert "http://" not in text and "https://" not in text and "innerHTML" not in text
    assert (
        "<script>" not in replies[0].text
        and " on" + "click=" not in replies[0].text
        and "style=" not in replies[0].text
    )


def test_a_hostile_prompt_is_text_and_shows_what_it_hides(page):
    url, folder = page
    prompts = {}
    for _ in range(6):
        pair, _ = vote(url, "left")
        prompts[pair["prompt"]] = pair
    hostile = next(prompt for prompt in prompts if "script" in prompt)
    assert hostile == "a cat</h1><script>document.title = 'owned'</script> & \"x\" \\u202eevil \\x1b[31m"
    reply = CLIENT.post(f"{url}/next", json={"session": B})
    assert reply.headers["content-type"] == "application/json" and reply.headers["x-content-type-options"] == "nosniff"
    assert {verdict.prompt for verdict in verdict_file(folder).read()} == {"a cat", HOSTILE}, "stored as it is"


def test_verdicts_are_stored_with_the_pictures_that_were_seen(page):
    url, folder = page
    for choice in ("left", "right", "tie", "skip"):
        pair = ask(url)["pair"]
        seen = [CLIENT.get(f"{url}/picture/{pair['id']}/{side}") for side in ("left", "right")]
        assert {reply.headers["content-type"] for reply in seen} == {"image/png"}
        ask(url, "vote", pair=pair["id"], verdict=choice)
        assert CLIENT.get(f"{url}/picture/{pair['id']}/left").status_code == 404, "no longer shown"
        line = json.loads((folder / "verdicts.jsonl").read_text().splitlines()[-1])
        assert line["verdict"] == choice and line["session"] == A and line["time"].endswith("+00:00")
        for reply, side in zip(seen, ("left", "right")):
            stored = np.asarray(Image.open(folder / line[side]["path"]))
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.content))), stored)
    assert len(read_verdicts(folder)) == 2


def test_two_people_get_different_pairs_and_each_undoes_their_own(page):
    url, folder = page
    assert ask(url, session=A)["pair"]["id"] == ask(url, session=A)["pair"]["id"] != ask(url, session=B)["pair"]["id"]
    first, _ = vote(url, "left", A)
    _, after = vote(url, "right", B)
    assert after["judged"] == 2 and after["open"] == 4 and after["undo"]
    again = ask(url, "undo", A)["pair"]
    assert again["prompt"] == first["prompt"] and [v.session for v in verdict_file(folder).read()] == [B]
    reply = CLIENT.post(f"{url}/undo", json={"session": A})
    assert reply.status_code == 409 and "no verdict of this page" in reply.json()["error"]
    for _ in range(4):
        vote(url, "tie", A)
    assert ask(url)["pair"] is None and ask(url)["open"] == 1, "the last one is shown on the other page"
    vote(url, "tie", B)
    assert ask(url)["pair"] is None and ask(url)["judged"] == 6
    keys = [verdict.key for verdict in verdict_file(folder).read()]
    assert len(keys) == len(set(keys)) == 6


def test_a_picture_that_is_gone_is_not_shown_and_its_verdicts_teach_nothing(page, caplog):
    url, folder = page
    for _ in range(6):
        vote(url, "left")
    used = read_verdicts(folder)
    (folder / "00.png").unlink()
    assert len(read_verdicts(folder)) == 4 < len(used) and "left out: 2 with a picture that is gone" in caplog.text
    assert ask(url, "undo")["pair"] is None, "one of its pictures is gone"
    for name in ("01", "02", "11", "12"):
        (folder / f"{name}.png").unlink()
    with pytest.raises(InputError, match="no judged pair can be used: 5 with a picture that is gone"):
        read_verdicts(folder)


@pytest.mark.parametrize(
    "what, content, status, words",
    [
        ("next", b"{", 422, "not JSON"),
        ("next", b"[]", 422, "an object with the session"),
        ("next", b'{"session": "../../x"}', 422, "an object with the session"),
        ("next", b"\xff", 422, "not UTF-8"),
        ("next", b" " * 5000, 422, "at most 4096 bytes"),
        ("vote", json.dumps({"session": A, "pair": "x", "verdict": "left"}).encode(), 409, "no longer shown"),
        ("vote", json.dumps({"session": A, "pair": 1, "verdict": "left"}).encode(), 422, "a vote has the pair"),
        ("vote", json.dumps({"session": A, "pair": "x", "verdict": []}).encode(), 422, "one of left, right, tie, skip"),
        ("delete", json.dumps({"session": A}).encode(), 422, "next, vote, undo or leave"),
    ],
)
def test_a_request_that_the_page_would_not_make_is_told_what_is_wrong(page, what, content, status, words):
    reply = CLIENT.post(f"{page[0]}/{what}", content=content)
    assert reply.status_code == status and words in reply.json()["error"]
    assert not (page[1] / "verdicts.jsonl").exists()


def test_a_verdict_that_cannot_be_written_is_said_and_its_pair_stays(page):
    url, folder = page
    pair = ask(url)["pair"]
    (folder / "verdicts.jsonl").symlink_to("/dev/full")
    reply = CLIENT.post(f"{url}/vote", json={"session": A, "pair": pair["id"], "verdict": "left"})
    assert reply.status_code == 507 and "symbolic link" in reply.json()["error"]
    (folder / "verdicts.jsonl").unlink()
    assert ask(url)["pair"] == pair and vote(url, "left")[0] == pair


def test_pictures_in_genevals_layout_are_judged_and_clips_are_not(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    add_images(tmp_path / "set", 0, {"prompt": "a cat"}, images)
    add_images(tmp_path / "set", 1, {"prompt": "a dog"}, images[:1])
    table = Vote(str(tmp_path / "set"))
    assert table.pictures(tmp_path / "set") == (
        {"a cat": [f"00000/samples/000{k}.png" for k in range(3)], "a dog": ["00001/samples/0000.png"]},
        False,
    )
    add_images(tmp_path / "clips", 0, {"prompt": "a cat"}, np.stack([images, images]))
    with pytest.raises(InputError, match="it is a clip"):
        table.pictures(tmp_path / "clips")


@pytest.mark.parametrize(
    "make, options, words",
    [
        (lambda folder: None, (), "no such folder"),
        (lambda folder: folder.mkdir(), (), "no metadata.jsonl in it"),
        (lambda folder: pictures(made(folder), count=1), (), "no prompt has two pictures"),
        (lambda folder: pictures(made(folder)), ("--images", "2", "--best"), "--images, --best would change nothing"),
        (lambda folder: pictures(made(folder)), ("--port", "99999"), "a port is a number below 65536"),
        (lambda folder: pictures(made(folder)), ("--pairs", "0"), "at least 1"),
        (
            lambda folder: (pictures(made(folder)) / "verdicts.jsonl").write_text("{\n"),
            (),
            "verdicts.jsonl:1: not JSON",
        ),
        (lambda folder: (pictures(made(folder)) / "x.png").symlink_to("/etc/hostname"), (), "leads out of"),
    ],
)
def test_what_cannot_be_judged_is_said_in_a_sentence(tmp_path, capsys, make, options, words):
    make(tmp_path / "pictures")
    assert main(["vote", str(tmp_path / "pictures"), "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "pictures" / "votes").exists()


def made(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_the_command_prints_its_address_and_ends_with_its_terminal(tmp_path, number):
    command = [sys.executable, "-m", "afterflow", "vote", str(pictures(tmp_path)), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as p:
        assert p.stdout is not None
        address = next(word for line in p.stdout for word in line.split() if word.startswith("http://127.0.0.1:"))
        while "ready" not in p.stdout.readline():
            pass
        assert len(address.split("/")[3]) >= 32 and address.endswith("/")
        assert ask(address.rstrip("/"))["open"] == 6
        vote(address.rstrip("/"), "left")
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2 and "is in use by process" in second.stderr
        p.send_signal(number)
        rest = p.stdout.read()
    assert p.returncode == 0 and "1 verdicts are in" in rest
    assert not (tmp_path / "votes").exists(), "nothing is left but the verdicts"


def short(pipeline, iterations=2):
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=4, group=4, window=2, beta=0.01)
    run = Run(
        algorithm, ShapesPrompts(count=10), SD3(pipeline, max_sequence_length=0), LoRA(rank=4, alpha=8), name="short"
    )
    return run.with_options(
        iterations=iterations, batch=2, chunk=8, learning_rate=1e-3, inference_steps=2, sample_every=0, save_every=1
    )


def test_a_run_without_pictures_draws_some_by_its_result_once(pipeline, own_folder, capsys):
    folder = execute(short(pipeline, iterations=1), "short").folder
    table = Vote(str(folder), images=3, prompts=2)
    drawn, waits = table.pictures(folder)
    assert len(drawn) == 2 and {len(paths) for paths in drawn.values()} == {3} and not waits
    assert all(path.startswith("votes/drawn/0000") for paths in drawn.values() for path in paths)
    assert set(drawn) <= {record["prompt"] for record in ShapesPrompts(count=10).records(0)}
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
    assert Vote(str(folder)).pictures(folder) == (drawn, False), "what is there is not drawn again"
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")} == before
    with pytest.raises(InputError, match="drawn with images = 3"):
        Vote(str(folder), images=4, prompts=2).pictures(folder)
    about_a_picture = Path("edits.jsonl")
    about_a_picture.write_text(json.dumps({"prompt": "it", "input": png_address(np.zeros((8, 8, 3), np.uint8))}))
    shutil.rmtree(folder / "votes")
    with pytest.raises(InputError, match="about an input picture"):
        Vote(str(folder), prompts_from=str(about_a_picture)).pictures(folder)
    assert not (folder / "votes").exists(), "nothing was drawn in vain"
    (folder / "lora").rename(folder / "elsewhere")
    with pytest.raises(InputError, match="no pictures and no result yet"):
        Vote(str(folder), images=3).pictures(folder)


def person(folder, stop):
    """Somebody who likes the brighter picture, at the page of the run."""
    while not folder.is_dir() and not stop.is_set():
        time.sleep(0.05)
    table = Voting(verdict_file(folder), [], 0, False, time.monotonic)
    while not stop.is_set():
        shown = table.show(A)
        if shown is None:
            time.sleep(0.05)
            continue
        left, right = (table.pixels(side.path).mean() for side in (shown.left, shown.right))
        table.vote(A, shown.id, "left" if left > right else "right")


def test_a_run_waits_for_a_person_trains_on_what_they_say_and_asks_nothing_twice(pipeline, own_folder, caplog):
    algorithm = PrefGRPO(steps=4, group=3, guard=False, eta=0.9, compare=Comparisons(opponents=2))
    run = replace(short(pipeline), algorithm=algorithm, judge=Votes("runs/voted", seconds=30.0), name="voted")
    stop = threading.Event()
    thread = threading.Thread(target=person, args=(Path("runs/voted"), stop), daemon=True)
    thread.start()
    caplog.set_level("INFO", "afterflow")
    try:
        folder = execute(run, "short").folder
    finally:
        stop.set()
        thread.join(5)
    verdicts = verdict_file(folder).read()
    assert len(verdicts) == 2 * 2 * 3, "2 iterations of 2 prompts, 3 pairs each, in one order"
    assert "6 pairs wait for a person: afterflow vote runs/voted shows them" in caplog.text
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["reward/win_rate"] == pytest.approx(0.5) and line["consistency/win_rate"] == 1 for line in lines)
    assert len(read_verdicts(folder)) == 12 and Vote(str(folder)).pictures(folder)[1]
    again = replace(run, name="again", judge=Votes("runs/voted", seconds=0)).with_options(iterations=1)
    metrics = json.loads((execute(again, "short").folder / "metrics.jsonl").read_text())
    assert metrics["grad_norm"] == lines[0]["grad_norm"] > 0, "stored verdicts alone repeat the run"
    nobody = replace(run, name="nobody", judge=Votes("runs/nobody", seconds=0.1))
    with pytest.raises(TrainingStopped, match=r"12 of 12 comparisons have no verdict; .*nobody judged it"):
        execute(nobody, "short")


@pytest.mark.parametrize(
    "options, judge",
    [
        ("--judge votes", Votes("runs/shapes_pref_grpo")),
        ("--judge votes --name mine --judge.seconds 5", Votes("runs/mine", 5.0)),
        ("--judge votes --name mine --judge.path runs/other", Votes("runs/other")),
        ("--judge shapes --judge.margin 0.1", ShapesJudge(margin=0.1)),
        ("--judge vlm --judge.model m", VLMJudge(model="m")),
        ("--judge.noise 0.5", ShapesJudge(noise=0.5, bias=0.05)),
    ],
)
def test_the_command_line_takes_a_judge_of_each_kind(options, judge):
    run = overridden(RECIPES["shapes_pref_grpo"](), options.split(), "afterflow train shapes_pref_grpo")
    assert run.judge == judge and from_json(Run, to_json(run)) == run
    assert (run.held_out_judge is None) == isinstance(judge, Votes), "people are not asked about held-out prompts"


def test_people_judge_no_clips_and_the_doctor_does_not_wait_for_them(pipeline, own_folder):
    judge = Votes("runs/voted", seconds=1000.0)
    run = replace(short(pipeline), algorithm=PrefGRPO(steps=4, group=3), judge=judge)
    with pytest.raises(ConfigError, match="Wan draws clips; take another judge"):
        replace(run, model=Wan(pipeline))
    setup = TrainingSetup.build(run, resume=False)
    detail = check_judge(setup, encode_prompts(setup, prompt_records(run))).detail
    assert detail == "people, who are asked while the run trains: afterflow vote runs/voted"
