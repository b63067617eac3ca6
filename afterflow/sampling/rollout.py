"""Rollouts: from prompts to trees of denoising states.

A plan says what every step does; `sample` carries it out.  A chain is a tree that only branches
at the root, so one sampler serves Flow-GRPO's groups, MixGRPO's window and BranchGRPO's trees.
Letters in shapes: P prompts, W_k states per prompt at time k (W_N = G, the group), N steps, M rows of
parents, K of their children, R rewards that keep advantages of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .conditioning import Conditioning, Velocity
from .flow import predict_x0
from .kernels import Gaussian, Kernel, log_prob
from .row_random import RowRandom
from .solvers import second_order


@dataclass(frozen=True)
class Plan:
    times: Tensor  # (N+1,) from 1 down to 0
    eta: Tensor  # (N,) noise level of each step; 0 is the ODE
    widths: tuple[int, ...]  # (N+1,) W_k; a step branches where W grows
    train: Tensor  # (N, G) bool: the steps on each leaf's path that are trained on
    split_noise: float | None = None  # λ of siblings' correlated noise (`siblings`); None: independent
    second_order: tuple[int, ...] = ()  # ODE steps by DPM-Solver++ 2M instead of Euler
    density: bool = True  # whether training asks for the log-probability of a step, so that it must have one

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
        return len(self.eta)

    @property
    def evaluations(self) -> float:
        """Velocities computed per image: siblings share those of their ancestors."""
        return sum(self.widths[:-1]) / self.widths[-1]

    def trained(self, k: int) -> Tensor:
        """(W_{k+1},) bool: which states after step k are trained on."""
        return self.train[k].view(self.widths[k + 1], -1).any(1)


def chain(
    times: Tensor, group: int, eta: float, train: Sequence[int], shared_noise: bool = False, density: bool = True
) -> Plan:
    """G rollouts per prompt, stochastic where trained and ODE elsewhere.

    With shared noise they are one until the first stochastic step, which is where they branch: what all of them
    would compute alike is computed once.
    """
    steps = len(times) - 1
    trained = torch.tensor([k in train for k in range(steps)])
    alike = min(train, default=-1) + 1 if shared_noise else 0
    sizes = (1,) * alike + (group,) * (steps + 1 - alike)
    return Plan(times, eta * trained, sizes, trained[:, None].expand(steps, group), density=density)


@dataclass(frozen=True)
class Rollout:
    plan: Plan
    cond: Conditioning  # P prompts
    x: list[Tensor]  # N+1 of (P, W_k, ...); child j of level k+1 comes from parent j // (W_{k+1} / W_k)
    mean: list[Tensor]  # N of (P, W_k, ...): where each step's Gaussian had its mean
    log_prob: list[Tensor]  # N of (P, W_{k+1}), of the step into x[k+1]; 0 where the step was the ODE
    # (P,) long: which these prompts are, where log_prob is of other processes' too
    mine: Tensor | slice = field(default_factory=lambda: slice(None))

    @property
    def leaves(self) -> Tensor:
        """The finished latents (P, G, ...)."""
        return self.x[-1]


@torch.no_grad()
def sample(
    velocity: Velocity,
    kernel: Kernel,
    plan: Plan,
    cond: Conditioning,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    keep: torch.device | str | None = None,
) -> Rollout:
    """Denoise noise (P, W_0, ...) as the plan says.  Siblings share one forward pass.

    Each prompt draws from a generator of its own, so that its images depend neither on the other
    prompts nor on how many processes share them.  States keep the dtype of `noise`: they are rounded to
    it *before* their log-probability is taken, else a replay in low precision is biased by the rounding.
    What the update needs is moved to the device `keep`, if any; the leaves stay, to be decoded.
    """
    times, etas = plan.times.to(noise.device), plan.eta.to(noise.device)
    x, xs, means, log_probs = noise, [], [], []
    predicted = None  # the images that the last step's velocities pointed at, (P, W, ...)
    for k in range(plan.steps):
        xs.append(x.to(keep))
        P, W = x.shape[:2]
        rows = torch.arange(P, device=noise.device).repeat_interleave(W)
        t, s, eta = (value.expand(P * W) for value in (times[k], times[k + 1], etas[k]))
        flat = x.flatten(0, 1)
        v = velocity(flat, t, cond[rows])
        p = kernel(flat, v, t, s, eta)
        if plan.second_order:
            x0, before = predict_x0(flat.float(), v.float(), t), predicted
            predicted = x0.unflatten(0, (P, W))
            if k in plan.second_order and before is not None:
                x0_before = before.repeat_interleave(W // before.shape[1], 1).flatten(0, 1)
                p = Gaussian(p.mean + second_order(x0, x0_before, times[k - 1].expand(P * W), t, s), p.std)
        mean = p.mean.unflatten(0, (P, W))
        means.append(mean.to(keep))
        if plan.eta[k] == 0:
            x = mean.to(noise.dtype)
            log_probs.append(torch.zeros(P, W, device=noise.device))
        else:
            p = Gaussian(*(a.repeat_interleave(plan.widths[k + 1] // W, 0) for a in p))
            fresh = prompt_noise(generators, plan.widths[k + 1], noise)
            if plan.split_noise is not None and plan.widths[k + 1] > W:
                fresh = siblings(fresh, prompt_noise(generators, W, noise), plan.split_noise)
            flat = (p.mean + p.std * fresh.flatten(0, 1)).to(noise.dtype)
            x = flat.unflatten(0, (P, -1))
            log_probs.append(log_prob(p, flat).unflatten(0, (P, -1)))
    return Rollout(plan, cond, [*xs, x], means, log_probs)


def concatenate(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of some prompts after another, as of all; their prompts are rows of one data set."""
    first = parts[0]
    levels = lambda kind: [torch.cat(level) for level in zip(*(getattr(part, kind) for part in parts))]
    cond = replace(first.cond, index=torch.cat([part.cond.index for part in parts]))
    return Rollout(first.plan, cond, levels("x"), levels("mean"), levels("log_prob"))


def siblings(own: Tensor, shared: Tensor, lam: float) -> Tensor:
    """(ξ + λη) / √(1 + λ²): own noise η (P, W', ...) mixed with the parents' ξ (P, W, ...), as in BranchGRPO.

    Each child's noise is still standard normal, so its log-probability is the sampler's; two siblings' noises
    have the correlation 1 / (1 + λ²).
    """
    common = shared.repeat_interleave(own.shape[1] // shared.shape[1], 1)
    return (common + lam * own) / math.sqrt(1 + lam**2)


def prompt_noise(generators: Sequence[torch.Generator], width: int, like: Tensor) -> Tensor:
    """Standard normal (P, width, ...) fp32 in the state shape of like (P, W, ...), a generator per prompt."""
    return RowRandom(generators).normal((width, *like.shape[2:])).to(like.device)


@dataclass(frozen=True)
class Transitions:
    """Steps x_t → x_s cut loose from their trees, to train on: M parents, and their K children in the same order."""

    x: Tensor  # (M, ...)
    mean: Tensor  # (M, ...) of the Gaussian that drew the children
    t: Tensor  # (M,)
    s: Tensor  # (M,)
    eta: Tensor  # (M,)
    count: Tensor  # (M,) long: children of each, at least one
    cond: Conditioning  # M rows
    x_next: Tensor  # (K, ...)
    log_prob: Tensor  # (K,) under the policy that took the step
    advantage: Tensor  # (K, R), weights of the rewards included
    place: Tensor  # (M,) long: of each parent among those of all processes
    total: int  # how many those are
    prompt: Tensor  # (M,) long: of which prompt, among those of all processes

    @property
    def parent(self) -> Tensor:
        """(K,) long: whose child each is."""
        return torch.arange(len(self), device=self.count.device).repeat_interleave(self.count)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> "Transitions":
        count, first = self.count[rows], self.count.cumsum(0) - self.count
        place = torch.arange(int(count.sum()), device=count.device)  # of a child among all that are chosen
        children = (first[rows] - (count.cumsum(0) - count)).repeat_interleave(count) + place
        of_children = {name: getattr(self, name)[children] for name in ("x_next", "log_prob", "advantage")}
        parents = ("x", "mean", "t", "s", "eta", "count", "cond", "place", "prompt")
        of_parents = {name: getattr(self, name)[rows] for name in parents}
        return Transitions(**of_parents, **of_children, total=self.total)

    def mass(self, rows: Tensor) -> float:
        """How many children these rows have."""
        return float(self.count[rows].sum())


def transitions(rollout: Rollout, advantages: Sequence[Tensor]) -> Transitions:
    """The steps that the plan trains, as rows.  advantages: N of (P, W_{k+1}, R), NaN = do not train.

    They are those of all prompts, the rollout's own and other processes'.  Parents that are left with no child to
    train on are dropped.
    """
    plan, total, levels = rollout.plan, 0, []
    for k in range(plan.steps):
        if bool(plan.train[k].any()):
            level, many = _level(rollout, k, advantages[k])
            levels.append(level | {"place": level["place"] + total})
            total += many
    columns = {name: torch.cat([level[name] for level in levels]) for name in levels[0]}
    own = columns["prompt"]
    columns["prompt"] = torch.arange(len(rollout.log_prob[0]), device=own.device)[rollout.mine][own]
    return Transitions(**columns, cond=rollout.cond[own], total=total)


def _level(rollout: Rollout, k: int, advantages: Tensor) -> tuple[dict[str, Tensor], int]:
    """The columns of the edges of step k, and how many parents all processes have there."""
    plan, x = rollout.plan, rollout.x[k]
    W = x.shape[1]
    trained = advantages.isfinite().all(-1) & plan.trained(k).to(advantages.device)
    counts = trained.unflatten(1, (W, -1)).sum(2)
    places = (counts > 0).flatten().cumsum(0).view_as(counts) - 1
    kept, advantage = trained[rollout.mine].to(x.device), advantages[rollout.mine].to(x.device)
    count = counts[rollout.mine].flatten().to(x.device)
    parents = count.nonzero().squeeze(1)
    everywhere = lambda value: value.to(x.device).expand(len(parents))
    return {
        "x": x.flatten(0, 1)[parents],
        "mean": rollout.mean[k].flatten(0, 1)[parents],
        "t": everywhere(plan.times[k]),
        "s": everywhere(plan.times[k + 1]),
        "eta": everywhere(plan.eta[k]),
        "count": count[parents],
        "prompt": parents // W,
        "x_next": rollout.x[k + 1][kept].to(x.device),
        "log_prob": rollout.log_prob[k][rollout.mine].to(x.device)[kept],
        "advantage": advantage[kept],
        "place": places[rollout.mine].flatten().to(x.device)[parents],
    }, int((counts > 0).sum())
