"""A reward service and its client: the same numbers as in the process, and nothing that a request can break."""

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from afterflow.cli.main import main
from afterflow.cli.serve import Serve
from afterflow.envs.shapes.prompts import suite
from afterflow.envs.shapes.render import render_batch
from afterflow.rewards.base import Reward, RewardModels, Scored
from afterflow.rewards.registry import REWARDS, check_rewards, load_reward
from afterflow.rewards.remote.protocol import MSGPACK, REWARDS_KEY, encode_image, pack, score_request
from afterflow.rewards.remote.server import ServiceLimits, build_service
from served import served

httpx = pytest.importorskip("httpx")
RECORDS = suite("train", 3, 0, tags=("counting", "colors"))
IMAGES = render_batch(RECORDS, 32, np.random.default_rng(0))


@pytest.fixture(scope="module")
def url():
    names = ("shapes_partial", "jpeg_compressibility", "moving_strict")
    with served(
        build_service([load_reward(name) for name in names], ServiceLimits(images=16, pixels=64 * 64, megabytes=1))
    ) as url:
        yield url


def brightness(images, records):
    return images.mean((1, 2, 3))


def test_a_served_reward_says_what_it_says_in_the_process(url):
    far = load_reward("shapes_partial", RewardModels(servers={"shapes_partial": url}, batch=4))
    mixed = np.concatenate([IMAGES, IMAGES[::-1]])
    here, there = (reward(mixed, [*RECORDS, *RECORDS]) for reward in (load_reward("shapes_partial"), far))
    assert here.values.tolist() == there.values.tolist() and here.values.min() < 1 == here.values.max()


def test_parts_reasons_scales_and_clips_travel(monkeypatch):
    def odd(clips, records):
        return Scored(clips.mean((1, 2, 3, 4)), {"half": clips.mean((1, 2, 3, 4)) / 2}, {1: "too dark"})

    reward = Reward("odd", odd, 0, 255, clips=True, scale=0.1)
    monkeypatch.setitem(REWARDS, "odd", reward)
    clips = np.random.default_rng(0).integers(0, 255, (3, 2, 8, 8, 3), dtype=np.uint8)
    with served(build_service([reward])) as url:
        there = load_reward("odd", RewardModels(servers={"odd": url}))(clips, RECORDS[:3])
    here = reward(clips, RECORDS[:3])
    assert np.array_equal(here.values, there.values, equal_nan=True) and here.why == there.why == {1: "too dark"}
    assert here.parts["half"].tolist() == there.parts["half"].tolist()


def test_requests_of_many_clients_are_scored_together_and_come_back_to_their_own():
    calls = []

    def slow(images, records):
        calls.append(len(images))
        time.sleep(0.05)
        return brightness(images, records)

    with (
        served(build_service([Reward("slow", slow)], ServiceLimits(batch=64, wait=0.02))) as url,
        httpx.Client() as client,
    ):
        found = {}

        def ask(level):
            image = np.full((8, 8 + level % 2, 3), level, np.uint8)  # of two shapes
            body = pack(score_request("slow", [image], [{"prompt": "a"}]))
            reply = client.post(f"{url}/score", content=body, headers={"Content-Type": MSGPACK})
            import msgpack

            found[level] = msgpack.unpackb(reply.content)["values"]

        threads = [threading.Thread(target=ask, args=(level,)) for level in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {level: [float(level)] for level in range(32)}
    assert sum(calls) == 32 and len(calls) < 16


def bomb(width, height):
    """A PNG of a few bytes that claims to be so large."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def encoded(data):
    return base64.b64encode(data).decode()


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return encoded(buffer.getvalue())


def post(url, content, kind="application/json", **headers):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return httpx.post(f"{url}/score", content=body, headers={"Content-Type": kind, **headers}, verify=False)


def request(**changes):
    record = {"prompt": "a"}
    return {"reward": "jpeg_compressibility", "records": [record], "images": [{"png": png(IMAGES[0])}]} | changes


def test_json_with_png_is_understood_by_anyone(url):
    reply = post(url, request())
    assert reply.status_code == 200
    assert reply.json()["values"] == load_reward("jpeg_compressibility")(IMAGES[:1], RECORDS[:1]).values.tolist()
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    names = [each["name"] for each in httpx.get(f"{url}/rewards").json()]
    assert names == ["shapes_partial", "jpeg_compressibility", "moving_strict"]


BAD = [
    (b"\x80\x04", "is not JSON"),
    (b"[" * 100_000, "nested deeper than 32"),
    ([], "a request is an object"),
    (request(reward="pickscore"), "no reward 'pickscore' is served here"),
    (request(records=[]), "lists of the same length"),
    (request(records=[{}]), 'has no "prompt"'),
    (request(reward="shapes_partial"), "tag"),
    (request(images=["x"]), "an image is an object"),
    (request(images=[{"png": "***"}]), "no base64"),
    (request(images=[{"png": 3}]), "bytes, or base64"),
    (request(images=[{"png": encoded(b"GIF89a")}]), "not a readable PNG"),
    (request(images=[{"png": encoded(bomb(60_000, 60_000))}]), "at most 4096 pixels"),
    (request(images=[{"png": encoded(bomb(64, 64))}]), "not a readable PNG"),
    (request(images=[{"raw": "", "shape": [8, 8]}]), r"shape is \[H, W, 3\]"),
    (request(images=[{"raw": "", "shape": [8, -8, 3]}]), "positive whole numbers"),
    (request(images=[{"raw": "", "shape": [8, True, 3]}]), "positive whole numbers"),
    (request(images=[{"raw": "", "shape": [4096, 4096, 3]}]), "at most 4096 pixels"),
    (request(images=[{"raw": encoded(b"123"), "shape": [8, 8, 3]}]), "raw has 3 bytes"),
    (request(images=[{"raw": encoded(bytes(2 * 8 * 8 * 3)), "shape": [2, 8, 8, 3]}]), "scores images"),
    (request(images=[{"png": png(IMAGES[0])}] * 17, records=[{"prompt": "a"}] * 17), "at most 16 images"),
]


@pytest.mark.parametrize("content, said", BAD, ids=range(len(BAD)))
def test_a_bad_request_is_told_what_is_wrong_with_it(url, content, said):
    import re

    reply = post(url, content)
    assert reply.status_code == 422 and re.search(said, reply.json()["error"])


def test_nothing_that_is_sent_crashes_it_or_shows_its_insides(url):
    """Random bytes, cut and twisted requests, of both kinds."""
    rng = np.random.default_rng(0)
    whole = pack(score_request("jpeg_compressibility", [IMAGES[0]], [{"prompt": "a"}]))
    with httpx.Client() as client:
        for n in range(200):
            body = bytearray(whole if n % 2 else json.dumps(request()).encode())
            for place in rng.integers(0, len(body), rng.integers(1, 40)):
                body[place] = rng.integers(0, 256)
            content = bytes(body[: rng.integers(0, len(body))] if n % 3 == 0 else body)
            kind = MSGPACK if n % 4 in (1, 2) else "application/json"
            reply = client.post(f"{url}/score", content=content, headers={"Content-Type": kind})
            assert reply.status_code in (200, 422), reply.text
            assert "Traceback" not in reply.text and "afterflow/" not in reply.text
    assert post(url, request()).status_code == 200


def test_a_body_that_is_too_large_is_not_read_to_its_end(url):
    assert post(url, b"x" * (2 << 20)).status_code == 413


def test_a_key_is_asked_of_everyone(monkeypatch):
    monkeypatch.setitem(REWARDS, "bright", Reward("bright", brightness))
    with served(build_service([load_reward("bright")], key="secret")) as url:
        for path in ("health", "rewards"):
            assert httpx.get(f"{url}/{path}").status_code == 401
        assert post(url, request(), Authorization="Bearer wrong").status_code == 401
        models = RewardModels(servers={"bright": url})
        with pytest.raises(ValueError, match=f"wants a key; set {REWARDS_KEY}"):
            check_rewards(["bright"], models)
        monkeypatch.setenv(REWARDS_KEY, "secret")
        check_rewards(["bright"], models)
        assert load_reward("bright", models)(IMAGES[:1], RECORDS[:1]).values == pytest.approx(IMAGES[0].mean())


def test_a_reward_that_raises_and_one_that_takes_too_long_are_told_in_a_word():
    def broken(images, records):
        return np.zeros(len(images) + 1)  # against its contract

    def asleep(images, records):
        time.sleep(0.5)
        return np.zeros(len(images))

    with served(build_service([Reward("broken", broken)])) as url:
        reply = post(url, request(reward="broken"))
        assert (reply.status_code, reply.json()["error"]) == (500, "the reward failed: ValueError")
    with served(build_service([Reward("asleep", asleep)], ServiceLimits(seconds=0.1))) as url:
        reply = post(url, request(reward="asleep"))
        assert (reply.status_code, reply.json()["error"]) == (504, "no score within 0.1 s")


def test_services_take_turns_and_one_that_is_gone_costs_no_score(monkeypatch):
    monkeypatch.setattr("afterflow.rewards.remote.client.MAX_FAILURES", 1)
    monkeypatch.setitem(REWARDS, "bright", Reward("bright", brightness))
    asked = {"one": 0, "two": 0}

    def counting(name):
        def score(images, records):
            asked[name] += len(images)
            return brightness(images, records)

        return build_service([Reward("bright", score)])

    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    records = [{"prompt": "a"}] * 12
    with served(counting("one")) as one:
        with served(counting("two")) as two:
            far = load_reward("bright", RewardModels(servers={"bright": f"{one},{two}"}, batch=2))
            assert far(images, records).values == pytest.approx(images.mean((1, 2, 3)))
            assert asked == {"one": 6, "two": 6}
        found = far(images, records)
        assert not found.why and asked == {"one": 18, "two": 6}
    far.score.deadline = 0.3
    found = far(images[:2], records[:2])
    assert np.isnan(found.values).all() and "no score within 0.3 s" in found.why[0]


@pytest.mark.parametrize("how", ["gone", "stuck"])
def test_a_dead_service_costs_seconds_and_not_a_deadline_for_each_batch(monkeypatch, how):
    monkeypatch.setattr("afterflow.rewards.remote.client.RESTART_SECONDS", 0.5)
    monkeypatch.setattr("afterflow.rewards.remote.client.CONNECT_SECONDS", 0.3)
    monkeypatch.setitem(REWARDS, "bright", Reward("bright", brightness))
    with served(build_service([Reward("bright", brightness)])) as alive:
        far = load_reward("bright", RewardModels(servers={"bright": alive}, batch=1))
        assert not far(IMAGES[:1], RECORDS[:1]).why
    with socket.create_server(("127.0.0.1", int(alive.rpartition(":")[2]))) as stuck:  # it takes calls and says nothing
        if how == "gone":
            stuck.close()
        start = time.monotonic()
        for _ in range(3):
            found = far(IMAGES, RECORDS)
            assert np.isnan(found.values).all() and "no service is reached" in found.why[0]
        assert time.monotonic() - start < 5 < far.score.deadline
    with served(build_service([Reward("bright", brightness)])) as alive:  # one that comes back is used again
        far.score.urls, far.score.rests_until = [alive], {alive: 0.0}
        far.score.failures, far.score.unreached_since = {alive: 0}, {alive: 0.0}
        assert not far(IMAGES[:1], RECORDS[:1]).why


def test_a_service_that_is_not_there_or_of_another_version_is_refused(url):
    servers = lambda where, name="shapes_partial": RewardModels(servers={name: where})
    with pytest.raises(ValueError, match=r"does not answer .*; start it: afterflow serve-rewards shapes_partial"):
        load_reward("shapes_partial", servers("http://127.0.0.1:9"))
    with pytest.raises(ValueError, match=r"has shapes_partial, .*, not shapes_strict"):
        load_reward("shapes_strict", servers(url, "shapes_strict"))
    with (
        served(build_service([Reward("shapes_partial", brightness, version="0")])) as other,
        pytest.raises(
            ValueError, match="has version 0 of shapes_partial, and this is 1; run the same afterflow on both sides"
        ),
    ):
        load_reward("shapes_partial", servers(other))


def test_the_command_is_for_this_machine_unless_it_has_a_key(monkeypatch, capsys):
    monkeypatch.delenv(REWARDS_KEY, raising=False)
    assert main(["serve-rewards", "jpeg_compressibility", "--host", "0.0.0.0"]) == 2
    assert f"set a key in the environment variable {REWARDS_KEY}" in capsys.readouterr().err
    assert main(["serve-rewards", "jpeg_compresibility"]) == 2
    assert "did you mean jpeg_compressibility" in capsys.readouterr().err
    monkeypatch.setenv(REWARDS_KEY, "secret")
    with served(Serve(("jpeg_compressibility",), host="0.0.0.0").app()) as url:
        assert post(url, request(), Authorization="Bearer secret").status_code == 200


def test_a_raw_image_is_sent_as_it_is():
    assert (
        encode_image(IMAGES[0])["shape"] == [32, 32, 3]
        and encode_image(IMAGES[0, ::2])["raw"] == IMAGES[0, ::2].tobytes()
    )


def test_a_service_that_hangs_leaves_time_for_another(monkeypatch):
    monkeypatch.setitem(REWARDS, "bright", Reward("bright", brightness))

    hold = threading.Event()

    def asleep(images, records):
        hold.wait(30)
        return brightness(images, records)

    with (
        served(build_service([Reward("bright", brightness)])) as good,
        served(build_service([Reward("bright", asleep)])) as bad,
    ):
        far = load_reward("bright", RewardModels(servers={"bright": f"{good},{bad}"}, batch=1))
        far.score.deadline = 3.0
        assert not far(IMAGES[:4], RECORDS[:4]).why
        hold.set()


def test_a_reward_that_raises_shows_its_kind_and_not_its_words():
    def leaky(images, records):
        raise OSError("/secret/folder is not there")

    with served(build_service([Reward("leaky", leaky)])) as url:
        reply = post(url, request(reward="leaky"))
        assert reply.json()["why"] == {"0": "OSError; the service's log says more"} and reply.json()["values"] == [None]


def test_more_than_can_wait_are_told_to_come_again_and_large_batches_are_cut():
    calls = []

    def counting(images, records):
        calls.append(len(images))
        return brightness(images, records)

    with served(build_service([Reward("jpeg_compressibility", counting)], ServiceLimits(waiting=5, batch=2))) as url:
        image, record = request()["images"], request()["records"]
        assert post(url, request(images=image * 6, records=record * 6)).status_code == 503
        assert post(url, request(images=image * 5, records=record * 5)).status_code == 200
    assert calls == [2, 2, 1]


def test_options_of_a_served_reward_are_the_services():
    with pytest.raises(ValueError, match="ocr is scored by a service, which has weights of its own"):
        RewardModels(weights={"ocr": "x"}, servers={"ocr": "http://x"})
    with pytest.raises(ValueError, match="did you mean jpeg_compressibility"):
        check_rewards(["jpeg_compressibility"], RewardModels(servers={"jpeg_compresibility": "http://x"}))
