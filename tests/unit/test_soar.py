from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from afterflow.algorithms.base import Models
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.sampling.conditioning import Embedding, Pairs, condition
from afterflow.sampling.flow import expand, interpolate, shifted
from afterflow.sampling.seeds import generator, number
from afterflow.train.distributed import Processes
from afterflow.train.explore import supervised
from afterflow.train.gradients import gradients
from toy import MLP, OneStream, draws, images, learn


class Recorder:
    """A velocity field that answers in turn as `answers` say, the last one for all that follow, and keeps its calls."""

    def __init__(self, *answers):
        self.answers, self.calls = answers, []

    def __call__(self, x, t, cond):
        answer = self.answers[min(len(self.calls), len(self.answers) - 1)]
        self.calls.append((x, t, cond))
        return answer(x, t)


def descended(algorithm, velocity, batch):
    """The loss and the metrics of all terms."""
    terms = list(algorithm.regression_losses(Models(velocity), batch, draws(len(batch))))
    metrics = {}
    for _, each in terms:
        metrics = {name: metrics.get(name, 0) + value for name, value in each.items()} | {
            name: value for name, value in metrics.items() if name not in each
        }
    return sum(loss for loss, _ in terms), metrics


def to(x0):
    """The velocity of the line from x0 through x."""
    return lambda x, t: (x - x0) / expand(t, x)


def test_without_correction_it_is_sft():
    batch, model = images(64, generator()), MLP()
    ours, _ = descended(SOAR(correction=0.0), model, batch)
    theirs, _ = descended(SFT(), model, batch)
    assert torch.equal(ours, theirs)


def test_a_roll_out_that_goes_right_gives_the_targets_of_sft():
    batch = images(64, generator())
    velocity = Recorder(to(batch.x0))
    loss, _ = descended(SOAR(rollout_guidance=1.0), velocity, batch)
    (x, t, _), *points = velocity.calls
    noise = (x - (1 - expand(t, x)) * batch.x0) / expand(t, x)
    for back, later, _ in points:
        torch.testing.assert_close(back, interpolate(batch.x0, noise, later), atol=2e-4, rtol=1e-4)
    assert loss < 1e-8 and len(points) == 6


def test_a_roll_out_gone_astray_is_sent_back_to_its_image():
    batch = images(64, generator())
    astray = lambda x, t: to(batch.x0)(x, t) + 1.0
    back = descended(SOAR(), Recorder(astray, astray, to(batch.x0)), batch)[1]
    on = descended(SOAR(), Recorder(astray), batch)[1]
    assert back["base_loss"] == pytest.approx(1.0, abs=1e-4)
    assert back["correction_loss"] < 1e-8
    assert on["correction_loss"] == pytest.approx(1.0, abs=1e-3)
    # What SFT would teach there is another velocity: that of the line whose noise is the same.
    sft = Recorder(astray, astray, lambda x, t: noise - batch.x0)
    noise = torch.randn(batch.x0.shape, generator=generator())
    assert descended(SOAR(), sft, batch)[1]["correction_loss"] > 1e-4


def test_the_roll_out_is_one_guided_step_of_a_sampler_and_points_share_the_noise():
    algorithm = SOAR(steps=10, points=4, rollout_guidance=3.0)
    batch = images(512, generator())
    full, empty = (lambda x, t: x * 0.1 + 2), (lambda x, t: x * 0 - 1)
    velocity = Recorder(full, empty, full)
    descended(algorithm, velocity, batch)
    (x, t, cond), (x_empty, t_empty, cond_empty), *points = velocity.calls
    assert torch.equal(x, x_empty) and torch.equal(t, t_empty) and len(points) == 4
    assert (cond.index >= 0).all() and (cond_empty.index < 0).all()
    s = shifted((shifted(t, 1 / 3.0) - 0.1).clamp(min=0), 3.0)
    v = empty(x, t) + 3 * (full(x, t) - empty(x, t))
    end = x - expand(t - s, x) * v
    noise = (x - (1 - expand(t, x)) * batch.x0) / expand(t, x)
    for back, later, _ in points:
        assert (later >= torch.maximum(s - 1e-5, torch.tensor(0.02))).all() and (later <= 1).all()
        torch.testing.assert_close(back, interpolate(end, noise, (later - s) / (1 - s)), atol=1e-3, rtol=1e-3)
    spread = torch.cat([(later - s.clamp(min=0.02)) / (1 - s.clamp(min=0.02)) for _, later, _ in points])
    assert spread.mean().item() == pytest.approx(0.5, abs=0.03) and spread.max() > 0.98


def test_every_point_counts_lambda_times_an_image():
    algorithm = SOAR(points=3, correction=0.4)
    velocity = Recorder(lambda x, t: x * 0.3)
    loss, metrics = descended(algorithm, velocity, images(64, generator()))
    assert len(velocity.calls) == algorithm.requirements.evaluations == 5
    expected = (metrics["base_loss"] + 0.4 * 3 * metrics["correction_loss"]) / (1 + 0.4 * 3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("paths", [1, 2])
def test_no_gradient_flows_through_the_roll_out(guidance, paths):
    first, later = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    empty = [lambda x, t: first * x + 1] if guidance != 1 else []
    velocity = Recorder(lambda x, t: first * x, *empty, lambda x, t: later * x)
    algorithm = SOAR(rollout_guidance=guidance, paths=paths)
    _, *corrections = list(algorithm.regression_losses(Models(velocity), images(64, generator()), draws(64)))
    for loss, _ in corrections:
        loss.backward()
    assert first.grad is None and later.grad is not None


def test_stochastic_paths_are_left_out_where_the_step_ends_on_the_image():
    algorithm = SOAR(steps=2, points=2, paths=3, rollout_guidance=1.0)
    batch = images(2000, generator())
    velocity = Recorder(to(batch.x0))
    loss, metrics = descended(algorithm, velocity, batch)
    u = shifted(velocity.calls[0][1], 1 / 3.0)
    ended = ((u <= 0.5) | (velocity.calls[0][1] >= 0.99)).float().mean()
    assert len(velocity.calls) == 1 + 3 * 2
    assert 0.4 < ended < 0.6
    # Only stochastic ends are off the line, and of those the ones on the image do not count.
    states = [call[0] for call in velocity.calls[1:]]
    assert not torch.allclose(states[2], states[4]) and loss < 1e-6
    total = 2000 * (1 + 2 * (1 + 2 * (1 - ended)))
    assert loss.item() == pytest.approx(
        (2000 * metrics["base_loss"] + (total - 2000) * metrics["correction_loss"]).item() / total.item(), abs=1e-9
    )


PATHS = SOAR(steps=4, points=2, paths=3, correction=0.7, density="uniform")
PARTS = [(5, 1), (24, 2), (7, 3), (1, 24)]


def update_of(algorithm, chunk, partitions=1, rank=0, count=1):
    """The gradient of one update on 24 images, by the real loop, and what it measures: the part of one process."""
    processes = Processes(Accelerator(cpu=True), grad_partitions=partitions)
    processes.rank, processes.local_partitions = rank, processes.grad_partitions // count
    batch, model = images(24, generator("update")), MLP()
    ((iteration),) = supervised(algorithm, lambda step: batch, range(1), seed=0, chunk=chunk, processes=processes)
    parameters = list(model.parameters())
    measured, _ = gradients(algorithm, Models(model), iteration, iteration.updates[0], parameters, processes)
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    return gradient, measured, sum(iteration.rows.mass(rows) for part in iteration.updates[0] for rows in part)


@pytest.mark.parametrize("algorithm", [PATHS, replace(PATHS, paths=1), replace(PATHS, correction=0.0), SFT()])
def test_an_update_is_the_same_in_parts_of_any_size(algorithm):
    whole, metrics, _ = update_of(algorithm, 24)
    for chunk, partitions in PARTS:
        gradient, measured, _ = update_of(algorithm, chunk, partitions)
        assert (gradient - whole).norm() < 2e-6 * whole.norm()
        assert measured == pytest.approx(metrics, rel=1e-5)


def test_processes_add_up_to_one_with_several_paths():
    """Each process normalises by its own rows here, where it does not hear of the others: masses put that right."""
    whole, _, mass = update_of(PATHS, 24)
    parts = [update_of(PATHS, 5, 3, rank, 3) for rank in range(3)]
    assert len({m for _, _, m in parts}) > 1 and sum(m for _, _, m in parts) == pytest.approx(mass)
    summed = sum(gradient * m / mass for gradient, _, m in parts)
    assert (summed - whole).norm() < 2e-6 * whole.norm()


def test_several_paths_are_averaged_over_all_points_of_an_update():
    """The page's line, from the terms of every image alone: (Σ ℓ + λ Σ ℓ') / (B + λ P)."""
    batch, model = images(24, generator("update")), MLP()
    seeds = torch.tensor([number(0, 0, "update", 0, row) for row in range(24)])
    terms, points, masses, corrections, bases = [], 0.0, [], [], []
    for row in torch.arange(24).split(1):
        one = replace(batch[row], seeds=seeds[row])
        assert PATHS.masses(one).dtype == torch.float64  # summed over processes, it must add up
        mass = PATHS.masses(one).item()
        assert mass == pytest.approx(1 + 0.7 * 2) or mass == pytest.approx(1 + 0.7 * 6)
        own = list(PATHS.losses(Models(model), one))
        terms.append(mass * sum(loss for loss, _ in own))
        masses.append(mass)
        bases.append(own[0][0].item() * mass)
        corrections.append(sum(loss.item() for loss, _ in own[1:]) * mass / 0.7 / ((mass - 1) / 0.7))
        points += (mass - 1) / 0.7
    loss = sum(terms) / (24 + 0.7 * points)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    found, measured, _ = update_of(PATHS, 7)
    weighted = lambda values: sum(m * value for m, value in zip(masses, values)) / sum(masses)
    assert measured == pytest.approx({"base_loss": weighted(bases), "correction_loss": weighted(corrections)}, rel=1e-4)
    assert (found - expected).norm() < 2e-6 * expected.norm()
    assert 24 * 2 < points < 24 * 6


class Linear(nn.Module):
    """v = a(t) x with a piecewise linear in time: what the fixed point is for Gaussian images around 0."""

    def __init__(self, knots=101):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(knots))

    def forward(self, x, t, cond=None):
        place = t * (len(self.a) - 1)
        low = place.floor().clamp(max=len(self.a) - 2)
        a = torch.lerp(self.a[low.long()], self.a[low.long() + 1], place - low)
        return expand(a, x) * x


def fixed_point(steps, points, least, variance, shift=3.0, n=500):
    """Std of what SOAR's fixed point draws when images are N(0, variance), by regression in closed form on a grid."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # evenly drawn, before the shift
    t, s = shifted(u, shift), shifted((u - 1 / steps).clamp(min=0), shift)
    low = s.clamp(min=least)
    density = (1 + (shift - 1) * u) ** 2 / shift  # of t
    later = t[:, None]
    arrivals = (later >= low) / (1 - low) * points / n  # (t', u)
    back = (later - s) / (1 - s)
    xx, xv = (1 - t) ** 2 * variance + t**2, t - (1 - t) * variance
    a = xv / xx  # v = a(t) x
    for _ in range(100):
        lands = 1 - (t - s) * a
        of_image, of_noise = (1 - back) * lands * (1 - t), (1 - back) * lands * t + back
        squares = (arrivals * (of_image**2 * variance + of_noise**2)).sum(1)
        products = (arrivals * (of_image * (of_image - 1) * variance + of_noise**2) / later).sum(1)
        a = (density * xv + products) / (density * xx + squares)
    return spread(lambda time: float(torch.lerp(a[:-1], a[1:], 0.5)[(t[1:] < time).sum().clamp(max=n - 2)]), shift)


def spread(a, shift):
    """Std of the images that the ODE of v = a(t) x draws from N(0, 1)."""
    x, times = 1.0, shifted(torch.linspace(1, 0, 401), shift).tolist()
    for t, s in pairwise(times):
        x -= (t - s) * a(t) * x
    return x


def test_the_fixed_point_is_narrower_than_the_data():
    """The true velocity is not what SOAR converges to; how far it is off follows from regression alone."""
    algorithm = SOAR(steps=10, rollout_guidance=1.0, density="uniform")
    model, source = Linear(), generator()
    optimizer, rate, steps = torch.optim.Adam(model.parameters()), 0.05, 400
    cond = condition(Embedding(torch.zeros(1, 1, 2)), Embedding(torch.zeros(1, 1, 2)), [{"prompt": ""}])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        batch = Pairs(0.5 * torch.randn(1024, 1, generator=source), cond[torch.zeros(1024, dtype=torch.long)])
        optimizer.zero_grad()
        for loss, _ in algorithm.regression_losses(Models(model), batch, OneStream(1024, source)):
            loss.backward()
        optimizer.step()
    with torch.no_grad():
        learnt = spread(lambda t: float(model(torch.ones(1, 1), torch.tensor([t]))), 3.0)
    assert learnt == pytest.approx(fixed_point(10, 6, 0.02, 0.25), abs=0.01)
    assert learnt < 0.42 and fixed_point(10, 0, 0.02, 0.25) == pytest.approx(0.5, abs=0.01)


def test_it_teaches_the_plane():
    *_, (_, first) = learn(SOAR(correction=0.2, points=1), MLP(), 5)
    *_, (_, last) = learn(SOAR(correction=0.2, points=1), MLP(), 150)
    assert last["base_loss"] < 0.8 * first["base_loss"]


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: SOAR(points=0), "correction = 0 is SFT"),
        (lambda: SOAR(min_time=0.0), "between image and noise"),
        (lambda: SOAR(paths=2, eta=0.0), "take eta > 0"),
        (lambda: SFT(num_noises=0), "num_noises = 0"),
        (lambda: SFT(shift=0.0), "shift = 0"),
    ],
)
def test_options_that_cannot_be_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
