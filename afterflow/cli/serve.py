"""afterflow serve-rewards: score images for runs elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from ..system.errors import ConfigError
from ..system.optional_dependencies import check_extra
from .parsing import parse_options

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..rewards.remote.limits import ServiceLimits


def serve_command(args: Sequence[str]) -> None:
    """Score images for runs elsewhere."""
    parse_options(Serve, args, "afterflow serve-rewards")()


@dataclass(frozen=True)
class Serve:
    """Serve rewards over HTTP.  A run uses them with --reward-models.servers NAME URL."""

    rewards: Positional[tuple[str, ...]]
    """Names of the rewards."""
    port: int = 8100
    """Port of the service."""
    host: str = "127.0.0.1"
    """Address on which it listens.  Any but this machine needs a key in the variable AFTERFLOW_REWARDS_KEY."""
    images: int = 256
    """Number of images in one request, at most."""
    pixels: int = 2048 * 2048
    """Number of pixels of one image, or of all frames of a clip, at most."""
    megabytes: int = 512
    """Size of one request, at most.  All requests together take four times as much memory, at most."""
    seconds: float = 300.0
    """Time for one request, at most."""
    batch: int = 64
    """Number of images, of several clients, that are scored together."""
    connections: int = 512
    """Number of open connections, at most."""
    device: str | None = None
    """Device of rewards that are networks.  None: the first accelerator, or the CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of their weights and forward passes."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Weights by reward, where they are not the published ones: a hub id, a folder or a file."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Numbers that rewards read.  They are geneval_threshold (.3) and geneval_counting_threshold (.9)."""
    ignore_canary: tuple[str, ...] = ()
    """Rewards that are served even though they do not tell the pictures apart on which they are tried."""

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ConfigError("name at least one reward to serve: afterflow serve-rewards NAME...")

    def app(self) -> "FastAPI":
        """Build the service; raise ValueError where a reward does not work here, or where anyone could reach it."""
        from ..rewards.base import RewardModels
        from ..rewards.http import read_key
        from ..rewards.registry import check_rewards, load_reward
        from ..rewards.remote.protocol import REWARDS_KEY
        from ..rewards.remote.server import build_service

        key = read_key(REWARDS_KEY)
        if self.host not in ("127.0.0.1", "localhost", "::1") and not key:
            raise ConfigError(
                f"--host {self.host}: others could reach it; set a key in the environment variable {REWARDS_KEY}"
            )
        models = RewardModels(
            self.device, self.dtype, self.batch, self.weights, self.options, ignore_canary=self.ignore_canary
        )
        check_rewards(self.rewards, models)
        return build_service([load_reward(name, models) for name in self.rewards], self.limits, key)

    @cached_property
    def limits(self) -> "ServiceLimits":
        """Return what requests may cost; raise ConfigError for a limit that is none."""
        from ..rewards.remote.connections import allowed_connections
        from ..rewards.remote.limits import ServiceLimits

        return ServiceLimits(
            self.images,
            self.pixels,
            megabytes=self.megabytes,
            seconds=self.seconds,
            batch=self.batch,
            connections=allowed_connections(self.connections),
        )

    def __call__(self) -> None:
        check_extra("a service", ["fastapi", "uvicorn", "msgpack"], "serve")
        from ..rewards.remote.connections import bind, run_service

        with bind(self.host, self.port) as listener:
            run_service(self.app(), listener, self.limits)
