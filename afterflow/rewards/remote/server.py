"""A service that scores images for other processes.

Requests of several clients are scored together; a reward runs in one thread.  It binds 127.0.0.1 unless it has a key,
reads nothing executable, and tells a client what was wrong with its request and nothing else.
"""

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from ...system.checks import check_positive
from ...system.errors import ConfigError, InputError
from ..base import Reward, Scored, concatenate_scored
from .protocol import JSON, MSGPACK, decode_image, pack, score_reply, unpack

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceLimits:
    """What a request may cost."""

    images: int = 256
    """Largest number of images in a request."""
    pixels: int = 2048 * 2048
    """Largest number of pixels in an image, or in a clip's frames together."""
    megabytes: int = 512
    """Largest size of a request's body, and of its decoded images."""
    waiting: int = 2048
    """Largest number of images that may wait, of all requests.  Requests beyond it are refused with status 503."""
    seconds: float = 300.0
    """Longest time from a request's arrival to its answer."""
    batch: int = 64
    """Largest number of images that are scored together."""
    wait: float = 0.005
    """Seconds that a batch waits for more images."""

    def __post_init__(self) -> None:
        check_positive(self, "images", "pixels", "megabytes", "waiting", "seconds", "batch")


@dataclass(frozen=True)
class PendingRequest:
    """A request that waits for its scores."""

    images: Sequence[np.ndarray]
    records: Sequence[dict]
    scores: asyncio.Future


class BatchQueue:
    """The queue where requests for one reward wait to be scored together."""

    def __init__(self, reward: Reward, limits: ServiceLimits) -> None:
        self.reward, self.limits = reward, limits
        self.queue: asyncio.Queue[PendingRequest] = asyncio.Queue()
        self.waiting = 0

    async def submit(self, images: Sequence[np.ndarray], records: Sequence[dict]) -> Scored:
        """Return the scores of one request's images; raise HTTPException (503) where too many wait already."""
        if self.waiting + len(images) > self.limits.waiting:
            raise HTTPException(503, f"{self.waiting} images wait already; come again")
        request = PendingRequest(images, records, asyncio.get_running_loop().create_future())
        self.waiting += len(images)
        try:
            await self.queue.put(request)
            return await request.scores
        finally:
            self.waiting -= len(images)

    async def work(self) -> None:
        """Score batches of requests until cancelled."""
        while True:
            group = [await self.queue.get()]
            deadline = asyncio.get_running_loop().time() + self.limits.wait
            while sum(len(request.images) for request in group) < self.limits.batch:
                remaining = deadline - asyncio.get_running_loop().time()
                try:
                    group.append(await asyncio.wait_for(self.queue.get(), max(0.0, remaining)))
                except TimeoutError:
                    break
            await self.score([request for request in group if not request.scores.done()])

    async def score(self, group: Sequence[PendingRequest]) -> None:
        """Score the images of several requests, with one call for all images of a shape."""
        images = [image for request in group for image in request.images]
        records = [record for request in group for record in request.records]
        try:
            by_row: dict[int, Scored] = {}
            for rows in self.batches(images):
                stack = np.stack([images[row] for row in rows])
                scored = await asyncio.to_thread(self.reward, stack, [records[row] for row in rows])
                scored = replace(scored, why={i: self.public_reason(why) for i, why in scored.why.items()})
                by_row |= {row: scored.row(i) for i, row in enumerate(rows)}
        except Exception as error:
            _log.exception("reward %s failed", self.reward.name)
            for request in group:
                if not request.scores.done():
                    request.scores.set_exception(HTTPException(500, f"the reward failed: {type(error).__name__}"))
            return
        start = 0
        for request in group:
            rows = range(start, start + len(request.images))
            start += len(request.images)
            if not request.scores.done():
                request.scores.set_result(concatenate_scored([by_row[row] for row in rows]))

    def batches(self, images: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Yield rows of images of one shape, no more than are scored together."""
        for shape in dict.fromkeys(image.shape for image in images):
            rows = [row for row, image in enumerate(images) if image.shape == shape]
            yield from (rows[i : i + self.limits.batch] for i in range(0, len(rows), self.limits.batch))

    def public_reason(self, why: str) -> str:
        """Return a reason without the message of an exception, which stays in the log."""
        kind = re.match(r"\w*(Error|Exception|Unanswered|Failed)(?=: )", why)
        if kind is None:
            return why
        _log.warning("reward %s: %s", self.reward.name, why)
        return f"{kind.group(0)}; the service's log says more"


def build_service(
    rewards: Sequence[Reward], limits: ServiceLimits = ServiceLimits(), key: str | None = None
) -> FastAPI:
    """Return a service with GET /health, GET /rewards and POST /score, whose messages `protocol` describes.

    With a key it answers to `Authorization: Bearer KEY` alone.  Raises ConfigError for a reward that is there twice.
    """
    queues = {reward.name: BatchQueue(reward, limits) for reward in rewards}
    if len(queues) < len(rewards):
        raise ConfigError(f"rewards: one of {', '.join(reward.name for reward in rewards)} is there twice")

    @asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(queue.work()) for queue in queues.values()]
        yield
        for task in tasks:
            task.cancel()

    app = FastAPI(lifespan=working, docs_url=None, redoc_url=None, openapi_url=None)

    app.middleware("http")(partial(require_key, key))

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "waiting": {name: queue.waiting for name, queue in queues.items()}}

    @app.get("/rewards")
    async def served() -> list[dict]:
        return [{"name": reward.name, "version": reward.version, "clips": reward.clips} for reward in rewards]

    @app.post("/score")
    async def score(request: Request) -> Response:
        return await answer_request(request, queues, limits)

    return app


async def require_key(key: str | None, request: Request, call_next: Any) -> Response:
    """Refuse a request without the key, and answer an exception without saying what it was."""
    given = request.headers.get("authorization", "").encode()
    if key is not None and not hmac.compare_digest(given, f"Bearer {key}".encode()):
        return JSONResponse({"error": "a key is needed: Authorization: Bearer KEY"}, 401)
    try:
        return await call_next(request)
    except Exception:
        _log.exception("a request failed")
        return JSONResponse({"error": "the service failed; its log says why"}, 500)


async def answer_request(request: Request, queues: Mapping[str, BatchQueue], limits: ServiceLimits) -> Response:
    """Return the scores that a request asks for, in its own content type."""
    kind = request.headers.get("content-type", JSON)
    try:
        async with asyncio.timeout(limits.seconds):
            body = await read_body(request, limits.megabytes * 2**20)
            parse = lambda: parse_request(unpack(body, kind), queues, limits)
            queue, images, records = await asyncio.to_thread(parse)
            scored = await queue.submit(images, records)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    except TimeoutError:
        raise HTTPException(504, f"no score within {limits.seconds:g} s") from None
    message = score_reply(scored, queue.reward.version)
    return Response(pack(message), media_type=MSGPACK) if kind.startswith(MSGPACK) else JSONResponse(message)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request, of which no more than is allowed is ever in memory; HTTPException (413) beyond."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise HTTPException(413, f"a request has at most {max_bytes // 2**20} MB here")
        parts.append(part)
    return b"".join(parts)


def parse_request(
    message: Any, queues: Mapping[str, BatchQueue], limits: ServiceLimits
) -> tuple[BatchQueue, list[np.ndarray], list[dict]]:
    """Return the queue, the images and the records of a request; raise InputError that says what it gets wrong."""
    if not isinstance(message, dict) or not isinstance(message.get("reward"), str):
        raise InputError("a request is an object with reward, records and images")
    name, records, images = message["reward"], message.get("records"), message.get("images")
    if name not in queues:
        raise InputError(f"no reward {name[:60]!r} is served here, only {', '.join(queues)}")
    if not isinstance(records, list) or not isinstance(images, list) or not 0 < len(images) == len(records):
        raise InputError("records and images are lists of the same length, at least 1")
    if len(images) > limits.images:
        raise InputError(f"a request has at most {limits.images} images here, not {len(images)}")
    reward = queues[name].reward
    for row, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise InputError(f'records[{row}] has no "prompt" that is a text')
        if reward.needs is not None:
            reward.needs(record)
    decoded, size = [], 0
    for image in images:
        decoded.append(decode_image(image, limits.pixels))
        size += decoded[-1].nbytes
        if size > limits.megabytes * 2**20:
            raise InputError(f"a request has at most {limits.megabytes} MB of decoded images here")
    if any(image.ndim != 3 + reward.clips for image in decoded):
        raise InputError(f"{name} scores {'clips' if reward.clips else 'images'}")
    return queues[name], decoded, records
