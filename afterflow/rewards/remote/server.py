"""A service that scores images for other processes.

Requests of several clients are scored together; a reward runs in one thread.  It binds 127.0.0.1 unless it has a key,
reads nothing executable, and tells a client what was wrong with its request and nothing else.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from ...system.errors import ConfigError, InputError
from ..base import Reward
from ..http import check_key
from ..messages import MAX_RECORD, VALUE_BYTES, count_values, length_of_texts
from .activity import Activity, bound_logs
from .batches import BatchQueue, RewardFailed
from .gate import Gate, content_type
from .limits import BODY_RATE, BODY_SECONDS, DECODING_BYTES, JSON_MEGABYTES, Busy, MemoryBudget, ServiceLimits, Share
from .protocol import JSON, MAX_REASON, MSGPACK, REWARDS_KEY, decode_image, image_pixels, pack, score_reply, unpack

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

DEFAULT_LIMITS = ServiceLimits()
PARSERS = 2
"""Number of requests that are parsed at a time."""


class Left(Exception):
    """The client has left, and nobody waits for the answer."""


def build_service(rewards: Sequence[Reward], limits: ServiceLimits = DEFAULT_LIMITS, key: str | None = None) -> FastAPI:
    """Return a service with GET /health, GET /rewards and POST /score, whose messages `protocol` describes.

    With a key it answers to `Authorization: Bearer KEY` alone.  Raises ConfigError for a reward that is there twice,
    and for a key that no header can hold.
    """
    if key is not None:
        check_key(REWARDS_KEY, key)
    activity = Activity()
    queues = {reward.name: BatchQueue(reward, limits, activity) for reward in rewards}
    if len(queues) < len(rewards):
        raise ConfigError(f"rewards: one of {', '.join(reward.name for reward in rewards)} is there twice")
    scorer = RequestScorer(queues, limits)
    app = FastAPI(lifespan=partial(working, scorer, activity), docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, key=key, limits=limits, activity=activity)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse(*describe_health(queues))

    @app.get("/rewards")
    async def served() -> list[dict]:
        return [{"name": reward.name, "version": reward.version, "clips": reward.clips} for reward in rewards]

    @app.post("/score")
    async def score(request: Request) -> Response:
        return await answer_request(request, scorer)

    return app


@asynccontextmanager
async def working(scorer: "RequestScorer", activity: Activity, app: FastAPI) -> AsyncIterator[None]:
    """Score and report while the service runs."""
    bound_logs()
    tasks = [asyncio.create_task(queue.work()) for queue in scorer.queues.values()]
    tasks.append(asyncio.create_task(activity.report(scorer.budget)))
    yield
    for task in tasks:
        task.cancel()
    for queue in scorer.queues.values():
        queue.thread.end()


def describe_health(queues: Mapping[str, BatchQueue]) -> tuple[dict[str, Any], int]:
    """Return how the rewards are, and the status: 503 where none of them answers any more."""
    conditions = {name: queue.condition for name, queue in queues.items()}
    health = {
        "status": "ok" if set(conditions.values()) <= {"ok"} else "degraded",
        "rewards": conditions,
        "waiting": {name: queue.waiting for name, queue in queues.items()},
        "busy_seconds": {name: round(queue.busy_seconds, 1) for name, queue in queues.items()},
    }
    return health, 503 if queues and all(queue.is_stuck for queue in queues.values()) else 200


async def answer_request(request: Request, scorer: "RequestScorer") -> Response:
    """Return the scores that a request asks for, in its own content type."""
    kind, limits = content_type(request.headers.get("content-type")), scorer.limits
    if kind not in (MSGPACK, JSON):
        raise HTTPException(415, f"the content type of a request is {MSGPACK} or {JSON}")
    try:
        async with asyncio.timeout(limits.seconds):
            with Share(scorer.budget) as share:
                body = await read_body(request, kind, scorer.max_megabytes(kind), share)
                message = await unless_client_leaves(request, scorer.score(body, kind, share))
    except Left:
        return Response(status_code=499)
    except InputError as error:
        raise HTTPException(422, str(error)[:MAX_REASON]) from None
    except Busy as error:
        raise HTTPException(503, str(error)) from None
    except RewardFailed as error:
        raise HTTPException(500, str(error)) from None
    except TimeoutError:
        raise HTTPException(504, f"no score within {limits.seconds:g} s") from None
    return Response(pack(message), media_type=MSGPACK) if kind == MSGPACK else JSONResponse(message)


async def read_body(request: Request, kind: str, max_megabytes: int, share: Share) -> bytearray:
    """Return the body of a request, of which no more than is allowed is ever in memory.

    HTTPException is raised for one that is too large (413), or comes too slowly (408).
    """
    body, start = bytearray(), asyncio.get_running_loop().time()
    too_large = f"a request in {kind} has at most {max_megabytes} MB here"
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_megabytes * 2**20:
        raise HTTPException(413, too_large)
    try:
        async with asyncio.timeout(BODY_SECONDS) as patience:
            async for part in request.stream():
                share.take(len(part))
                body += part
                if len(body) > max_megabytes * 2**20:
                    raise HTTPException(413, too_large)
                patience.reschedule(start + BODY_SECONDS + len(body) / BODY_RATE)
    except TimeoutError:
        raise HTTPException(408, f"the body came more slowly than {BODY_RATE // 1000} kB a second") from None
    return body


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of some work; cancel it and raise Left where the client of a request leaves before."""
    task = asyncio.create_task(work)
    leaving = asyncio.ensure_future(request.receive())  # the body is read, so what comes next is the end
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Left
        return task.result()
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.wait({task, leaving})
        del task  # whose exception would hold this frame, and with it the body


class RequestScorer:
    """The parts of a service that all its requests share."""

    def __init__(self, queues: Mapping[str, BatchQueue], limits: ServiceLimits) -> None:
        self.queues, self.limits, self.budget = queues, limits, MemoryBudget(limits.total_bytes)
        self.parsers = ThreadPoolExecutor(PARSERS, "parser")

    def max_megabytes(self, kind: str) -> int:
        """Return the largest size of a body of this content type."""
        return self.limits.megabytes if kind == MSGPACK else min(self.limits.megabytes, JSON_MEGABYTES)

    async def score(self, body: bytearray, kind: str, share: Share) -> dict[str, Any]:
        """Return the reply to a request; raise InputError for one that is not right, Busy, and RewardFailed."""
        parse = lambda: self.parse(body, kind, share)
        queue, images, records = await asyncio.get_running_loop().run_in_executor(self.parsers, parse)
        return score_reply(await queue.submit(images, records, share), queue.reward.version)

    def parse(self, body: bytearray, kind: str, share: Share) -> tuple[BatchQueue, list[np.ndarray], list[dict]]:
        """Return the queue, the images and the records of a request, and take the memory for them first."""
        with share:  # whose client may leave meanwhile
            if kind == JSON:
                # Its text, in up to four bytes a character, and what is cut from it.
                self.take(share, (2 if body.isascii() else 5) * len(body))
            message = unpack(body, kind, self.limits.values)
            self.take(share, VALUE_BYTES * count_values(message))
            queue, messages, records = parse_request(message, self.queues, self.limits)
            self.take(share, self.memory_of_images(messages))
            images = [decode_image(image, self.limits.pixels) for image in messages]
            if any(image.ndim != 3 + queue.reward.clips for image in images):
                raise InputError(f"{queue.reward.name} scores {'clips' if queue.reward.clips else 'images'}")
            return queue, images, records

    def memory_of_images(self, messages: Sequence[dict]) -> int:
        """Return the memory that decoding images will take, by their headers; raise InputError where it is too much."""
        pixels = [image_pixels(image, self.limits.pixels) for image in messages]
        if 3 * sum(pixels) > self.limits.megabytes * 2**20:
            raise InputError(f"a request has at most {self.limits.megabytes} MB of decoded images here")
        decoded = [size for size, image in zip(pixels, messages) if "png" in image]
        return 3 * sum(decoded) + DECODING_BYTES * max(decoded, default=0)

    def take(self, share: Share, size: int) -> None:
        """Take memory for a request; raise InputError where it would not fit even alone."""
        if share.size + size > self.limits.total_bytes:
            raise InputError(f"it takes more memory than the {4 * self.limits.megabytes} MB of all requests here")
        share.take(size)


def parse_request(
    message: Any, queues: Mapping[str, BatchQueue], limits: ServiceLimits
) -> tuple[BatchQueue, list[Any], list[dict]]:
    """Return the queue, the images' messages and the records of a request; raise InputError where it is not right."""
    if not isinstance(message, dict) or not isinstance(message.get("reward"), str):
        raise InputError("a request is an object with reward, records and images")
    name, records, images = message["reward"], message.get("records"), message.get("images")
    if name not in queues:
        raise InputError(f"no reward {name[:60]!r} is served here, only {', '.join(queues)}")
    if not isinstance(records, list) or not isinstance(images, list) or not 0 < len(images) == len(records):
        raise InputError("records and images are lists of the same length, at least 1")
    if len(images) > limits.images:
        raise InputError(f"a request has at most {limits.images} images here, not {len(images)}")
    for row, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise InputError(f'records[{row}] has no "prompt" that is a text')
        if length_of_texts(record, row) > MAX_RECORD:
            raise InputError(f"records[{row}] has more than {MAX_RECORD} characters")
        check_needs(queues[name].reward, record, row)
    return queues[name], images, records


def check_needs(reward: Reward, record: dict, row: int) -> None:
    """Raise InputError where a record lacks what a reward reads.

    Only errors of ours are told in their words, and none that repeats another's.
    """
    if reward.needs is None:
        return
    try:
        reward.needs(record)
    except Exception as error:
        if isinstance(error, InputError) and error.__context__ is None:
            raise
        _log.warning("reward %s: records[%d]: %r", reward.name, row, error)
        raise InputError(f"records[{row}] is not what {reward.name} reads") from error
