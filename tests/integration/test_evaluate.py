"""Pictures, verdicts, and the intervals around their means."""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from afterflow.evaluation import shapes_suite as evaluate
from afterflow.evaluation.report import GENEVAL_TAGS, Report, ShapesSettings, compare_figures, render_report
from afterflow.evaluation.shapes_suite import Judged, shapes_report
from afterflow.experiment.image_grid import FAILED, PASSED, before_after
from afterflow.experiment.intervals import bootstrap, estimates, mean_of_means
from afterflow.experiment.serialization import from_json, to_json
from afterflow.models import generate
from afterflow.models.generate import draw_images, latent_spread, starting_noise
from afterflow.models.pipeline import Model
from afterflow.sampling.conditioning import Embedding, condition, linear_guidance
from afterflow.sampling.schedules import LinearShift

RNG = np.random.default_rng(0)


class Plain:
    """A model whose pictures are its latents, drawn towards what the prompt's length asks for."""

    schedule = LinearShift(1.0)
    latent_shape = (3, 32, 32)
    combine = staticmethod(linear_guidance)
    guided_velocity, guide = Model.guided_velocity, Model.guide
    encode_texts, encode_pictures = Model.encode_texts, Model.encode_pictures
    takes_pictures, most_pictures, stock, folder = "never", None, "Plain", None

    def __init__(self, pull=0.5):
        self.module = torch.nn.Linear(1, 1)
        self.pull = pull
        self.batches = []

    def encode(self, texts):
        return Embedding(torch.tensor([[[float(len(text))]] for text in texts]))

    def velocity(self, module):
        def v(x, t, cond):
            self.batches.append(len(x))
            return self.pull * x - cond.embedding().sequence[:, :, :, None] / 100

        return v

    def cut_prompts(self, texts):
        return ()

    def check_guidance(self, folder, scale):
        pass

    def decode(self, latents):
        return (latents * 40 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def strata(*sizes):
    ends = np.cumsum((0, *sizes))
    return [np.arange(a, b) for a, b in itertools.pairwise(ends)]


def judged(figures, frechet=1.0):
    return Judged(figures, np.zeros((len(next(iter(figures.values()))), 1), bool), frechet)


def test_the_mean_of_tag_means_is_not_the_mean_of_prompts():
    values = np.array([[0.0], [0.0], [0.0], [1.0]])
    assert mean_of_means(values, strata(3, 1)) == 0.5


def test_bootstrap_draws_what_brute_force_enumerates():
    """Three prompts and two, each tag drawn once less than it has: all 9 x 2 ways are equally likely."""
    values = np.array([[0.0], [0.3], [1.0], [0.2], [0.9]])
    a, b = values[:3, 0], values[3:, 0]
    every = [
        (np.mean(x) + np.mean(y)) / 2 for x in itertools.product(a, repeat=2) for y in itertools.product(b, repeat=1)
    ]
    drawn = bootstrap(values, strata(3, 2), 200_000, np.random.default_rng(0), np.arange(len(values)))[:, 0]
    points = np.linspace(0.05, 0.95, 19)
    shares = [(np.mean(drawn <= p), np.mean(np.array(every) <= p)) for p in points]
    assert max(abs(found - true) for found, true in shares) < 0.005


def test_bootstrap_has_the_variance_of_a_stratified_mean():
    values = RNG.normal(size=(60, 2)) * [1, 5]
    parts = strata(50, 10)
    drawn = bootstrap(values, parts, 50_000, np.random.default_rng(0), np.arange(len(values)))
    # The unbiased one: what Rao and Wu's n - 1 draws are for.
    variance = np.sum([values[part].var(0, ddof=1) / len(part) for part in parts], 0) / 4
    assert drawn.mean(0) == pytest.approx(mean_of_means(values, parts), abs=0.02)
    assert drawn.var(0) == pytest.approx(variance, rel=0.03)


def test_a_95_percent_interval_covers_the_truth_about_as_often():
    """At the sizes of the test split, where five prompts stand for counting."""
    covered, parts = [], strata(6, 5, 20, 24, 40)
    for trial in range(400):
        rng = np.random.default_rng(trial)
        values = rng.binomial(8, 0.3, (95, 1)) / 8 - rng.binomial(8, 0.3, (95, 1)) / 8
        [found] = estimates(values, parts, 1000, rng)
        covered.append(found.low <= 0 <= found.high)
    assert 0.90 < np.mean(covered) < 0.98


def test_pairing_narrows_the_interval_of_a_delta():
    """Prompts differ much, models little: unpaired draws would bury the delta."""
    hard = RNG.random(40)
    base, tuned = {"strict": hard}, {"strict": hard + 0.01}
    found = compare_figures(tuned, base, strata(20, 20), 2000, np.random.default_rng(0))["strict"]
    assert found.delta.value == pytest.approx(0.01)
    assert (found.delta.low, found.delta.high) == pytest.approx((0.01, 0.01))
    assert found.tuned.high - found.tuned.low > 0.1


def test_one_prompt_has_no_interval():
    [found] = estimates(np.array([[0.5], [0.1], [0.3]]), strata(1, 2), 100, RNG)
    assert (found.value, found.low, found.high) == (pytest.approx(0.35), None, None)


def tiny_records():
    return evaluate.suite_prompts(ShapesSettings(prompts=14), (32, 32))


def test_overall_leaves_text_out_and_weighs_tags_equally():
    records = tiny_records()
    by_tag = {tag: i / 10 for i, tag in enumerate((*GENEVAL_TAGS, "text"))}
    figures = {"strict": np.array([by_tag[record["tag"]] for record in records])}
    found = shapes_report(
        ShapesSettings(draws=100), records[1:], judged({"strict": figures["strict"][1:]}), None, {}, ("m", None)
    )
    assert found.overall["strict"].tuned.value == pytest.approx(0.3), "a lone object cannot be held out"
    assert found.six.tuned.value == pytest.approx(0.25)
    assert found.tags["text"]["strict"].tuned.value == pytest.approx(0.6)
    assert found.prompts["single_object"] == 1 and found.prompts["text"] == 2


def test_a_prompt_that_is_drawn_again_counts_once():
    """Two counting prompts, one of them drawn three times: their mean is a mean of two."""
    records = [{"tag": "counting", "prompt": prompt} for prompt in "aaab"]
    figures = {"strict": np.array([0.0, 0.3, 0.6, 0.9])}
    found = shapes_report(ShapesSettings(draws=100), records, judged(figures), None, {}, ("m", None))
    assert found.overall["strict"].tuned.value == pytest.approx((0.3 + 0.9) / 2)
    assert found.prompts["counting"] == 2


def test_tags_with_few_facts_draw_them_again():
    records = evaluate.suite_prompts(ShapesSettings(prompts=280), (32, 32))
    counting = [record["prompt"] for record in records if record["tag"] == "counting"]
    assert len(counting) == 40 and len(set(counting)) == 5


def test_ood_has_no_single_object():
    records = evaluate.suite_prompts(ShapesSettings("ood", prompts=12), (32, 32))
    assert sorted({record["tag"] for record in records}) == sorted({*GENEVAL_TAGS[1:], "text"})


def test_a_suite_is_the_same_every_time_and_another_for_another_seed():
    assert tiny_records() == tiny_records() != evaluate.suite_prompts(ShapesSettings(prompts=14, seed=1), (32, 32))


def test_large_pictures_are_refused():
    with pytest.raises(ValueError, match="images of 32 x 32 or 64 x 64 px, and the model draws 1024 x 1024"):
        evaluate.suite_prompts(ShapesSettings(), (1024, 1024))


def test_noise_depends_on_seed_and_place_alone():
    records = [{"prompt": str(i)} for i in range(5)]
    cond = condition(Embedding(torch.zeros(5, 1, 1)), Embedding(torch.zeros(1, 1, 1)), records)
    noise = starting_noise(cond, 3, (2, 4), 7)
    assert torch.equal(starting_noise(cond[torch.tensor([3, 1])], 3, (2, 4), 7), noise[[3, 1]])
    assert not torch.equal(starting_noise(cond, 3, (2, 4), 8), noise)


def test_pictures_do_not_depend_on_how_prompts_are_batched(monkeypatch):
    records = tiny_records()
    whole = draw_images(Plain(), records, 3, 4, 1.0, 0)
    monkeypatch.setattr(generate, "CHUNK", 5)
    model = Plain()
    parts = draw_images(model, records, 3, 4, 1.0, 0)
    assert whole.shape == (14, 3, 32, 32, 3) and whole.dtype == np.uint8
    assert np.array_equal(whole, parts)
    assert set(model.batches) == {5}


def compared(tuned, base):
    settings = ShapesSettings(prompts=14, images=2, steps=3, draws=200)
    records = tiny_records()
    pictures = [evaluate.suite_pictures(model, records, settings) for model in (tuned, base)]
    return evaluate.compare_pictures(settings, records, *pictures, "tuned", "base")[0]


def test_spread_is_the_distance_of_images_and_their_std():
    """Prompts at ±3, images around them with std 0.5: √2 · 0.5 apart, and √(9 + 0.25) from the mean of all."""
    draws = torch.Generator().manual_seed(0)
    centre = torch.tensor([3.0, -3.0])[:, None, None]
    found = latent_spread(centre + 0.5 * torch.randn(2, 400, 200, generator=draws))
    assert found["diversity"] == pytest.approx(0.5 * 2**0.5, rel=0.01)
    assert found["std"] == pytest.approx((9 + 0.25) ** 0.5, rel=0.01)
    assert "diversity" not in latent_spread(torch.randn(2, 1, 200, generator=draws))


def test_identical_models_differ_by_exactly_nothing():
    found = compared(Plain(), Plain())
    for scores in (found.overall, *found.tags.values()):
        for each in scores.values():
            assert each.tuned == each.base
            assert (each.delta.value, each.delta.low, each.delta.high) == (0, 0, 0)
    assert found.frechet.delta.value == 0
    assert found.overall["diversity"].tuned.value > 0


def test_models_that_differ_are_told_apart():
    found = compared(Plain(0.9), Plain(0.1))
    assert found.overall["diversity"].delta.value != 0 and found.frechet.delta.value != 0


def test_true_pictures_pass_everything():
    records = tiny_records()
    images = evaluate.renders(records, (14, 2, 32, 32, 3), 0, "somewhere else")
    found, good, _ = evaluate.compare_pictures(
        ShapesSettings(images=2, draws=100), records, images, None, "truth", None
    )
    for name in ("official", "strict", "closed"):
        assert found.overall[name].tuned.value == 1
    assert found.overall["fidelity"].tuned.value > 0.9
    assert good.strict.all()
    noisy = np.clip(images + RNG.normal(0, 60, images.shape), 0, 255).astype(np.uint8)
    worse = evaluate.compare_pictures(ShapesSettings(images=2, draws=100), records, noisy, images, "noise", "truth")[0]
    assert worse.overall["strict"].delta.high < 0 and worse.frechet.delta.value > 0
    assert worse.frechet.base.value < 10 * found.truth["frechet"]


def test_a_report_survives_json_and_is_shown_whole():
    found = compared(Plain(0.9), Plain(0.1))
    assert from_json(Report, json.loads(json.dumps(to_json(found)))) == found
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_report(found))
    text = console.export_text()
    assert "mean over 5 of GenEval's 6 tags" in text and "no fact that could" in text
    for name in (*GENEVAL_TAGS, "text", *found.overall):
        assert name in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_grid_shows_base_left_and_tuned_right_over_their_verdicts():
    records = tiny_records()
    base, tuned = np.full((14, 1, 32, 32, 3), 10, np.uint8), np.full((14, 1, 32, 32, 3), 200, np.uint8)
    passed = np.arange(14)[:, None] % 2 == 0
    sheet = np.asarray(before_after(records, [(base[:, 0], np.zeros(14, bool)), (tuned[:, 0], passed[:, 0])]))
    place = np.argwhere((sheet == 10).all(-1))[0]  # the first picture's upper left corner
    assert (sheet[place[0] + 50, place[1] + [50, 150]] == [[10] * 3, [200] * 3]).all()
    assert (sheet[place[0] + 97, place[1] + [50, 150]] == [FAILED, PASSED]).all()
