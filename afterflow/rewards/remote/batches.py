"""Requests that wait to be scored together, and the thread in which a reward scores them."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...system.errors import AfterflowError
from ..base import ErrorReason, Reward, Scored, concatenate_scored, public_kind
from .activity import Activity
from .limits import Busy, ServiceLimits, Share

_log = logging.getLogger(__name__)

MAX_HUNG = 2
"""Calls of a reward that have not come back in time, from which on it gets no more of them."""


class RewardFailed(AfterflowError):
    """A reward that gave no scores; the message says so in words that anyone may read."""


@dataclass(frozen=True, eq=False)
class PendingRequest:
    """A request that waits for its scores."""

    images: Sequence[np.ndarray]
    records: Sequence[dict]
    share: Share
    scores: "asyncio.Future[Scored]"


class RewardThread:
    """A thread for the calls of one reward.  One that hangs is left behind: a thread cannot be ended from outside."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="reward", daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> Future:
        """Return the future of a call."""
        future: Future = Future()
        self.calls.put((future, call))
        return future

    def end(self) -> None:
        """Let the thread end after the calls that it has."""
        self.calls.put(None)

    def _work(self) -> None:
        while (item := self.calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:  # SystemExit would end the service, and KeyboardInterrupt is not the user's
                _log.exception("a reward failed")
                future.set_exception(RewardFailed(f"the reward failed: {public_kind(error)}"))
            del item, future, call  # images, which would stay until the next call


class BatchQueue:
    """The queue where requests for one reward wait to be scored together."""

    def __init__(self, reward: Reward, limits: ServiceLimits, activity: Activity) -> None:
        self.reward, self.limits, self.activity = reward, limits, activity
        self.pending: dict[PendingRequest, None] = {}
        self.arrived, self.returned = asyncio.Event(), asyncio.Event()
        self.waiting, self.hung, self.failing = 0, 0, False
        self.calling_since: float | None = None
        self.thread = RewardThread()

    @property
    def condition(self) -> str:
        """Return how the reward is: ok, failing where its last call failed, or hanging where calls do not come back."""
        return "hanging" if self.hung else "failing" if self.failing else "ok"

    @property
    def is_stuck(self) -> bool:
        """Whether so many calls hang that it takes no more requests."""
        return self.hung >= MAX_HUNG

    @property
    def busy_seconds(self) -> float:
        """Return for how long the present call has been running."""
        return 0.0 if self.calling_since is None else time.monotonic() - self.calling_since

    async def submit(self, images: Sequence[np.ndarray], records: Sequence[dict], share: Share) -> Scored:
        """Return the scores of one request's images; raise Busy where too many wait, and RewardFailed."""
        if self.waiting + len(images) > self.limits.waiting:
            raise Busy(f"{self.waiting} images wait already; come again")
        if self.is_stuck:
            raise Busy(f"{self.reward.name} hangs: {self.hung} of its calls have not come back")
        request = PendingRequest(images, records, share, asyncio.get_running_loop().create_future())
        self.waiting += len(images)
        self.pending[request] = None
        self.arrived.set()
        try:
            return await request.scores
        finally:
            self.waiting -= len(images)
            self.pending.pop(request, None)
            del request  # whose exception would hold this frame, and with it the images

    async def work(self) -> None:
        """Score batches of requests until cancelled."""
        while True:
            await self.arrived.wait()
            deadline = asyncio.get_running_loop().time() + self.limits.wait
            while sum(len(request.images) for request in self.pending) < self.limits.batch:
                self.arrived.clear()
                try:
                    async with asyncio.timeout_at(deadline):
                        await self.arrived.wait()
                except TimeoutError:
                    break
            await self.score(self.take_group())
            if self.pending:
                self.arrived.set()

    def take_group(self) -> list[PendingRequest]:
        """Return the requests that have waited longest, as many as fill a batch."""
        group, count = [], 0
        while self.pending and count < self.limits.batch:
            request = next(iter(self.pending))
            del self.pending[request]
            group.append(request)
            count += len(request.images)
        return group

    async def score(self, group: Sequence[PendingRequest]) -> None:
        """Score several requests together; where that fails, each alone, so that none fails for another's sake."""
        group = [request for request in group if not request.scores.done()]
        if not group:
            return
        try:
            scored = await self.score_together(group)
            self.failing = all(is_exception(each, row) for each in scored for row in range(len(each.values)))
            answers = [self.public(each) for each in scored]
        except Exception as error:
            if len(group) > 1 and not isinstance(error, TimeoutError):
                for request in group:
                    await self.score([request])
                return
            self.failing = True
            self.activity.count("failed calls")
            for request in group:
                if not request.scores.done():
                    request.scores.set_exception(self.public_error(error).with_traceback(None))
            return
        for request, answer in zip(group, answers):
            if not request.scores.done():
                request.scores.set_result(answer)

    async def score_together(self, group: Sequence[PendingRequest]) -> list[Scored]:
        """Return the scores of each request, with one call for all images of a shape."""
        images = [image for request in group for image in request.images]
        records = [record for request in group for record in request.records]
        by_row: dict[int, Scored] = {}
        for rows in self.batches(images):
            scored = await self.call([images[row] for row in rows], [records[row] for row in rows], group)
            self.activity.count(f"images of {self.reward.name}", len(rows))
            by_row |= {row: scored.row(i) for i, row in enumerate(rows)}
        ends = np.cumsum([len(request.images) for request in group]).tolist()
        return [
            concatenate_scored([by_row[row] for row in range(end - len(request.images), end)])
            for request, end in zip(group, ends)
        ]

    async def call(
        self, images: Sequence[np.ndarray], records: Sequence[dict], group: Sequence[PendingRequest]
    ) -> Scored:
        """Return the scores of images of one shape; raise TimeoutError and take another thread where the reward hangs.

        The memory of the requests stays taken until the call comes back.
        """
        held = ExitStack()
        for request in group:
            held.enter_context(request.share)
        future = self.thread.submit(lambda: self.reward(np.stack(images), records))
        future.add_done_callback(lambda _: held.close())
        self.calling_since, result = time.monotonic(), asyncio.wrap_future(future)
        result.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to ask for it
        try:
            done, _ = await asyncio.wait([result], timeout=self.limits.seconds)
        finally:
            self.calling_since = None
        if done:
            return done.pop().result()
        _log.error("reward %s has not come back for %g s", self.reward.name, self.limits.seconds)
        await self.leave_behind(future)
        raise TimeoutError

    async def leave_behind(self, future: Future) -> None:
        """Go on in another thread, or wait where too many calls hang."""
        self.hung += 1
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self.come_back))
        self.thread.end()
        self.thread = RewardThread()
        while self.is_stuck:
            for request in list(self.pending):
                if not request.scores.done():
                    request.scores.set_exception(Busy(f"{self.reward.name} hangs"))
            self.returned.clear()
            await self.returned.wait()

    def come_back(self) -> None:
        """Count a call that was left behind as ended."""
        self.hung -= 1
        self.returned.set()

    def batches(self, images: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Yield rows of images of one shape, no more than are scored together."""
        for shape in dict.fromkeys(image.shape for image in images):
            rows = [row for row, image in enumerate(images) if image.shape == shape]
            yield from (rows[i : i + self.limits.batch] for i in range(0, len(rows), self.limits.batch))

    def public(self, scored: Scored) -> Scored:
        """Return scores whose reasons repeat no exception: its words stay in the log."""
        for reason in dict.fromkeys(reason for reason in scored.why.values() if isinstance(reason, ErrorReason)):
            _log.warning("reward %s: %s", self.reward.name, reason)
        words = lambda why: f"{why.kind}; the service's log says more" if isinstance(why, ErrorReason) else str(why)
        return replace(scored, why={row: words(why) for row, why in scored.why.items()})

    def public_error(self, error: Exception) -> Exception:
        """Return an error in words that a client may read."""
        if isinstance(error, RewardFailed | TimeoutError):
            return error
        _log.error("reward %s gave no scores", self.reward.name, exc_info=error)
        return RewardFailed(f"the reward failed: {public_kind(error)}")


def is_exception(scored: Scored, row: int) -> bool:
    """Whether an image has no score because the reward raised an exception on it."""
    return isinstance(scored.why.get(row), ErrorReason)
