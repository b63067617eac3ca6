"""What requests to a reward service may cost, and how much memory all of them take."""

import threading
from dataclasses import dataclass, field

from ...system.checks import check_positive
from ...system.errors import AfterflowError
from ..messages import MAX_VALUES, VALUE_BYTES

JSON_MEGABYTES = 64
"""Largest body in JSON, which is built in one go; larger ones travel as msgpack."""
DECODING_BYTES = 24
"""Memory that decoding a PNG takes for each of its pixels, besides its result."""
BODY_SECONDS, BODY_RATE = 10.0, 100_000
"""How long the first bytes of a body may take, and the bytes a second of the rest."""


class Busy(AfterflowError):
    """A request that there is no room for at present."""


@dataclass(frozen=True)
class ServiceLimits:
    """What requests may cost."""

    images: int = 256
    """Largest number of images in a request."""
    pixels: int = 2048 * 2048
    """Largest number of pixels in an image, or in a clip's frames together."""
    megabytes: int = 512
    """Largest size of a request's body, and of its decoded images.  All requests together have four times as much."""
    waiting: int = 2048
    """Largest number of images that may wait, of all requests.  Requests beyond it are refused with status 503."""
    seconds: float = 300.0
    """Longest time from a request's arrival to its answer, and of a call of a reward."""
    batch: int = 64
    """Largest number of images that are scored together."""
    wait: float = 0.005
    """Seconds that a batch waits for more images."""
    connections: int = 512
    """Largest number of open connections.  Beyond it the one that has waited longest for a request is closed."""
    header_seconds: float = 10.0
    """Longest time from a connection's start, or a request's first byte, to the end of its headers."""

    def __post_init__(self) -> None:
        names = ("images", "pixels", "megabytes", "waiting", "seconds", "batch", "connections", "header_seconds")
        check_positive(self, *names)

    @property
    def total_bytes(self) -> int:
        """Return the memory of all requests together."""
        return 4 * self.megabytes * 2**20

    @property
    def values(self) -> int:
        """Return the largest number of values in a request."""
        return min(MAX_VALUES, self.total_bytes // VALUE_BYTES // 4)


class MemoryBudget:
    """The memory that requests may take together."""

    def __init__(self, total: int) -> None:
        self.total, self.used, self.freed, self.lock = total, 0, 0, threading.Lock()

    def take(self, size: int) -> None:
        """Count memory as used; raise Busy where that is more than there is."""
        with self.lock:
            if self.used + size > self.total:
                raise Busy("other requests take the memory there is; come again")
            self.used += size

    def give_back(self, size: int) -> None:
        """Count memory as free again."""
        with self.lock:
            self.used -= size
            self.freed += size


@dataclass
class Share:
    """The memory of one request, which is given back when the last one who holds it has left the `with`."""

    budget: MemoryBudget
    size: int = 0
    holders: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, size: int) -> None:
        """Take more memory; raise Busy where there is too little."""
        self.budget.take(size)
        self.size += size

    def __enter__(self) -> "Share":
        with self.lock:
            self.holders += 1
        return self

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.holders -= 1
            if self.holders == 0:
                self.budget.give_back(self.size)
                self.size = 0
