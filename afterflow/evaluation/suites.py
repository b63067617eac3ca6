"""Suites of prompts: where their prompts come from, what judges them, and how their images are drawn.

A picture without a score is left out of its prompt's mean and counted.  A prompt without any score is left out for both
models.  This module imports no torch, because the command line reads the names of the suites here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..system.checks import check_at_least_one
from ..system.errors import ConfigError, InputError
from ..system.input_pictures import content_key
from ..train.repeated_prompts import prompts_of_rows, repeated_rows
from .report import Comparison, Report, compare_figures, rows_by_tag

if TYPE_CHECKING:
    from ..rewards.base import RewardModels


@dataclass(frozen=True)
class Suite:
    """A set of prompts and the rewards that judge images of them."""

    rewards: tuple[str, ...]
    """The rewards that judge it, unless other rewards are named."""
    source: str
    """Where its prompts are published: what --prompts-from should name."""
    generate: Callable[[int], list[dict]] | None = None
    """Makes prompts of ours, by their number, where none are named."""
    parts: bool = False
    """Whether the parts of a score are reported as well."""


def sign_prompts(count: int) -> list[dict]:
    """Make prompts that ask for text in an image."""
    from ..data.geneval_prompts import SignPrompts

    return SignPrompts("test", count).records(0)


def clip_prompts(count: int) -> list[dict]:
    """Make prompts of the moving world, at least `count` and as many of every tag."""
    from ..envs.shapes.moving import MOVING_TAGS, moving_suite

    return moving_suite("test", -(-count // len(MOVING_TAGS)), 0, MOVING_TAGS)


def edit_requests(count: int) -> list[dict]:
    """Make requests of the editing world, at least `count` and as many of every task."""
    from ..envs.shapes.edits import EDIT_TASKS, edit_suite

    return edit_suite("test", -(-count // len(EDIT_TASKS)), 0)


SUITES: Mapping[str, Suite] = {
    "shapes": Suite(
        ("shapes_official", "shapes_strict", "shapes_closed", "shapes_partial", "shapes_fidelity"),
        "the shapes world, whose prompts and verdicts are ours",
    ),
    "geneval": Suite(
        ("geneval_hf_official", "geneval_hf_strict"), "evaluation_metadata.jsonl of github.com/djghosh13/geneval"
    ),
    "geneval2": Suite(
        ("soft_tifa_gm", "soft_tifa_am"),
        "geneval2_data.jsonl of github.com/facebookresearch/GenEval2, which is not for commercial use",
        parts=True,
    ),
    "ocr": Suite(("ocr",), "dataset/ocr/test.txt of github.com/yifan123/flow_grpo", sign_prompts),
    "drawbench": Suite(
        ("pickscore", "hpsv2", "image_reward", "clipscore"),
        "DrawBench's prompts as .csv or .txt, or a data set of the hub such as sayakpaul/drawbench",
    ),
    "hpd": Suite(
        ("hpsv2",), "a folder with HPD's four lists: anime.json, concept-art.json, paintings.json, photo.json"
    ),
    "unigen": Suite(("vlm_points",), "data/test_prompts_en.csv of github.com/CodeGoat24/UniGenBench", parts=True),
    "edits": Suite(
        ("edits_strict", "edits_partial", "edits_done", "edits_preserved"),
        "the editing world, whose requests and verdicts are ours",
        edit_requests,
    ),
    "video": Suite(
        ("moving_strict", "moving_partial", "moving_smoothness"), "a list of prompts for clips", clip_prompts
    ),
}


@dataclass(frozen=True)
class Drawing:
    """How the images of a suite are drawn."""

    images: int = 4
    """Number of images, or clips, of each prompt."""
    steps: int = 40
    """Number of ODE steps."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is without guidance."""
    seed: int = 0
    """Seed of the starting noise, so that two models can be compared image by image."""
    chunk: int = 16
    """Number of images in a forward pass.  Guidance doubles it."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "images", "steps", "chunk")


def suite_records(
    suite: str,
    prompts_from: str | None,
    prompts: int | None,
    rewards: Sequence[str],
    models: "RewardModels | None" = None,
) -> list[dict]:
    """Return the records of a suite, at most `prompts` of them and then as many of each tag.

    Args:
        suite: Name of the suite.
        prompts_from: File of prompts.  None: the suite's own.
        prompts: Largest number of prompts.  None: all of them.
        rewards: Rewards that will judge them.
        models: Where the rewards run.  None: all of them in this process.

    ConfigError is raised where the suite has no prompts of ours and none are named, InputError with file and line for
    a record that one of the rewards cannot judge.
    """
    from ..data.prompt_lists import read_prompts
    from ..rewards.registry import DEFAULT_REWARD_MODELS, needs_of

    generate = SUITES[suite].generate
    if prompts_from is not None:
        records = read_prompts(prompts_from, needs_of(rewards, models or DEFAULT_REWARD_MODELS))
        return records if prompts is None else evenly(records, prompts)
    if generate is None:
        raise ConfigError(f"--suite {suite} needs --prompts-from: {SUITES[suite].source}")
    records = generate(prompts or 300)
    return records if prompts is None else evenly(records, prompts)


def evenly(records: Sequence[dict], count: int) -> list[dict]:
    """Return `count` records, the first of every tag in turn, in their original order."""
    of_tag: dict[str, int] = {}
    turns = []
    for i, record in enumerate(records):
        turns.append((of_tag.get(record["tag"], 0), i))
        of_tag[record["tag"]] = turns[-1][0] + 1
    return [records[i] for i in sorted(i for _, i in sorted(turns)[:count])]


def suite_report(
    suite: str,
    records: Sequence[dict],
    tuned: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray] | None,
    names: tuple[str, str | None],
    seed: int,
    draws: int,
) -> Report:
    """Report scores (P, K) of the same P records: means and deltas with intervals.

    InputError is raised where a reward scored no image.

    Args:
        suite: Name of the suite.
        records: The P prompts.
        tuned: Reward → scores of the model.
        base: Scores of the model to compare with.
        names: Names of the model and of the one to compare with.
        seed: Seed of the bootstrap.
        draws: Number of bootstrap resamples.
    """
    rows, both = rows_by_tag(records), [tuned] if base is None else [tuned, base]
    prompts = prompts_of_rows(len(records), repeated_rows([content_key(record) for record in records]))
    overall, tags = {}, {tag: {} for tag in rows}
    for name in tuned:
        means = [mean_of_scored(scores[name]) for scores in both]
        scored = np.isfinite(sum(means))
        strata = {tag: of_tag[scored[of_tag]] for tag, of_tag in rows.items() if scored[of_tag].any()}
        if not strata:
            raise InputError(f"{name} scored no picture; ask it about one of them to see why")

        def over(strata: Sequence[np.ndarray], means: Sequence[np.ndarray] = means) -> Comparison:
            one, other = {"": means[0]}, {"": means[1]} if base is not None else None
            return compare_figures(one, other, strata, draws, np.random.default_rng(seed), prompts)[""]

        for tag, of_tag in strata.items():
            tags[tag][name] = over([of_tag])
        overall[name] = over(list(strata.values()))
    invalid = {name: int(sum(np.isnan(scores[name]).sum() for scores in both)) for name in tuned if "/" not in name}
    images = next(iter(tuned.values())).shape[1]
    counts = {tag: len(of_tag) for tag, of_tag in rows.items()}
    return Report(suite, *names, images, draws, counts, overall, tags, invalid=invalid)


def mean_of_scored(scores: np.ndarray) -> np.ndarray:
    """Average the finite scores of each prompt, (P, K) → (P,); NaN where a prompt has none."""
    finite = np.isfinite(scores)
    return np.where(finite, scores, 0).sum(1) / np.where(finite.any(1), finite.sum(1), np.nan)
