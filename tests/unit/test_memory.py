import json

import pytest
import torch

from afterflow.algorithms.base import Scores
from afterflow.algorithms.ddpo import DDPO
from afterflow.objectives.advantages import per_prompt_history
from afterflow.sampling.seeds import generator
from afterflow.train.reward_history import RewardHistory

RECORDS = [{"prompt": "a"}, {"prompt": "b"}]


def test_the_newest_rewards_of_a_prompt_stand_last_and_survive_json():
    memory = RewardHistory(3)
    assert memory.recall(["r"], RECORDS)["r"].isnan().all()
    memory.add({"r": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, RECORDS)
    memory.add({"r": torch.tensor([[5.0, 6.0]])}, RECORDS[:1])
    again = RewardHistory(3)
    again.load(json.loads(json.dumps(memory.state())))
    for each in (memory, again):
        past = each.recall(["r"], RECORDS)["r"]
        torch.testing.assert_close(past, torch.tensor([[2.0, 5, 6], [torch.nan, 3, 4]]), equal_nan=True)


NAN = torch.nan


def credit(memory, rewards, prompts, min_count=2):
    """DDPO's advantages of rewards (P, G) after those in memory, which then has these too."""
    records = [{"prompt": prompt} for prompt in prompts]
    scores = memory.attach(Scores({"r": torch.tensor(rewards)}), records)
    algorithm = DDPO({"r": 1.0}, steps=2, group=len(rewards[0]), history=memory.size, min_count=min_count)
    return algorithm.credit(algorithm.plan(0, generator()), (), scores)[0][..., 0]


def z(rewards, known):
    """Rewards by the mean and std of those that are known."""
    known = torch.tensor(known, dtype=torch.float64)
    return ((torch.tensor(rewards).double() - known.mean()) / (known.std(correction=0) + 1e-6)).float()


def test_all_rows_of_a_prompt_are_compared_with_each_other():
    found = credit(RewardHistory(8), [[1.0], [3.0], [8.0], [2.0]], "aaba")
    assert found[[0, 1, 3], 0].tolist() == pytest.approx([-1.225, 1.225, 0], abs=1e-3)
    torch.testing.assert_close(found[2:3], z([[8.0]], [1, 3, 8, 2]))  # a single reward takes the batch's


def by_the_definition(iterations, size, min_count):
    """Advantages of the last of some iterations, lists of (prompt, reward), from one deque a prompt."""
    kept = {}
    for iteration in iterations:
        for prompt, reward in iteration:
            kept[prompt] = [*kept.get(prompt, []), *([reward] if reward == reward else [])][-size:]
    batch = [reward for _, reward in iterations[-1] if reward == reward]
    pools = {prompt: kept[prompt] if len(kept[prompt]) >= min_count else batch for prompt, _ in iterations[-1]}
    return torch.cat([z([reward], pools[prompt]) for prompt, reward in iterations[-1]])


@pytest.mark.parametrize("size, min_count", [(4, 2), (8, 5), (3, 3), (50, 2)])
def test_a_history_is_the_last_rewards_of_a_prompt_in_whatever_rows_they_stand(size, min_count):
    """Prompts are drawn by epochs, so that at a seam one may stand twice; some images fail."""
    draw, memory, seen = generator("seams"), RewardHistory(size), []
    for _ in range(6):
        order = "".join("abc"[i] for _ in range(3) for i in torch.randperm(3, generator=draw).tolist())[:7]
        rewards = torch.randn(7, 2, generator=draw).masked_fill(torch.rand(7, 2, generator=draw) < 0.2, NAN)
        found = credit(memory, rewards.tolist(), order, min_count)
        pairs = [(prompt, value) for prompt, row in zip(order, rewards.tolist()) for value in row]
        expected = by_the_definition([*seen, pairs], size, min_count).view(7, 2).clamp(-5, 5)
        torch.testing.assert_close(found, expected, equal_nan=True)
        seen.append(pairs)


def test_a_failed_image_takes_no_place_in_the_history():
    past, rewards = torch.arange(8.0)[None], torch.tensor([[NAN, 5.0]])
    found = per_prompt_history(rewards, past, 8, 8, eps=0.0)
    known = [*range(1, 8), 5]
    torch.testing.assert_close(found[:, 1:], z([[5.0]], known))
    assert found[0, 0].isnan()
    nothing = per_prompt_history(torch.full((2, 2), NAN), torch.full((2, 4), NAN), 4, 2, eps=1e-6)
    assert nothing.isnan().all()


def test_rewards_of_one_place_are_of_one_image():
    """An image that failed in one reward is forgotten in all, or sums would add up rewards of two images."""
    memory = RewardHistory(3)
    memory.add({"a": torch.tensor([[1.0, NAN, 3.0]]), "b": torch.tensor([[10.0, 20.0, 30.0]])}, RECORDS[:1])
    past = memory.recall(["a", "b"], RECORDS[:1])
    assert past["a"][0, 1:].tolist() == [1, 3] and past["b"][0, 1:].tolist() == [10, 30]


def test_rewards_of_a_history_that_differ_in_the_last_digits_of_fp32_still_rank():
    past, rewards = torch.tensor([[1000.0, 1000.0001]]), torch.tensor([[1000.0002, 1000.0005]])
    known = torch.cat([past, rewards], 1).double()
    expected = ((rewards.double() - known.mean()) / known.std(correction=0)).float()
    torch.testing.assert_close(per_prompt_history(rewards, past, 4, 2, eps=0.0), expected, rtol=1e-6, atol=0)
