"""A service that scores images for other processes.

Requests of several clients are scored together; a reward runs in one thread.  It binds 127.0.0.1 unless it has a key,
reads nothing executable, and tells a client what was wrong with its request and nothing else.
"""

import asyncio
import hmac
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from ..base import Reward, Scored, concatenate_scored, log
from .protocol import JSON, MSGPACK, decode_image, pack, score_reply, unpack


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    images: int = 256
    """Of one request."""
    pixels: int = 2048 * 2048
    """Of one image, or of a clip's frames together."""
    megabytes: int = 512
    """Of a request's body, and of its images decoded."""
    waiting: int = 2048
    """Images of all requests; more are told to come again."""
    seconds: float = 300.0
    """From its arrival to its answer."""
    batch: int = 64
    """Images that are scored together."""
    wait: float = 0.005
    """Seconds that a batch waits for more."""

    def __post_init__(self) -> None:
        for name in ("images", "pixels", "megabytes", "waiting", "seconds", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be positive")


@dataclass(frozen=True)
class Waiting:
    images: Sequence[np.ndarray]
    records: Sequence[dict]
    answer: asyncio.Future


class Desk:
    """Where requests for one reward wait to be scored together."""

    def __init__(self, reward: Reward, limits: Limits) -> None:
        self.reward, self.limits = reward, limits
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self.waiting = 0

    async def answered(self, images: Sequence[np.ndarray], records: Sequence[dict]) -> Scored:
        """What is said about the images of one request."""
        if self.waiting + len(images) > self.limits.waiting:
            raise HTTPException(503, f"{self.waiting} images wait already; come again")
        asked = Waiting(images, records, asyncio.get_running_loop().create_future())
        self.waiting += len(images)
        try:
            await self.queue.put(asked)
            return await asked.answer
        finally:
            self.waiting -= len(images)

    async def work(self) -> None:
        while True:
            group = [await self.queue.get()]
            ends = asyncio.get_running_loop().time() + self.limits.wait
            while sum(len(each.images) for each in group) < self.limits.batch:
                left = ends - asyncio.get_running_loop().time()
                try:
                    group.append(await asyncio.wait_for(self.queue.get(), max(0.0, left)))
                except TimeoutError:
                    break
            await self.score([each for each in group if not each.answer.done()])

    async def score(self, group: Sequence[Waiting]) -> None:
        """One call for all images of a shape."""
        images = [image for each in group for image in each.images]
        records = [record for each in group for record in each.records]
        try:
            found: dict[int, Scored] = {}
            for rows in self.batches(images):
                stack = np.stack([images[row] for row in rows])
                scored = await asyncio.to_thread(self.reward, stack, [records[row] for row in rows])
                scored = replace(scored, why={place: self.public_reason(why) for place, why in scored.why.items()})
                found |= {row: scored.of(place) for place, row in enumerate(rows)}
        except Exception as error:
            log.exception("reward %s failed", self.reward.name)
            for each in group:
                if not each.answer.done():
                    each.answer.set_exception(HTTPException(500, f"the reward failed: {type(error).__name__}"))
            return
        first = 0
        for each in group:
            mine = range(first, first + len(each.images))
            first += len(each.images)
            if not each.answer.done():
                each.answer.set_result(concatenate_scored([found[row] for row in mine]))

    def batches(self, images: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Rows of one shape, no more than are scored together."""
        for shape in dict.fromkeys(image.shape for image in images):
            rows = [row for row, image in enumerate(images) if image.shape == shape]
            yield from (rows[i : i + self.limits.batch] for i in range(0, len(rows), self.limits.batch))

    def public_reason(self, why: str) -> str:
        """A reason without what an exception said, which stays in the log."""
        kind = re.match(r"\w*(Error|Exception|Unanswered|Failed)(?=: )", why)
        if kind is None:
            return why
        log.warning("reward %s: %s", self.reward.name, why)
        return f"{kind.group(0)}; the service's log says more"


def service(rewards: Sequence[Reward], limits: Limits = Limits(), key: str | None = None) -> FastAPI:
    """GET /health, GET /rewards and POST /score (see `wire`); with a key, for `Authorization: Bearer KEY` alone."""
    desks = {reward.name: Desk(reward, limits) for reward in rewards}
    if len(desks) < len(rewards):
        raise ValueError(f"rewards: one of {', '.join(reward.name for reward in rewards)} is there twice")

    @asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(desk.work()) for desk in desks.values()]
        yield
        for task in tasks:
            task.cancel()

    app = FastAPI(lifespan=working, docs_url=None, redoc_url=None, openapi_url=None)

    app.middleware("http")(partial(guarded, key))
    app.exception_handler(HTTPException)(told)

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "waiting": {name: desk.waiting for name, desk in desks.items()}}

    @app.get("/rewards")
    async def known() -> list[dict]:
        return [{"name": each.name, "version": each.version, "clips": each.clips} for each in rewards]

    @app.post("/score")
    async def score(request: Request) -> Response:
        return await answered(request, desks, limits)

    return app


async def guarded(key: str | None, request: Request, call_next: Any) -> Response:
    """A request without the key goes no further, and nothing of an error but that there was one goes back."""
    given = request.headers.get("authorization", "").encode()
    if key is not None and not hmac.compare_digest(given, f"Bearer {key}".encode()):
        return refusal(401, "a key is needed: Authorization: Bearer KEY")
    try:
        return await call_next(request)
    except Exception:
        log.exception("a request failed")
        return refusal(500, "the service failed; its log says why")


async def told(request: Request, error: HTTPException) -> Response:
    return refusal(error.status_code, str(error.detail))


async def answered(request: Request, desks: Mapping[str, Desk], limits: Limits) -> Response:
    """The scores that a request asks for, in its own language."""
    kind = request.headers.get("content-type", JSON)
    try:
        async with asyncio.timeout(limits.seconds):
            body = await whole(request, limits.megabytes * 2**20)
            desk, images, records = await asyncio.to_thread(lambda: read(unpack(body, kind), desks, limits))
            scored = await desk.answered(images, records)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    except TimeoutError:
        raise HTTPException(504, f"no score within {limits.seconds:g} s") from None
    found = score_reply(scored, desk.reward.version)
    if kind.startswith(MSGPACK):
        return Response(pack(found), media_type=MSGPACK)
    return JSONResponse(found)


def refusal(status: int, said: str) -> Response:
    return JSONResponse({"error": said}, status)


async def whole(request: Request, most: int) -> bytes:
    """The body, of which no more than is allowed is ever in memory."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"a request has at most {most // 2**20} MB here")
        parts.append(part)
    return b"".join(parts)


def read(asked: Any, desks: Mapping[str, Desk], limits: Limits) -> tuple[Desk, list[np.ndarray], list[dict]]:
    """What a request is about; ValueError with one sentence for what it gets wrong."""
    if not isinstance(asked, dict) or not isinstance(asked.get("reward"), str):
        raise ValueError("a request is an object with reward, records and images")
    name, records, images = asked["reward"], asked.get("records"), asked.get("images")
    if name not in desks:
        raise ValueError(f"no reward {name[:60]!r} is served here, only {', '.join(desks)}")
    if not isinstance(records, list) or not isinstance(images, list) or not 0 < len(images) == len(records):
        raise ValueError("records and images are lists of the same length, at least 1")
    if len(images) > limits.images:
        raise ValueError(f"a request has at most {limits.images} images here, not {len(images)}")
    reward = desks[name].reward
    for row, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise ValueError(f'records[{row}] has no "prompt" that is a text')
        if reward.needs is not None:
            reward.needs(record)
    decoded, size = [], 0
    for image in images:
        decoded.append(decode_image(image, limits.pixels))
        size += decoded[-1].nbytes
        if size > limits.megabytes * 2**20:
            raise ValueError(f"a request has at most {limits.megabytes} MB of decoded images here")
    if any(image.ndim != 3 + reward.clips for image in decoded):
        raise ValueError(f"{name} scores {'clips' if reward.clips else 'images'}")
    return desks[name], decoded, records
