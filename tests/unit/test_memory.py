import json

import torch

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
