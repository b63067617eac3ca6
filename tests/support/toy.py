"""A flow in the plane whose exact velocity is known, an MLP to train on it, and the real loop around them."""

import copy

import torch
from accelerate import Accelerator
from torch import nn

from afterflow.algorithms.base import Models, Scores, explores
from afterflow.sampling.conditioning import Embedding, Pairs, condition
from afterflow.sampling.flow import expand
from afterflow.sampling.kernels import flow_sde
from afterflow.sampling.rollout import chain, sample
from afterflow.sampling.schedules import LinearShift
from afterflow.sampling.seeds import generator
from afterflow.train.checkpoint import WeightState
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.explore import ExploreOptions, Explorer, supervised
from afterflow.train.lagged import LaggedPolicy
from afterflow.train.local_rows import credited as credit_of
from afterflow.train.local_rows import local_rows
from afterflow.train.loop import Trainer, TrainOptions
from afterflow.train.one_pass import iterations
from afterflow.train.reward_history import RewardHistory

TASKS = ["left", "right"]
TARGETS = {"left": torch.tensor([-2.0, 0.5]), "right": torch.tensor([2.0, 0.5])}
MEAN, STD = 1.0, 0.5  # of the data


def prompts(n):
    """n rows, left and right in turn."""
    both = condition(Embedding(torch.eye(2)[:, None]), Embedding(torch.zeros(1, 1, 2)), [{"prompt": p} for p in TASKS])
    return both[torch.arange(n) % 2]


def images(n, generator):
    return Pairs(MEAN + STD * torch.randn(n, 2, generator=generator), prompts(n))


def preferences(n, seed=0, swapped=False):
    """Pairs of points: winners lie on the side of their prompt's target, losers on the other."""
    cond = prompts(n)
    sides = torch.stack([TARGETS[record["prompt"]] for record in cond.records()])
    noise = torch.randn(2, n, 2, generator=generator("preferences", seed))
    better, worse = MEAN + 0.2 * sides + 0.3 * noise[0], MEAN - 0.2 * sides + 0.3 * noise[1]
    return Pairs(worse, cond, rejected=better) if swapped else Pairs(better, cond, rejected=worse)


class OneStream:
    """Stands in for `RowRandom` where rows are too many for a generator each."""

    def __init__(self, rows, generator):
        self.rows, self.generator = rows, generator

    def normal(self, shape, device="cpu"):
        return torch.randn(self.rows, *shape, generator=self.generator).to(device)

    def uniform(self):
        return torch.rand(self.rows, generator=self.generator)


def draws(rows):
    return OneStream(rows, generator())


def exact(x, t, cond=None, mean=MEAN, std=STD):
    """E[ε - x_0 | x_t] when x_0 ~ N(mean, std² I)."""
    t = expand(t, x)
    variance = (1 - t) ** 2 * std**2 + t**2
    return (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean) - mean


class MLP(nn.Module):
    def __init__(self, seed=0, width=64):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x, t, cond):
        *hidden, last = self.net
        h = torch.cat([x.float(), t[:, None], cond.embedding().sequence[:, 0]], 1)
        for layer in hidden:
            h = layer(h)
        # Row by row: products as narrow as this round by where a row stands in them, with AVX-512.
        return (h[:, None] * last.weight).sum(-1) + last.bias


def score(leaves, records, generator=None, clock=None):
    """Minus the distance to the target of the prompt, and who of two is nearer."""
    target = torch.stack([TARGETS[record["prompt"]] for record in records])
    near = -(leaves.float() - target[:, None]).norm(dim=-1)
    nearer = 0.5 + 0.5 * (near[:, :, None] - near[:, None]).sign()
    alone = torch.eye(near.shape[1], dtype=torch.bool)
    return Scores({"near": near}, {"win_rate": nearer.masked_fill(alone, torch.nan)})


def optimize(model, lr=1e-3):
    return torch.optim.AdamW(model.parameters(), lr, fused=True)


def learn(
    algorithm,
    model,
    last,
    first=0,
    *,
    velocity=None,
    optimizer=None,
    lr=1e-3,
    ema=None,
    reference=None,
    teachers=None,
    score=score,
    chunk=64,
    updates=2,
    processes=None,
    skip=False,
    retained_rows=0,
    lagged=None,
    wrap=lambda velocity: velocity,
    prompts=lambda step: prompts(8),
    pairs=None,
    **explore_options,
):
    """Iterations first .. last - 1 of the real loop, `velocity` standing in for the model; yields their metrics.

    prompts and pairs return those of an iteration; pairs of None are 256 images, of which one in two may have lost.
    """
    lagged = averages(algorithm, model) if lagged is None else lagged
    fields = {name: wrap(network) for name, (network, _) in lagged.items()}
    explorer = fields.get(algorithm.requirements.explorer)
    models = Models(velocity or wrap(model), reference, teachers or {}, lagged=fields, explorer=explorer)
    clock, steps, processes = Clock(), range(first, last), processes or Processes(Accelerator(cpu=True))
    if explores(algorithm):
        options = ExploreOptions(seed=0, latent_shape=(2,), chunk=chunk, updates=updates, **explore_options)
        size = algorithm.requirements.history
        history = RewardHistory(size) if size else None
        explorer = Explorer(algorithm, models, prompts, score, options, processes, clock, history)
        source = iterations(explorer, steps, retained_rows)
    else:
        chosen = lambda step: images(256, torch.Generator().manual_seed(step))
        pairs = pairs or ((lambda step: preferences(256, step)) if algorithm.requirements.pairs else chosen)
        source = supervised(algorithm, pairs, steps, seed=0, chunk=256, processes=processes)
    parameters = dict(model.named_parameters())
    optimizer = processes.accelerator.prepare(optimizer or optimize(model, lr))
    options = TrainOptions(lambda step: lr, max_grad_norm=1.0, skip_nonfinite=skip)
    policies = {name: policy for name, (_, policy) in lagged.items()}
    weights = WeightState(parameters, optimizer, ema, lagged=policies, processes=processes)
    return Trainer(algorithm, models, weights, clock, options).train(source)


def averages(algorithm, model):
    """The averages that an algorithm requires, each a copy of the model and the policy that follows with it."""
    copies = {name: copy.deepcopy(model).requires_grad_(False) for name in algorithm.requirements.lagged}
    lags = algorithm.requirements.lagged
    return {name: (each, LaggedPolicy(dict(each.named_parameters()), lags[name])) for name, each in copies.items()}


def credited(algorithm, rollout, scores, models=None, source=None):
    """The rows that the trainer makes of a rollout and its scores."""
    selected = algorithm.select(rollout.plan, len(rollout.cond), source or generator())
    advantages = credit_of(algorithm, rollout.plan, rollout.log_prob, scores, selected)
    prompts = torch.arange(len(rollout.cond))
    return algorithm.rows(models, local_rows(rollout, advantages, prompts, algorithm.requirements.all_rows).examples)


@torch.no_grad()
def draw(model):
    cond = prompts(2)
    plan = chain(LinearShift(1.0).times(20), 512, 0.0, ())
    noise = torch.randn(2, 512, 2, generator=generator("draw"))
    return sample(model, flow_sde, plan, cond, noise, [generator(p) for p in range(2)]).leaves


def reward(model):
    return score(draw(model), prompts(2).records()).rewards["near"].mean().item()
