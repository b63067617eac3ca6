"""Reward services on a Ray cluster, as many as the load asks for.

    pip install "ray[serve]" 'afterflow[serve]'
    serve run ray_serve:services rewards=hpsv2,pickscore gpus=0.5 most=8

Every replica is what `afterflow serve-rewards` starts, behind Ray's proxy at http://HOST:8000: clients name that one
address.  The key comes from AFTERFLOW_REWARDS_KEY, on every node and at the clients, and without one the proxy must
stay on 127.0.0.1, Ray's own default.
"""

import os

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve


class Options(BaseModel):
    """What `serve run` reads as name=value."""

    rewards: str
    """With commas between."""
    gpus: float = 0.0
    """Of each replica; a share of one where several fit on it."""
    cpus: float = 1.0
    """Of each replica."""
    least: int = 1
    """Replicas at rest."""
    most: int = 4
    """Replicas under load."""
    waiting: int = 4
    """Requests at a replica from which another is started."""
    weights: dict[str, str] = {}
    """Reward: hub id, folder or file, as --reward-models.weights; in a configuration file of Serve's."""


def services(options: Options) -> serve.Application:
    key = os.environ.get("AFTERFLOW_REWARDS_KEY")

    def build() -> FastAPI:  # on the replica: networks are loaded where they run
        from afterflow.rewards.base import RewardModels
        from afterflow.rewards.registry import check_rewards, load_reward
        from afterflow.rewards.remote.server import build_service

        names, models = options.rewards.split(","), RewardModels(weights=options.weights)
        check_rewards(names, models)
        return build_service([load_reward(name, models) for name in names], key=key)

    scaling = {"min_replicas": options.least, "max_replicas": options.most, "target_ongoing_requests": options.waiting}
    return serve.deployment(
        serve.ingress(build)(),
        name="rewards",
        autoscaling_config=scaling,
        max_ongoing_requests=4 * options.waiting,
        ray_actor_options={"num_gpus": options.gpus, "num_cpus": options.cpus},
    ).bind()
