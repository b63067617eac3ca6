"""The moving world: its verifier knows true clips from those that only look like them."""

import numpy as np
import pytest

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.sft import SFT
from afterflow.data.clips import MovingClips, MovingPrompts
from afterflow.envs.shapes.motion import verify_clip
from afterflow.envs.shapes.moving import (
    MOVING_TAGS,
    draw_moving,
    held_out_motion,
    moving_suite,
    render_clip,
    validate_moving,
)
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.rewards.grouped import score_groups
from tinies import built

FRAMES = 7


def clips(tag, count, size=32, seed=0):
    rng = np.random.default_rng(seed)
    records = [draw_moving("train", tag, rng) for _ in range(count)]
    return records, [render_clip(record, FRAMES, size, rng) for record in records]


def mean(records, shown, mode="strict"):
    return np.mean([verify_clip(record, clip)[mode] for record, clip in zip(records, shown)])


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("tag", MOVING_TAGS)
def test_true_clips_pass_and_what_only_looks_like_them_fails(tag, size):
    records, shown = clips(tag, 12, size)
    assert mean(records, shown) == 1 and mean(records, shown, "smoothness") > 0.9
    assert mean(records, [clip[::-1] for clip in shown]) == 0  # backwards
    assert mean(records, [clip[:1].repeat(FRAMES, 0) for clip in shown]) == 0  # still
    assert mean(records, [clip.swapaxes(1, 2) for clip in shown]) == 0  # across
    assert mean(records, shown[1:] + shown[:1]) == 0  # of another prompt
    gone = [np.concatenate([clip[:-1], np.full_like(clip[:1], 165)]) for clip in shown]
    assert mean(records, gone) == 0


def test_jerks_cost_smoothness_and_nothing_else():
    records, shown = clips("move_one", 12)
    jerky = [clip[[0, 0, 3, 3, 3, 6, 6]] for clip in shown]
    assert mean(records, jerky) == 1
    assert mean(records, jerky, "smoothness") < 0.3 < mean(records, shown, "smoothness")


def test_partial_credit_grows_with_what_is_right():
    records, shown = clips("move_two", 12)
    half = [clip[[0, 0, 1, 1, 2, 2, 3]] for clip in shown]
    still = [clip[:1].repeat(FRAMES, 0) for clip in shown]
    grades = [mean(records, each, "partial") for each in (shown[1:] + shown[:1], still, half, shown)]
    assert grades == sorted(grades) and grades[-1] > 0.95 and 0.45 < grades[1] < 0.6


def test_train_never_asks_for_what_test_holds():
    for split in ("train", "test"):
        for record in moving_suite(split, 60, 0, MOVING_TAGS):
            validate_moving(record)
            assert all(held_out_motion(c["class"], c["moving"]) == (split == "test") for c in record["include"])
    prompts = [record["prompt"] for record in moving_suite("train", 60, 0, MOVING_TAGS)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"moving": "sideways"}, "include\\[0\\].moving must be one of left"),
        ({"color": "mauve"}, "color must be one of"),
        ({"count": 0}, "count must be a whole number"),
    ],
)
def test_a_record_that_cannot_be_judged_is_refused(change, said):
    record = draw_moving("train", "move_one", np.random.default_rng(0))
    record["include"][0] |= change
    with pytest.raises(ValueError, match=said):
        validate_moving(record)


def test_clip_rewards_see_whole_clips_and_only_models_of_clips_have_them():
    records, shown = clips("move_one", 3)
    both = np.stack([np.stack([clip, clip[::-1]]) for clip in shown])
    assert score_groups("moving_strict", both, records).values.tolist() == [[1.0, 0.0]] * 3
    with pytest.raises(ValueError, match="moving_strict judges clips, and SD3 draws images; take Wan"):
        Run(FlowGRPO({"moving_strict": 1.0}), MovingPrompts(), SD3("tiny"))


def test_wan_learns_from_clips_and_explores_their_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    config = built("wan", tmp_path / "pipeline")
    short = {"tune": LoRA(rank=2, alpha=4), "iterations": 1, "batch": 2, "chunk": 4, "inference_steps": 2}
    taught = Run(SFT(), MovingClips(count=4, frames=5), config, name="taught").with_options(**short)
    assert (execute(taught, "taught") / "lora").is_dir()
    explored = Run(
        FlowGRPO({"moving_partial": 1.0}, steps=3, group=2), MovingPrompts(count=6), config, name="explored"
    ).with_options(**short, held_out=MovingPrompts("test", count=3), eval_every=1, eval_rewards=("moving_smoothness",))
    assert "moving_smoothness" in (execute(explored, "explored") / "held_out.jsonl").read_text()
