"""Use an algorithm on a flow of points in the plane, without any pipeline: `python examples/toy_flow.py`."""

import torch

from afterflow import FlowGRPO
from afterflow.algorithms.base import Models, Scores
from afterflow.sampling.conditioning import Embedding, condition
from afterflow.sampling.rollout import sample, transitions

PROMPTS, IMAGES = 4, 32
TARGET = torch.tensor([2.0, 0.5])


def main(iterations: int = 60) -> list[float]:
    """Train a small network until its points lie near the target; return the mean reward of each iteration."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    velocity = lambda x, t, cond: network(torch.cat([x, t[:, None]], 1))
    empty = Embedding(torch.zeros(1, 1, 2))
    cond = condition(empty, empty, [{"prompt": ""}])[torch.zeros(PROMPTS, dtype=torch.long)]
    algorithm, rewards = FlowGRPO({"near": 1.0}, steps=4, group=IMAGES, beta=0.0), []
    for step in range(iterations):
        plan, noise = algorithm.plan(step, generator), torch.randn(PROMPTS, IMAGES, 2, generator=generator)
        with torch.no_grad():
            rollout = sample(velocity, algorithm.step_kernel, plan, cond, noise, [generator] * PROMPTS)
        scores = Scores({"near": -(rollout.leaves - TARGET).norm(dim=-1)})
        advantages = algorithm.credit(plan, rollout.log_prob, scores)
        models = Models(velocity)
        rows = algorithm.rows(models, transitions(rollout, advantages))
        loss, _ = algorithm.loss(models, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(scores.rewards["near"].mean().item())
    print(f"mean reward {rewards[0]:.2f} -> {rewards[-1]:.2f}")
    return rewards


if __name__ == "__main__":
    main()
