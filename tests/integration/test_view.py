"""The page over runs: who may open it, that it shows nothing from elsewhere and changes nothing, and its one file."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from afterflow.cli.main import main
from afterflow.experiment.picture_store import PictureStore, encode_picture
from afterflow.rewards.remote.local_page import HEADERS
from afterflow.system.page_style import policy_digest
from afterflow.view import report_file
from afterflow.view.answers import Answers
from afterflow.view.report_file import LARGEST_REPORT, write_report_file
from afterflow.view.service import build_view
from run_folders import RECORDS, groups_of, pictures_of, run_of
from served import served

# No connection is kept: the next test's server may get the port of one that is gone.
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
HOSTILE = "a cat</h1></script><script>document.title = 'owned'</script> & \"x\" \u202eevil \x1b[31m"
NAME = "<img src=x onerror=alert(1)>"


@pytest.fixture
def run(tmp_path):
    """A run whose name is markup, with pictures of a hostile prompt."""
    folder = run_of(tmp_path / "runs" / NAME, [{"reward": 0.5, HOSTILE: 1.0}] * 3, [{"strict": [0.0, 1.0]}])
    pictures_of(folder, [*RECORDS, {"prompt": HOSTILE, "tag": NAME}])
    groups_of(folder, {"prompt": HOSTILE, "tag": "x"})
    (tmp_path / "secret.png").write_bytes(b"\x89PNG secret")
    (tmp_path / "secret.json").write_text('{"step": 1, "pictures": ["000.png"], "secret": 1}')
    return folder


@pytest.fixture
def page(run):
    """The address of the page of the run, with its token."""
    with served(build_view(Answers([run]), "token")) as url:
        yield f"{url}/token"


def get(url, **headers):
    return CLIENT.get(url, headers=headers)


@pytest.mark.parametrize(
    "path", ["", "/", "/tokem/", "/token2/", "/TOKEN/", "/page.js", "//token/", "/runs", "/picture/0"]
)
def test_nothing_is_shown_without_the_token(page, path):
    reply = get(page.removesuffix("/token") + path)
    assert reply.status_code == 403 and "afterflow view has printed" in reply.json()["error"]


def test_only_this_machine_and_the_page_itself_are_answered(page):
    root = page.removesuffix("/token")
    assert (
        get(f"{page}/runs").status_code
        == get(f"{page}/runs", Host="localhost:1", Origin="http://localhost:1").status_code
        == 200
    )
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ):
        assert get(f"{page}/runs", **headers).status_code == 403, headers
    assert get(f"{page}/runs", Origin=root).status_code == 200


def test_every_answer_has_the_headers_and_the_page_loads_nothing_from_elsewhere(page):
    names = (
        "",
        "page.js",
        "page.css",
        "icon.svg",
        "runs",
        "nothing",
        "picture/0/samples/base/000.png",
        "picture/0/x/y/z",
    )
    replies = [get(f"{page}/{name}") for name in names]
    assert [reply.status_code for reply in replies] == [200] * 5 + [404, 200, 404]
    for reply in replies:
        assert {name: reply.headers[name] for name in HEADERS} == HEADERS
    text = "".join(reply.text for reply in replies[:3])
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]
    assert "innerHTML" not in text and "<script>" not in text and "style=" not in text and "eval(" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_page_takes_nothing_but_questions(page, run, method):
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    for path in ("", "runs", "run/0", "picture/0/samples/base/000.png"):
        assert CLIENT.request(method, f"{page}/{path}", content=b"{}").status_code == 405
    for path in ("runs", "run/0", "curves/0?name=reward", "set/0/samples", "seen/0/samples/base", "set/0/groups"):
        assert get(f"{page}/{path}").status_code == 200
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


@pytest.mark.parametrize(
    "path",
    [
        "picture/0/samples/base/../../../run.json",
        "picture/0/samples/base/..%2f..%2f..%2frun.json",
        "picture/0/samples/%2e%2e/000.png",
        "picture/0/../run.json",
        "picture/0/samples/base/%2fetc%2fpasswd",
        "picture/0/samples/base/000.png%00.png",
        "picture/0/checkpoints/base/000.png",
        "picture/1/samples/base/000.png",
        "picture/-1/samples/base/000.png",
        "picture/0/samples/base/900.png",
        "seen/0/samples/..%2f..",
        "set/0/..",
        "run/../../secret.json",
    ],
)
def test_no_path_leads_out_of_the_stored_pictures(page, path):
    raw = httpx.URL(page).copy_with(raw_path=f"/token/{path}".encode())
    reply = CLIENT.get(raw)
    assert reply.status_code in (403, 404) and "config" not in reply.text and "secret" not in reply.text


def test_no_symbolic_link_leads_out_of_the_run(page, run):
    pictures = run / "pictures" / "samples"
    outside = run.parents[1]
    (pictures / "base" / "900.png").symlink_to(outside / "secret.png")
    (pictures / "step_000007").symlink_to(outside)
    (pictures / "step_000007.json").symlink_to(outside / "secret.json")
    (outside / "000.png").write_bytes(b"\x89PNG secret")
    assert get(f"{page}/picture/0/samples/base/900.png").status_code == 404
    assert get(f"{page}/picture/0/samples/step_000007/000.png").status_code == 404
    assert [step["step"] for step in get(f"{page}/set/0/samples").json()["steps"]] == [-1, 0, 2]
    assert get(f"{page}/picture/0/samples/base/000.png").headers["content-type"] == "image/png"


@pytest.mark.parametrize("name", ["metrics.jsonl", "held_out.jsonl"])
def test_no_file_of_metrics_is_read_through_a_link(page, run, name):
    (run / name).unlink()
    elsewhere = run.parents[1] / "elsewhere.jsonl"
    elsewhere.write_text('{"step": 0, "seconds_trained": 1.0, "secret": 1.0}\n')
    (run / name).symlink_to(elsewhere)
    summary = get(f"{page}/runs").json()[0]
    replies = [get(f"{page}/run/0"), get(f"{page}/curves/0?name=secret")]
    assert "secret" not in json.dumps(summary) + "".join(reply.text for reply in replies)


def test_what_cannot_be_read_is_said_in_a_sentence(page, run):
    pictures = run / "pictures"
    elsewhere = run.parents[1] / "moved"
    pictures.rename(elsewhere)
    pictures.symlink_to(elsewhere)
    assert get(f"{page}/runs").status_code == 200
    for path in ("run/0", "set/0/samples"):
        reply = get(f"{page}/{path}")
        assert reply.status_code == 422 and "by a symbolic link" in reply.json()["error"]
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_markup_in_names_and_prompts_travels_as_text(page):
    reply = get(f"{page}/set/0/samples")
    assert reply.headers["content-type"] == "application/json" and reply.headers["x-content-type-options"] == "nosniff"
    shown = reply.json()["prompts"][-1]
    assert "<script>" in shown["prompt"] and "\\u202e" in shown["prompt"] and "\\x1b" in shown["prompt"]
    assert get(f"{page}/runs").json()[0]["name"].endswith(NAME)


def test_new_iterations_and_pictures_are_seen(page, run):
    before = get(f"{page}/runs").json()[0]
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "seconds_trained": 9.0, "reward": 0.9}\n')
    after = get(f"{page}/runs").json()[0]
    assert after["iteration"] == before["iteration"] + 1 and after["stamp"] != before["stamp"]
    assert get(f"{page}/curves/0?name=reward").json()["reward"][-1] == [3, 0.9]


# One file


def stored_in(text):
    return json.loads(re.search(r'<script type="application/json" id="stored">(.*?)</script>', text, re.S).group(1))


def test_a_report_holds_the_page_its_answers_and_its_pictures(run, tmp_path):
    write_report_file(run, tmp_path / "it.html")
    text = (tmp_path / "it.html").read_text(encoding="utf-8")
    stored = stored_in(text)
    assert set(stored["answers"]) >= {
        "runs",
        "run/0",
        "curves/0",
        "set/0/samples",
        "set/0/groups",
        "seen/0/samples/base",
    }
    addresses = [
        f"0/samples/{step['name']}/{name}"
        for step in stored["answers"]["set/0/samples"]["steps"]
        for name in step["pictures"]
    ]
    assert len(addresses) == 24 and set(addresses) <= set(stored["pictures"])
    assert all(address.startswith("data:image/png;base64,") for address in stored["pictures"].values())
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "nothing is loaded from elsewhere"


def test_nothing_of_a_run_can_leave_its_block_and_the_policy_lets_in_the_page_alone(run, tmp_path):
    write_report_file(run, tmp_path / "it.html")
    text = (tmp_path / "it.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and "owned'</script>" not in text and NAME not in text
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    policy = re.search(r'content="(default-src[^"]*)"', text).group(1)
    assert f"script-src '{policy_digest(script)}'" in policy and f"style-src '{policy_digest(style)}'" in policy
    assert "unsafe" not in policy and "connect-src" not in policy and policy.startswith("default-src 'none'")


def test_a_report_of_many_large_pictures_leaves_stages_out_and_is_small_enough(tmp_path):
    folder = run_of(tmp_path / "large", [{"reward": 0.5}] * 3)
    store = PictureStore(folder, "samples")
    store.begin(0, [{"prompt": "noise"}], 1)
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    for step in (-1, *range(0, 60, 2)):
        store.write(step, [encode_picture(noise)], {"scores": {}, "parts": {}})
    write_report_file(folder, tmp_path / "large.html")
    text = (tmp_path / "large.html").read_text(encoding="utf-8")
    assert len(text.encode()) <= LARGEST_REPORT
    steps = [step["step"] for step in stored_in(text)["answers"]["set/0/samples"]["steps"]]
    assert steps[0] == -1 and steps[-1] == 58 and len(steps) >= 5
    address = next(iter(stored_in(text)["pictures"].values()))
    import base64

    assert Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size[0] <= 512


def test_a_report_that_cannot_be_small_has_no_pictures(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report_file, "LARGEST_REPORT", 1)
    write_report_file(run, tmp_path / "it.html")
    stored = stored_in((tmp_path / "it.html").read_text(encoding="utf-8"))
    assert stored["pictures"] == {} and stored["answers"]["run/0"]["sets"] == {}


def test_a_report_replaces_a_report_alone(run, tmp_path, capsys):
    for _ in range(2):
        assert main(["view", str(run), "--html", str(tmp_path / "it.html")]) == 0
    (tmp_path / "thesis.html").write_text("my thesis")
    assert main(["view", str(run), "--html", str(tmp_path / "thesis.html")]) == 1
    assert (
        tmp_path / "thesis.html"
    ).read_text() == "my thesis" and "was not written by afterflow" in capsys.readouterr().err


# The command


@pytest.mark.parametrize(
    "options, words",
    [
        (("nowhere",), "no run is there"),
        ((), "no run is in runs/"),
        (("--html", "it.html"), "name that run"),
        (("RUN", "--port", "99999"), "a port is a number below 65536"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(run, tmp_path, monkeypatch, capsys, options, words):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["view", *(str(run) if option == "RUN" else option for option in options)]) == 2
    assert words in capsys.readouterr().err


def test_the_command_prints_its_address_and_ends_with_ctrl_c(run, tmp_path):
    command = [sys.executable, "-m", "afterflow", "view", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        assert process.stdout is not None
        address = next(word for line in process.stdout for word in line.split() if word.startswith("http://127.0.0.1:"))
        while "ready" not in process.stdout.readline():
            pass
        assert len(address.split("/")[3]) >= 32 and len(get(f"{address}runs").json()) == 1
        run_of(tmp_path / "runs" / "later")
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 0
