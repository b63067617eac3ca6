"""Rollouts lead from prompts to trees of denoising states.

A plan says what every step does; `sample` carries it out.  A chain is a tree that only branches
at the root, so one sampler serves Flow-GRPO's groups, MixGRPO's window and BranchGRPO's trees.
Letters in shapes: P prompts, W_k states per prompt at time k (W_N = G, the group), N steps, M rows of
parents, K of their children, R rewards that keep advantages of their own.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .conditioning import Conditioning, Velocity
from .device_copies import to_device
from .flow import predict_x0
from .kernels import Gaussian, Kernel, log_prob
from .row_random import RowRandom
from .solvers import second_order

Levels = Sequence[Tensor]
"""N tensors, one for each step of a rollout, (P, W_{k+1}, ...) each."""


@dataclass(frozen=True)
class Plan:
    """A plan says what every step of a rollout does."""

    times: Tensor  # (N+1,) from 1 down to 0
    eta: Tensor  # (N,) noise level of each step; 0 is the ODE
    widths: tuple[int, ...]  # (N+1,) W_k; a step branches where W grows
    train: Tensor  # (N, G) bool: the steps on each leaf's path that are trained on
    split_noise: float | None = None  # λ of siblings' correlated noise (`siblings`); None: independent
    second_order: tuple[int, ...] = ()  # ODE steps by DPM-Solver++ 2M instead of Euler
    density: bool = True  # whether training needs the log-probability of a step, so that it must have one
    states: bool = True  # whether the states on the way are kept; else the finished images are all that stays

    def __post_init__(self) -> None:
        for k, (w, w_next) in enumerate(zip(self.widths, self.widths[1:])):
            if w_next % w:
                raise ValueError(f"step {k}: {w} states cannot have {w_next} children; make it a multiple")
            if (w_next > w or (self.density and bool(self.train[k].any()))) and self.eta[k] == 0:
                raise ValueError(f"step {k} branches or trains, so it must be stochastic: give it eta > 0")
        for k in self.second_order:
            if self.eta[k] > 0:
                raise ValueError(f"step {k} is stochastic, so it cannot be of second order: that solves the ODE")

    @property
    def steps(self) -> int:
        """Return N, the number of steps."""
        return len(self.eta)

    @property
    def evaluations(self) -> float:
        """Return the velocities computed per image; siblings share those of their ancestors."""
        return sum(self.widths[:-1]) / self.widths[-1]

    def trained(self, k: int) -> Tensor:
        """Return which states after step k are trained on, (W_{k+1},) bool."""
        return self.train[k].view(self.widths[k + 1], -1).any(1)


def chain(
    times: Tensor, group: int, eta: float, train: Sequence[int], shared_noise: bool = False, density: bool = True
) -> Plan:
    """Return the plan of G rollouts per prompt, stochastic where trained and ODE elsewhere.

    Args:
        times: The (N+1,) times of the steps.
        group: G.
        eta: Noise level of the stochastic steps.
        train: The steps that are stochastic and trained.
        shared_noise: Whether all rollouts of a prompt start from one noise.  They are then one until the first
            stochastic step, which is where they branch: what all of them would compute alike is computed once.
        density: Whether training needs the log-probability of a step.
    """
    steps = len(times) - 1
    trained = torch.tensor([k in train for k in range(steps)])
    common = min(train, default=-1) + 1 if shared_noise else 0
    widths = (1,) * common + (group,) * (steps + 1 - common)
    return Plan(times, eta * trained, widths, trained[:, None].expand(steps, group), density=density)


class Retained(NamedTuple):
    """Velocities of a step that kept their graph, so that a loss can be differentiated without another pass."""

    velocity: Tensor  # (M, ...), with a graph
    row: Tensor  # (P, W_k) long, on the CPU: which of them is a state's, -1 where the state has none


@dataclass(frozen=True)
class Rollout:
    """A rollout holds the states that a sampler passed on its way from noise to the images of P prompts."""

    plan: Plan
    cond: Conditioning  # P prompts
    x: list[Tensor]  # N+1 of (P, W_k, ...); child j of level k+1 comes from parent j // (W_{k+1} / W_k); or the leaves
    mean: list[Tensor]  # N of (P, W_k, ...): where each step's Gaussian had its mean
    log_prob: list[Tensor]  # N of (P, W_{k+1}), of the step into x[k+1]; 0 where the step was the ODE
    retained: Sequence[Retained | None] = ()  # N, where graphs are retained; None for a step without any

    @property
    def leaves(self) -> Tensor:
        """Return the finished latents (P, G, ...)."""
        return self.x[-1]


@dataclass(frozen=True)
class Retain:
    """The states of a rollout whose velocities keep their graph."""

    states: Levels  # N of (P, W_k) bool
    chunk: int  # rows of a forward pass, which has graphs for all of its rows or for none

    @classmethod
    def parents(cls, plan: Plan, children: Levels, chunk: int) -> "Retain":
        """Retain the states that lead to any of the `children`, N of (P, W_{k+1}) bool."""
        return cls([level.unflatten(1, (plan.widths[k], -1)).any(2) for k, level in enumerate(children)], chunk)

    def __getitem__(self, prompts: Tensor) -> "Retain":
        return Retain([level[prompts] for level in self.states], self.chunk)


@torch.no_grad()
def sample(
    velocity: Velocity,
    kernel: Kernel,
    plan: Plan,
    cond: Conditioning,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    states_device: torch.device | str | None = None,
    retain: Retain | None = None,
) -> Rollout:
    """Denoise noise (P, W_0, ...) as the plan says.  Siblings share one forward pass.

    States keep the dtype of `noise`: they are rounded to it *before* their log-probability is taken, else a replay in
    low precision is biased by the rounding.

    Args:
        velocity: The field to follow.
        kernel: The Gaussian of each step.
        plan: What every step does.
        cond: The P prompts.
        noise: Where the P trees begin, (P, W_0, ...).
        generators: One for each prompt, so that its images depend on no other prompt and on no number of processes.
        states_device: Where states wait for the update, None: where they are made.  The leaves stay, to be decoded.
        retain: The states whose velocities keep their graph; None: no one's.
    """
    xs, means, log_probs, retained = [], [], [], []
    grid = to_device(plan.times, noise.device), to_device(plan.eta, noise.device)
    x, predicted = noise, None  # the images that the last step's velocities pointed at, (P, W, ...)
    for k in range(plan.steps):
        v, graph = _velocity(velocity, grid[0][k], k, cond, x, retain)
        retained.append(graph)
        p, predicted = _step(v, kernel, plan, grid, k, x, predicted)
        mean = p.mean.unflatten(0, x.shape[:2])
        if plan.states:
            xs.append(x.to(states_device))
            means.append(mean.to(states_device))
        if plan.eta[k] == 0:
            x = mean.to(noise.dtype)
            log_probs.append(torch.zeros(x.shape[:2], device=noise.device))
        else:
            p = Gaussian(*(a.repeat_interleave(plan.widths[k + 1] // x.shape[1], 0) for a in p))
            flat = (p.mean + p.std * _fresh_noise(plan, k, generators, noise).flatten(0, 1)).to(noise.dtype)
            x = flat.unflatten(0, (-1, plan.widths[k + 1]))
            log_probs.append(log_prob(p, flat).unflatten(0, x.shape[:2]))
    return Rollout(plan, cond, [*xs, x], means, log_probs, () if retain is None else retained)


def _velocity(
    velocity: Velocity, t: Tensor, k: int, cond: Conditioning, x: Tensor, retain: Retain | None
) -> tuple[Tensor, Retained | None]:
    """Return the velocity at the states x (P, W, ...) of step k, at t (), P·W rows, and those that kept their graph."""
    P, W = x.shape[:2]
    prompt = torch.arange(P).repeat_interleave(W)
    flat, t = x.flatten(0, 1), t.expand(P * W)
    chosen = torch.zeros(P * W, dtype=torch.bool) if retain is None else retain.states[k].flatten()
    if retain is None or not bool(chosen.any()):
        return velocity(flat, t, cond[prompt]), None
    # The chosen come first and fill whole passes with the first of the others, so that no pass is added.
    order = torch.argsort(~chosen, stable=True)
    count = min(P * W, -(-int(chosen.sum()) // retain.chunk) * retain.chunk)
    flat, prompt = flat[to_device(order, x.device)], prompt[order]
    with torch.enable_grad():
        graph = velocity(flat[:count], t[:count], cond[prompt[:count]])
    parts = [graph.detach()]
    if count < P * W:
        parts.append(velocity(flat[count:], t[count:], cond[prompt[count:]]))
    position = torch.empty_like(order).scatter_(0, order, torch.arange(P * W))
    row = position.masked_fill(position >= count, -1).view(P, W)
    return torch.cat(parts)[to_device(position, x.device)], Retained(graph, row)


def _step(
    v: Tensor, kernel: Kernel, plan: Plan, grid: tuple[Tensor, Tensor], k: int, x: Tensor, predicted: Tensor | None
) -> tuple[Gaussian, Tensor | None]:
    """Return the Gaussian of step k from the states x (P, W, ...), P·W rows, and the images they point at.

    Images are predicted, (P, W, ...), only where the plan has steps of second order.

    Args:
        v: Velocities at the states, (P·W, ...).
        kernel: The Gaussian of each step.
        plan: What every step does.
        grid: Its times (N+1,) and noise levels (N,), on the device of the states.
        k: The step.
        x: The states.
        predicted: The images that the states of the last step pointed at.
    """
    (P, W), (times, levels) = x.shape[:2], grid
    t, s, eta = (value.expand(P * W) for value in (times[k], times[k + 1], levels[k]))
    flat = x.flatten(0, 1)
    p = kernel(flat, v, t, s, eta)
    if not plan.second_order:
        return p, None
    x0 = predict_x0(flat.float(), v.float(), t)
    if k in plan.second_order and predicted is not None:
        x0_before = predicted.repeat_interleave(W // predicted.shape[1], 1).flatten(0, 1)
        p = Gaussian(p.mean + second_order(x0, x0_before, times[k - 1].expand(P * W), t, s), p.std)
    return p, x0.unflatten(0, (P, W))


def _fresh_noise(plan: Plan, k: int, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Draw the noise of step k, (P, W_{k+1}, ...), correlated among siblings where the plan says so."""
    W, W_next = plan.widths[k : k + 2]
    fresh = prompt_noise(generators, W_next, like)
    if plan.split_noise is not None and W_next > W:
        fresh = siblings(fresh, prompt_noise(generators, W, like), plan.split_noise)
    return fresh


def concatenate(parts: Sequence[Rollout]) -> Rollout:
    """Join rollouts of several groups of prompts, which are rows of one data set, to the rollout of all."""

    def levels(name: str) -> list[Tensor]:
        return [torch.cat(level) for level in zip(*(getattr(part, name) for part in parts))]

    first = parts[0]
    cond = replace(first.cond, index=torch.cat([part.cond.index for part in parts]))
    return Rollout(first.plan, cond, levels("x"), levels("mean"), levels("log_prob"))


def siblings(child_noise: Tensor, parent_noise: Tensor, lam: float) -> Tensor:
    """Return (ξ + λη) / √(1 + λ²), the children's noise η (P, W', ...) mixed with the parents' ξ (P, W, ...).

    This is BranchGRPO's.  Each child's noise is still standard normal, so its log-probability is the sampler's; two
    siblings' noises have the correlation 1 / (1 + λ²).
    """
    common = parent_noise.repeat_interleave(child_noise.shape[1] // parent_noise.shape[1], 1)
    return (common + lam * child_noise) / math.sqrt(1 + lam**2)


def prompt_noise(generators: Sequence[torch.Generator], width: int, like: Tensor) -> Tensor:
    """Draw standard normal noise (P, width, ...) fp32 in the state shape of like (P, W, ...), a generator a prompt."""
    return RowRandom(generators).normal((width, *like.shape[2:]), like.device)


PARENT_COLUMNS = ("x", "mean", "t", "s", "eta")
CHILD_COLUMNS = ("x_next", "log_prob", "advantage")


@dataclass(frozen=True)
class Transitions:
    """Transitions are steps x_t → x_s cut loose from their trees: M parents, and their K children in the same order."""

    x: Tensor  # (M, ...)
    mean: Tensor  # (M, ...) of the Gaussian that drew the children
    t: Tensor  # (M,)
    s: Tensor  # (M,)
    eta: Tensor  # (M,)
    count: Tensor  # (M,) long, on the CPU: children of each, at least one
    cond: Conditioning  # M rows
    x_next: Tensor  # (K, ...)
    log_prob: Tensor  # (K,) under the policy that took the step
    advantage: Tensor  # (K, R), weights of the rewards included

    @cached_property
    def parent(self) -> Tensor:
        """Return the row of each child's parent, (K,) long, on the device of the states."""
        return to_device(torch.arange(len(self)).repeat_interleave(self.count), self.x.device)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> "Transitions":
        count, first = self.count[rows], self.count.cumsum(0) - self.count
        position = torch.arange(int(count.sum()))  # among all chosen children
        children = (first[rows] - (count.cumsum(0) - count)).repeat_interleave(count) + position
        parents, children = to_device(rows, self.x.device), to_device(children, self.x.device)
        return Transitions(
            **{name: getattr(self, name)[parents] for name in PARENT_COLUMNS},
            count=count,
            cond=self.cond[rows],
            **{name: getattr(self, name)[children] for name in CHILD_COLUMNS},
        )

    def mass(self, rows: Tensor) -> float:
        """Return the number of children that these rows have."""
        return float(self.count[rows].sum())


def trained_children(plan: Plan, advantages: Levels) -> Iterator[tuple[int, Tensor]]:
    """Yield each step k that the plan trains, with a bool (P, W_{k+1}) of the states after it that are trained on.

    advantages: N of (P, W_{k+1}, R) on the CPU; NaN takes a state out of training.
    """
    for k in range(plan.steps):
        if bool(plan.train[k].any()):
            yield k, advantages[k].isfinite().all(-1) & plan.trained(k)


def transitions(rollout: Rollout, advantages: Levels) -> Transitions:
    """Return the steps that the plan trains as rows, step by step and in each step prompt by prompt.

    advantages: N of (P, W_{k+1}, R) on the CPU; NaN takes a state out of training.  Parents that are left with no child
    to train on are dropped.
    """
    levels = [_level(rollout, k, advantages[k], mask) for k, mask in trained_children(rollout.plan, advantages)]
    columns = {name: torch.cat([level[name] for level in levels]) for name in levels[0]}
    prompt, count = columns.pop("prompt"), columns.pop("count")
    device = columns["x"].device
    moved = {name: to_device(column, device) for name, column in columns.items()}
    return Transitions(**moved, count=count, cond=rollout.cond[prompt])


def _level(rollout: Rollout, k: int, advantages: Tensor, trained: Tensor) -> dict[str, Tensor]:
    """Return the columns of the rows of step k, of whose children (P, W_{k+1}) some are trained."""
    plan, W = rollout.plan, rollout.x[k].shape[1]
    count = trained.unflatten(1, (W, -1)).sum(2).flatten()
    parents, children = count.nonzero().squeeze(1), trained.flatten().nonzero().squeeze(1)

    def chosen(states: Tensor, rows: Tensor) -> Tensor:
        return states.flatten(0, 1)[to_device(rows, states.device)]

    return {
        "x": chosen(rollout.x[k], parents),
        "mean": chosen(rollout.mean[k], parents),
        "t": plan.times[k].expand(len(parents)),
        "s": plan.times[k + 1].expand(len(parents)),
        "eta": plan.eta[k].expand(len(parents)),
        "count": count[parents],
        "prompt": parents // W,
        "x_next": chosen(rollout.x[k + 1], children).to(rollout.x[k].device),
        "log_prob": chosen(rollout.log_prob[k], children),
        "advantage": advantages.flatten(0, 1)[children],
    }
