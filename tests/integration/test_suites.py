"""Suites of prompts: where they come from, the folder they are drawn into, and what is said about it."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinies
from adapters import save_lora
from afterflow.cli.main import main
from afterflow.data.prompt_lists import read_prompts
from afterflow.evaluation import image_store as gallery
from afterflow.evaluation.clip_distances import Features, between
from afterflow.evaluation.image_set import ImageSet, PictureSource
from afterflow.evaluation.scores import score_images
from afterflow.evaluation.suites import SUITES, evenly, suite_records, suite_report
from afterflow.experiment.serialization import to_json
from afterflow.recipes import RECIPES
from afterflow.rewards.base import RewardModels, reward
from afterflow.rewards.registry import REWARDS

pytestmark = pytest.mark.usefixtures("own_folder")
POINTS = {"Testpoints": ["Style", "Attribute - Color"], "Testpoint Description": ["an etching", "a red heart"]}


def written(name, text):
    Path(name).write_text(text)
    return name


# Where prompts come from


def test_lists_are_read_as_their_authors_publish_them():
    table = 'Prompts,Category\na red heart,Colors\n"a ring, blue",Colors\na red heart,Colors\n'
    found = read_prompts(written("drawbench.csv", table))
    assert [(r["prompt"], r["tag"]) for r in found] == [("a red heart", "Colors"), ("a ring, blue", "Colors")]
    Path("hpd").mkdir()
    for style in ("anime", "photo"):
        written(f"hpd/{style}.json", json.dumps([f"{style} of a heart", f"{style} of a ring"]))
    assert [r["tag"] for r in read_prompts("hpd")] == ["anime", "anime", "photo", "photo"]
    assert read_prompts(written("plain.txt", "a heart\n\na ring\n")) == [
        {"tag": "all", "prompt": "a heart"},
        {"tag": "all", "prompt": "a ring"},
    ]
    quoted = json.dumps(POINTS).replace('"', '""')
    [record] = read_prompts(written("unigen.csv", f'index,prompt_en,sub_dims_en\n0,a heart,"{quoted}"\n'))
    assert record["points"] == [["Style", "an etching"], ["Attribute - Color", "a red heart"]]


def test_a_prompt_that_stands_there_again_with_other_facts_is_told(caplog):
    table = "prompt,tag\na heart,Colors\na ring,Colors\na heart,Colors\n"
    read_prompts(written("same.csv", table))
    assert not caplog.records
    [heart, _] = read_prompts(written("other.csv", table + "a heart,Count\na heart,Signs\n"))
    assert heart["tag"] == "Signs"
    [record] = caplog.records
    assert record.message.startswith("other.csv:5: its prompt stood there before") and "of 1 more" in record.message


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.csv", "words\na heart\n", "row 1 has no text under one of prompt, prompts"),
        ("a.csv", "prompt\n", "it holds no prompt; write one per line"),
        ("a.json", "{", "a.json: not JSON"),
        ("a.json", '{"prompt": "a heart"}', "it is no list"),
        ("a.csv", "prompt,sub_dims_en\na heart,[]\n", "sub_dims_en holds no test points"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_its_place(name, text, said):
    with pytest.raises(ValueError, match=said):
        read_prompts(written(name, text))
    with pytest.raises(ValueError, match="no such file or folder"):
        read_prompts("nowhere.csv")


def test_fewer_prompts_are_shared_among_the_tags():
    records = [{"tag": tag, "prompt": f"{tag}{i}"} for tag, many in (("a", 5), ("b", 2)) for i in range(many)]
    assert [r["prompt"] for r in evenly(records, 5)] == ["a0", "a1", "a2", "b0", "b1"]


@pytest.mark.parametrize("suite, tags", [("edits", 7), ("video", None)])
def test_fewer_prompts_of_ours_are_of_every_tag(suite, tags):
    tags = tags or len({record["tag"] for record in suite_records(suite, None, None, ())})
    for count in (tags, tags + 3, 5 * tags + 1):
        records = suite_records(suite, None, count, ())
        of_tag = Counter(record["tag"] for record in records)
        assert len(records) == count and len(of_tag) == tags and max(of_tag.values()) - min(of_tag.values()) <= 1


# The folder


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 5, 8, 6, 3)])
def test_pictures_and_clips_come_back_as_they_were(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    folder = Path("drawn")
    gallery.open_store(folder, {"steps": 4})
    gallery.add_images(folder, 0, {"prompt": "a heart", "tag": "x"}, images)
    assert gallery.missing_prompts(folder, 2) == [1] and gallery.holds_images(folder)
    assert np.array_equal(gallery.read_prompts_together(folder, [0])[0], images)
    assert gallery.read_records(folder) == [{"prompt": "a heart", "tag": "x"}]
    gallery.open_store(folder, {"steps": 4})
    with pytest.raises(ValueError, match=r"drawn holds pictures drawn with steps = 4; delete it"):
        gallery.open_store(folder, {"steps": 5})


def test_a_folder_of_others_is_read_and_not_written_into():
    samples = Path("theirs/00000/samples")
    samples.mkdir(parents=True)
    Path("theirs/00000/metadata.jsonl").write_text('{"tag": "colors", "prompt": "a heart", "include": []}')
    for name in ("0001.png", "0000.png"):
        Image.new("RGB", (6, 8), (int(name[3]), 0, 0)).save(samples / name)
    Path("theirs/grid.png").touch()
    assert gallery.read_prompt(Path("theirs/00000"))[:, 0, 0, 0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="holds pictures that afterflow did not draw"):
        gallery.open_store(Path("theirs"), {})
    Path("theirs/00000/metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"00000/metadata\.jsonl: it holds no record with a prompt"):
        gallery.read_records(Path("theirs"))


def test_a_folder_that_was_drawn_of_other_prompts_is_not_listed_prompt_by_prompt():
    prompts = [f"prompt {i}" for i in range(300)]
    gallery.open_store(Path("drawn"), {"prompts": prompts})
    gallery.add_images(Path("drawn"), 0, {"prompt": prompts[0]}, np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"drawn with prompts = 300 such as 'prompt 0'; delete it") as raised:
        gallery.open_store(Path("drawn"), {"prompts": prompts[1:]})
    assert len(str(raised.value)) < 150


def test_prompts_with_other_numbers_of_pictures_are_named_before_any_is_scored():
    for index, many in enumerate((2, 2, 1)):
        gallery.add_images(Path("drawn"), index, {"prompt": "a"}, np.zeros((many, 4, 4, 3), np.uint8))
    images = ImageSet(PictureSource("drawn"), [{"prompt": "a", "tag": "all"}] * 3, Path("drawn"))
    with pytest.raises(
        ValueError, match=r"drawn/00002 has 1 pictures and drawn/0000[01] has 2; give every prompt as many"
    ):
        score_images(images, ["jpeg_compressibility"], RewardModels(), print)


# What is said


def records(*tags):
    return [{"tag": tag, "prompt": f"{tag} {i}"} for i, tag in enumerate(tags)]


def test_tags_count_alike_and_pictures_without_a_score_do_not():
    tuned = np.array([[1, 1], [0, 0], [1, np.nan], [0.5, 0.5]])
    found = suite_report("ocr", records("a", "a", "a", "b"), {"ocr": tuned}, None, ("m", None), 0, 50)
    assert found.tags["a"]["ocr"].tuned.value == pytest.approx(2 / 3)
    assert found.overall["ocr"].tuned.value == pytest.approx((2 / 3 + 0.5) / 2)
    assert found.invalid == {"ocr": 1} and found.prompts == {"a": 3, "b": 1}


def test_a_prompt_that_one_model_has_no_score_of_is_left_out_of_both():
    tuned, base = np.array([[1.0], [1.0], [0.0]]), np.array([[0.0], [np.nan], [0.0]])
    found = suite_report("ocr", records("a", "a", "a"), {"ocr": tuned}, {"ocr": base}, ("m", "b"), 0, 50)
    each = found.overall["ocr"]
    assert (each.tuned.value, each.base.value, each.delta.value) == (0.5, 0, 0.5)
    with pytest.raises(ValueError, match="ocr scored no picture"):
        suite_report("ocr", records("a"), {"ocr": tuned[:1] * np.nan}, None, ("m", None), 0, 50)


def test_every_suite_says_where_its_prompts_are():
    for name, suite in SUITES.items():
        assert suite.source and suite.rewards
        if suite.generate is not None:
            made = suite.generate(6)
            assert len(made) >= 6 and all("tag" in record for record in made), name


# The command


def said(capsys, *argv):
    try:
        code = main([str(word) for word in argv])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


def test_a_suite_is_drawn_judged_and_gone_on_with(capsys, pipeline):
    written("prompts.csv", "prompt,category\na red heart,x\na blue ring,x\ntwo stars,y\n")
    lora = save_lora(pipeline, "lora", 0)
    base = [pipeline, "--suite", "drawbench", "--prompts-from", "prompts.csv", "--rewards", "jpeg_compressibility"]
    options = ["--images", 2, "--steps", 2, "--guidance", 1, "--draws", 50, "--json", "-", "--lora", lora]
    code, out, err = said(capsys, "eval", *base, *options, "--against", "base", "--out", "drawn")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["prompts"] == {"x": 2, "y": 1} and found["against"] == pipeline
    assert found["overall"]["jpeg_compressibility"]["delta"]["value"] != 0
    sample = Path("drawn/tuned/00001/samples/0001.png")
    before = sample.read_bytes()
    shutil.rmtree("drawn/tuned/00001")
    Path("drawn/tuned/scores.json").unlink()
    code, again, err = said(capsys, "eval", *base, *options, "--against", "base", "--out", "drawn")
    assert code == 0 and json.loads(again.splitlines()[-1]) == found
    assert sample.read_bytes() == before
    judged = ["--suite", "drawbench", "--rewards", "jpeg_compressibility", "--json", "-"]
    code, out, _ = said(capsys, "eval", "drawn/tuned", *judged)
    alone = json.loads(out.splitlines()[-1])
    assert alone["overall"]["jpeg_compressibility"]["tuned"]["value"] == pytest.approx(
        found["overall"]["jpeg_compressibility"]["tuned"]["value"]
    )
    for place in range(3):  # other pictures are asked about again
        for file in Path(f"drawn/tuned/{place:05}/samples").iterdir():
            Image.new("RGB", (32, 32)).save(file)
    code, out, _ = said(capsys, "eval", "drawn/tuned", *judged)
    black = json.loads(out.splitlines()[-1])["overall"]["jpeg_compressibility"]["tuned"]
    assert black["low"] == black["high"] != alone["overall"]["jpeg_compressibility"]["tuned"]["value"]
    for changed in (["--steps", 3], ["--steps", 2, "--lora", save_lora(pipeline, "lora", 1)]):
        words = ["--images", 2, "--guidance", 1, *changed, "--out", "drawn"]
        code, _, err = said(capsys, "eval", *base, *words)
        assert code == 2 and "drawn/tuned holds pictures drawn with" in err


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_format_of_the_files_is_said_and_another_format_is_warned_of(kind, capsys):
    for folder, form in (("one", "PNG"), ("other", kind)):
        for i in range(2):
            gallery.add_images(Path(folder), i, {"prompt": f"{i}"}, np.full((1, 8, 8, 3), i, np.uint8))
            Image.new("RGB", (8, 8)).save(Path(folder, f"{i:05}", "samples", "0000.png"), form)
    words = ["--suite", "drawbench", "--rewards", "jpeg_compressibility", "--draws", 9]
    code, out, err = said(capsys, "eval", "one", "--against", "other", *words)
    assert code == 0, err
    assert f"Files: tuned PNG, base {kind}." in out and ("Warning: what JPEG" in out) == (kind == "JPEG")


def test_a_score_that_could_not_be_had_is_asked_for_again(monkeypatch):
    asked, said = [], []

    @reward("flaky", 0, 1)
    def flaky(images, records):
        asked.append(len(images))
        return np.array([np.nan if len(asked) == 1 and r["prompt"] == "1" else 0.5 for r in records])

    monkeypatch.setitem(REWARDS, "flaky", flaky)
    made = [{"prompt": str(i), "tag": "x"} for i in range(3)]
    for place, record in enumerate(made):
        gallery.add_images(Path("g"), place, record, np.zeros((2, 8, 8, 3), np.uint8))
    images = lambda records: ImageSet(PictureSource("g"), records, Path("g"))
    score = lambda records: score_images(images(records), ["flaky"], RewardModels(), said.append)["flaky"]
    assert np.isnan(score(made)[1]).all() and said == ["2 pictures have no flaky, first '1': it is not a finite number"]
    assert (score(made) == 0.5).all() and (score(made) == 0.5).all()
    assert asked == [6, 2]
    score([made[0], made[1] | {"tag": "y"}, made[2]])  # another record is another question
    assert asked == [6, 2, 2]


def test_the_scale_is_the_loras_own_or_what_is_usual(capsys, pipeline):
    written("prompts.txt", "a heart\n")
    words = ["--suite", "drawbench", "--prompts-from", "prompts.txt", "--rewards", "jpeg_compressibility", "--draws", 9]
    words += ["--images", 1, "--steps", 1]
    assert "guidance scale 4.5" in said(capsys, "eval", pipeline, *words, "--out", "usual")[2]
    lora = save_lora(pipeline, "lora", 0)
    run = RECIPES["shapes_flow_grpo"]().with_options(guidance_scale=1.5)
    Path(lora, "run.json").write_text(json.dumps({"recipe": "x", "config": to_json(run)}))
    assert "guidance scale 1.5" in said(capsys, "eval", pipeline, *words, "--lora", lora, "--out", "its")[2]
    assert json.loads(Path("its/tuned/settings.json").read_text())["guidance"] == 1.5
    gallery_words = ["--suite", "drawbench", "--rewards", "jpeg_compressibility"]
    for more, sentence in (
        (["--lora", lora], "holds pictures, on which no LoRA can be put"),
        (["--against", "base", "--lora", lora], "holds pictures, on which no LoRA can be put"),
        (["--prompts-from", "x", "--steps", 3], "so --prompts-from, --steps would change nothing"),
        (
            ["--against", pipeline, "--prompts-from", "prompts.txt", "--steps", 3],
            "was drawn with images = 1; say --images 1",
        ),
        (["--distances"], "--distances needs --against or --reference"),
        (["--distances", "--reference", "nowhere"], "no pictures in GenEval's layout are there"),
        (["--draws", 0], "draws = 0: at least 1"),
    ):
        code, _, err = said(capsys, "eval", "its/tuned", *gallery_words, *more)
        assert code == 2 and sentence in err, err


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--suite", "geneval"], "--suite geneval needs --prompts-from: evaluation_metadata.jsonl"),
        (["--suite", "genevil"], "no choice is 'genevil'"),
        (["--suite=ocr", "--against", "base"], "compares MODEL with itself"),
        (["--suite", "ocr", "--reference", "x"], "--reference is what --distances measures to"),
        (["--suite", "hpd", "--prompts", "0"], "prompts = 0: at least 1"),
        (["--suite", "ocr", "--prompts-from", "plain.txt"], "prompt 'a heart'"),
        (["--suite", "video"], "moving_strict judges clips, and"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, pipeline, words, sentence):
    written("plain.txt", "a heart\n")
    code, _, err = said(capsys, "eval", pipeline, *words)
    assert code == 2 and sentence in err


def test_distances_are_0_to_the_same_pictures_and_grow_with_what_differs():
    pytest.importorskip("torchmetrics")
    models = RewardModels(weights={"clipscore": str(tinies.clip(Path("clip")))})
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 128, (6, 2, 32, 32, 3), np.uint8)
    for name, images in (
        ("one", dark),
        ("same", dark),
        ("near", dark + rng.integers(0, 9, dark.shape, np.uint8)),
        ("far", 255 - dark),
    ):
        for place, each in enumerate(images):
            gallery.add_images(Path(name), place, {"prompt": str(place)}, each)
    features = Features(models)
    found = {name: between(Path("one"), Path(name), features) for name in ("same", "near", "far")}
    assert found["same"][0] == pytest.approx(0, abs=1e-3)
    assert found["same"][0] < found["near"][0] < found["far"][0] and found["near"][1] < found["far"][1]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--rewards", "ocr", "--out", "x"], "--suite shapes has no --rewards, --out"),
        (["--chunk", 8], "--suite shapes has no --chunk"),
        (["--suite", "ocr", "--split", "ood", "--teachers", "text=x"], "--suite ocr has no --split, --teachers"),
    ],
)
def test_options_of_another_suite_are_refused(capsys, words, sentence):
    code, _, err = said(capsys, "eval", "tiny", *words)
    assert code == 2 and sentence in err


def test_the_help_names_every_suite_once_and_all_options(capsys):
    code, out, _ = said(capsys, "eval", "--help")
    assert code == 0 and f"{{{','.join(SUITES)}}}" in "".join(out.split())
    assert all(option in out for option in ("--teachers", "--grid", "--prompts-from", "--rewards", "--distances"))
