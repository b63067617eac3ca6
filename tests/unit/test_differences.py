"""The interval of a difference holds the truth as often as it says, with few seeds, and knows shared prompts."""

import numpy as np
import pytest

from afterflow.evaluation.differences import (
    SeedNoise,
    difference,
    differences_of_methods,
    gain_over_base,
    seed_noise,
)
from afterflow.evaluation.shapes_suite import Judged

STRATA = [np.arange(0, 30), np.arange(30, 90)]


def methods(rng, seeds, effect=0.0, of_seed=0.01, of_pair=0.1, of_image=0.15):
    """Figures of two methods on the same prompts, the first by `effect` above the second."""
    prompts = rng.normal(0.5, 0.3, 90)
    return [
        mean
        + prompts
        + rng.normal(0, of_pair, 90)
        + rng.normal(0, of_seed, (seeds, 1))
        + rng.normal(0, of_image, (seeds, 90))
        for mean in (effect, 0.0)
    ]


def covered(seeds, repeats=250, confidence=0.95, **noises):
    """How often the interval holds the true difference, and how often it is above 0."""
    rng, inside, above = np.random.default_rng(seeds), 0, 0
    for _ in range(repeats):
        first, second = methods(rng, seeds, 0.05, **noises)
        others = [figures for _ in range(2) for figures in methods(rng, seeds, **noises)]
        noise = seed_noise([first, second, *others], STRATA)
        estimate = difference(first, second, STRATA, noise, confidence)
        inside += estimate.low <= 0.05 <= estimate.high
        above += estimate.low > 0
    return inside / repeats, above / repeats


@pytest.mark.parametrize("seeds", [2, 4])
@pytest.mark.parametrize(
    "noises", [{}, {"of_seed": 0.03}, {"of_seed": 0.0, "of_pair": 0.02}, {"of_image": 0.4}], ids=str
)
def test_an_interval_holds_the_truth_as_often_as_it_says(seeds, noises):
    assert covered(seeds, **noises)[0] == pytest.approx(0.95, abs=0.045)


def test_less_confidence_is_a_narrower_interval():
    assert covered(3, confidence=0.5)[0] == pytest.approx(0.5, abs=0.1)


def test_shared_prompts_do_not_widen_it_and_seeds_do():
    rng = np.random.default_rng(0)
    first, second = methods(rng, 3, 0.05, of_pair=0.0, of_image=0.0, of_seed=0.0)
    exact = difference(first, second, STRATA, SeedNoise(0.0, 4, 0.0))
    assert exact.value == pytest.approx(0.05) and exact.high - exact.low < 1e-9
    seeds = difference(first, second, STRATA, SeedNoise(0.01**2, 10**6, 0.0))
    assert seeds.high - seeds.value == pytest.approx(1.96 * 0.01 * (2 / 3) ** 0.5, rel=1e-3)
    # A variance that is known from three trainings alone is hardly known: Student's t with two degrees of freedom.
    few = difference(first, second, STRATA, SeedNoise(0.01**2, 2, 0.0))
    assert few.high - few.value == pytest.approx(4.303 * 0.01 * (2 / 3) ** 0.5, rel=1e-3)


def test_a_base_has_no_seed_and_adds_no_noise_of_one():
    rng = np.random.default_rng(4)
    method = methods(rng, 3, 0.05, of_seed=0.05)[0]
    base, noise = method.mean(0) - 0.05, seed_noise([method], STRATA)
    gain, with_another = gain_over_base(method, base, STRATA), difference(method, base[None], STRATA, noise)
    assert gain.value == pytest.approx(with_another.value) == pytest.approx(0.05)
    assert with_another.high - with_another.low > 1.5 * (gain.high - gain.low)


def test_more_trainings_are_a_narrower_interval_and_a_tag_weighs_as_much_as_another():
    rng = np.random.default_rng(1)
    first, second = methods(rng, 4)
    second[:, :30] += 1.0  # one of two tags, whose prompts are a third of all
    noise = seed_noise([first, second], STRATA)
    few, many = (difference(first[:n], second[:n], STRATA, noise) for n in (2, 4))
    assert many.high - many.low < few.high - few.low
    assert many.value == pytest.approx(-0.5, abs=0.1)


def test_without_a_second_seed_or_a_second_prompt_of_a_tag_there_is_no_interval():
    first, second = methods(np.random.default_rng(2), 1)
    none = seed_noise([first, second], STRATA)
    assert none.degrees == 0 and difference(first, second, STRATA, none).low is None
    assert difference(first, second, [np.array([0]), np.arange(1, 90)], SeedNoise(1.0, 3, 0.0)).low is None


def test_methods_are_compared_two_by_two_over_the_tags_of_the_overall_figure():
    tags = ["colors"] * 3 + ["position"] * 2 + ["text"] * 2
    records = [{"prompt": f"{tag} {i // 2}", "tag": tag} for i, tag in enumerate(tags)]  # some prompts are there twice
    rng = np.random.default_rng(3)
    of_method = {
        name: [
            Judged({"strict": rng.uniform(size=7), "closed": rng.uniform(size=7)}, np.zeros(0), 0.0) for _ in range(2)
        ]
        for name in ("a", "b", "c")
    }
    entries = differences_of_methods(of_method, records, "test")
    assert [(entry["first"], entry["second"]) for entry in entries] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert set(entries[0]) == {"first", "second", "of_seeds", "strict", "closed"}
    overall = lambda name: np.mean(
        [
            np.mean([[x[0:2].mean(), x[2]], [x[3], x[4]]][tag])
            for one in of_method[name]
            for tag, x in ((0, one.figures["strict"]), (1, one.figures["strict"]))
        ]
    )
    assert entries[2]["strict"]["value"] == pytest.approx(overall("b") - overall("c"))
    one_seed = differences_of_methods({name: judged[:1] for name, judged in of_method.items()}, records, "test")
    assert (entries[0]["of_seeds"], one_seed[0]["of_seeds"]) == (True, False)
    assert one_seed[0]["strict"]["low"] < one_seed[0]["strict"]["value"] < one_seed[0]["strict"]["high"]
    assert entries[2]["strict"]["low"] < entries[2]["strict"]["value"] < entries[2]["strict"]["high"]
