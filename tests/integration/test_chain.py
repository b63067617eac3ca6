"""Stages that build on each other, and what a second start does."""

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapters import save_lora
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.sft import SFT
from afterflow.data.geneval_prompts import MixedPrompts, ObjectPrompts, SignPrompts
from afterflow.data.images import ImageFolder
from afterflow.data.pairs import SampledPairs
from afterflow.data.prompts import PromptFile, ShapesPrompts, check_tag_schedule, prompt_rows
from afterflow.experiment import stages as chains
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute as train
from afterflow.experiment.made_from import digest_of_path, inputs
from afterflow.experiment.serialization import to_json
from afterflow.experiment.stages import Chain, Merge, Samples, check_same_stage, execute_chain
from afterflow.models.adapters import LoRA, Teacher
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES, generalist

MODEL = SD3("pipeline", max_sequence_length=0)
TEACHERS = tuple(Teacher(tag, f"runs/{tag}/lora", (tag,)) for tag in ("colors", "counting"))


@pytest.fixture(autouse=True)
def elsewhere(pipeline, tmp_path, monkeypatch):
    """In a folder of its own; stages are trained in this process, which is quicker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chains, "train_in_subprocess", lambda run, recipe, processes: train(run, recipe))
    Path("pipeline").symlink_to(pipeline)


def specialist(tag):
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=3, group=2, beta=0.0)
    data = ShapesPrompts(count=4, tags=(tag,))
    return Run(algorithm, data, MODEL, LoRA(rank=2, alpha=2), name=tag).with_options(
        iterations=1, batch=2, chunk=4, sample_every=0
    )


def whole():
    teachers = specialist("colors"), specialist("counting")
    merge = Merge(tuple(teacher.lora for teacher in TEACHERS), name="merged", rank=3)
    data = ShapesPrompts(count=4, tags=("colors", "counting"))
    student = replace(
        teachers[0],
        algorithm=FlowOPD(steps=3, group=2),
        data=data,
        teachers=TEACHERS,
        tune=LoRA(rank=3, alpha=3, start="runs/merged/lora"),
        name="student",
    )
    samples = Samples(MODEL, TEACHERS, data, "samples", per_prompt=2, steps=2)
    images = ImageFolder("runs/samples/images", caption="caption")
    pupil = replace(teachers[0], algorithm=SFT(), data=images, name="pupil")
    return Chain("whole", (*teachers, merge, student, samples, pupil))


def metadata(name):
    return [json.loads(line) for line in Path(f"runs/{name}/images/metadata.jsonl").read_text().splitlines()]


def test_a_chain_does_its_stages_once(caplog):
    caplog.set_level("INFO", "afterflow")
    assert str(execute_chain(whole())) == "runs/pupil"
    assert "whole, stage 3 of 6, merged: what its rank cannot hold is" in caplog.text
    assert json.loads(Path("runs/student/run.json").read_text())["recipe"] == "whole"
    lines = metadata("samples")
    assert len(lines) == 4 * 2 and {line["tag"] for line in lines} == {"colors", "counting"}
    execute_chain(whole())
    assert caplog.text.count("is there already") == 6
    caplog.clear()
    shutil.rmtree("runs/pupil/lora")
    Path("runs/merged/stage.json").unlink()
    with pytest.raises(ValueError, match="runs/pupil already holds a run"):  # train_in_subprocess would resume it
        execute_chain(whole())
    assert caplog.text.count("is there already") == 4


def test_a_stage_of_other_settings_is_refused_before_anything_is_trained():
    first = whole().stages[0]
    train(first, "whole")
    saved_before = Path("runs/colors/metrics.jsonl").read_text()
    changed = replace(whole(), stages=(*whole().stages[1:], first.with_options(iterations=2)))
    with pytest.raises(ValueError, match="runs/colors holds a run with other settings"):
        execute_chain(changed)
    assert not Path("runs/counting").exists()
    assert Path("runs/colors/metrics.jsonl").read_text() == saved_before
    Path("runs/merged").mkdir()
    merged = next(stage for stage in whole().stages if isinstance(stage, Merge))
    Path("runs/merged/stage.json").write_text(json.dumps(to_json(replace(merged, density=0.1))))
    with pytest.raises(ValueError, match="runs/merged holds a stage with other settings"):
        execute_chain(whole())
    Path("runs/merged/stage.json").write_text('{"name": "merged"}')
    with pytest.raises(ValueError, match=r"runs/merged/stage\.json has no field 'loras', which it needs"):
        execute_chain(whole())


def test_a_stage_of_an_older_version_that_lacks_an_option_is_taken():
    merged = Merge(("one", "two"), name="merged", rank=2)
    Path("runs/merged").mkdir(parents=True)
    record = to_json(merged)
    del record["density"]
    Path("runs/merged/stage.json").write_text(json.dumps(record))
    check_same_stage(merged)
    with pytest.raises(ValueError, match="other settings"):
        check_same_stage(replace(merged, density=0.1))


def test_a_stage_made_from_what_has_changed_since_is_refused():
    execute_chain(whole())
    for folder, name in (("runs/colors/lora", "runs/merged"), ("runs/merged/lora", "runs/student")):
        before = {file: file.read_bytes() for file in Path(folder).iterdir()}
        save_lora("pipeline", folder, 7, 2)
        with pytest.raises(ValueError, match=f"{name} was made from another {folder}; delete it"):
            execute_chain(whole())
        for file, content in before.items():
            file.write_bytes(content)
    execute_chain(whole())


def test_a_stage_knows_all_that_it_was_made_from_wherever_it_is_named(tmp_path):
    run = next(stage for stage in whole().stages if isinstance(stage, Run))
    named = Path("runs/before/model/model_index.json")
    named.parent.mkdir(parents=True)
    prompts = tmp_path / "p.txt"
    pairs = SampledPairs(PromptFile(str(prompts)), {"jpeg_compressibility": 1.0})
    mixed = MixedPrompts((SignPrompts(count=4), PromptFile(str(prompts))))
    whole_path = str(named.parent.resolve())
    for stage, file, name in (
        (Samples(SD3("runs/before/model"), (Teacher("base", None),), ShapesPrompts()), named, "runs/before/model"),
        (replace(run, model=SD3("runs/before/model")), named, "runs/before/model"),
        (replace(run, model=SD3(whole_path)), named, whole_path),
        (replace(run, data=PromptFile(str(prompts))), prompts, str(prompts)),
        (run.with_options(held_out=PromptFile(str(prompts)), eval_every=1), prompts, str(prompts)),
        (Samples(run.model, (Teacher("base", None),), PromptFile(str(prompts))), prompts, str(prompts)),
        (replace(run, data=mixed), prompts, str(prompts)),
        (replace(run, data=ObjectPrompts(exclude=str(prompts))), prompts, str(prompts)),
        (replace(run, data=pairs, algorithm=DPO()), prompts, str(prompts)),
    ):
        file.write_text("a star")
        before = inputs(stage)
        file.write_text("a ring")
        assert name in before and inputs(stage)[name] != before[name], stage
    assert not inputs(replace(run, model=SD3("owner/name")))


def test_files_that_trade_places_are_others():
    for folder in ("a", "b"):
        Path("runs/model", folder).mkdir(parents=True)
        Path("runs/model", folder, "config.json").write_text(folder)
    before = digest_of_path(Path("runs/model"))
    Path("runs/model/a").rename("c"), Path("runs/model/b").rename("runs/model/a"), Path("c").rename("runs/model/b")
    assert digest_of_path(Path("runs/model")) != before


def test_a_teachers_model_is_let_go_before_the_next_is_loaded(monkeypatch, pipeline, tmp_path):
    loaded, alive, load = [], [], SD3.load

    def counted(self, device="cpu"):
        alive.append(sum(network() is not None for network in loaded))
        model = load(self, device)
        loaded.append(weakref.ref(model.module))
        return model

    monkeypatch.setattr(SD3, "load", counted)
    teachers = tuple(Teacher(tag, save_lora(pipeline, tmp_path / tag, 1), (tag,)) for tag in ("colors", "counting"))
    loaded.clear()
    alive.clear()
    data = ShapesPrompts(count=2, tags=("colors", "counting"))
    Samples(MODEL, teachers, data, "samples", per_prompt=1, steps=1)()
    assert alive == [0, 0] and len(metadata("samples")) == 2


def test_a_later_stage_that_cannot_be_run_is_refused_before_the_first_is():
    first, *rest = whole().stages
    student = replace(rest[2], data=ShapesPrompts(count=4, tags=("position",)))
    with pytest.raises(ValueError, match=r"the task 'position' of prompt .* has no teacher"):
        execute_chain(Chain("whole", (first, student)))
    assert not Path("runs/colors").exists()


def test_each_teacher_draws_the_prompts_of_its_own_tasks():
    """From the noise the prompt has in the whole set, so that the same prompt drawn alone gives the same pictures."""
    for seed, teacher in enumerate(TEACHERS):
        save_lora("pipeline", f"runs/{teacher.name}/lora", seed, 2)
    both = Samples(MODEL, TEACHERS, ShapesPrompts(count=4, tags=("colors", "counting")), "both", per_prompt=2, steps=2)
    both()
    swapped = tuple(replace(t, lora=u.lora) for t, u in zip(TEACHERS, TEACHERS[::-1]))
    replace(both, teachers=(TEACHERS[0], swapped[1]), name="half")()
    pictures = {
        name: {
            line["file_name"]: (line["tag"], np.asarray(Image.open(f"runs/{name}/images/{line['file_name']}")))
            for line in metadata(name)
        }
        for name in ("both", "half")
    }
    assert pictures["both"].keys() == pictures["half"].keys() and len(pictures["both"]) == 8
    for file, (tag, pixels) in pictures["both"].items():
        assert np.array_equal(pixels, pictures["half"][file][1]) == (tag == "colors")


def test_two_stages_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two stages are called colors"):
        Chain("twice", (specialist("colors"), specialist("colors")))


def test_prompts_take_turns_by_tag():
    records = [{"prompt": f"{tag} {i}", "tag": tag} for tag in ("a", "b", "c") for i in range(10)]
    seen = [{records[i]["tag"] for i in prompt_rows(records, {"a": 3, "c": 1}, step, 4, 0)} for step in range(8)]
    assert seen == [{"a"}, {"a"}, {"a"}, {"c"}] * 2
    # Over its turns a tag shows all of its prompts before one comes again.
    of_a = [i for step in (0, 1, 2, 4, 5) for i in prompt_rows(records, {"a": 3, "c": 1}, step, 4, 0).tolist()]
    assert sorted(of_a) == sorted([*range(10), *range(10)])
    with pytest.raises(ValueError, match="no prompt has the tag 'd'"):
        check_tag_schedule(records, {"a": 1, "b": 1, "c": 1, "d": 1})
    with pytest.raises(ValueError, match="the tag 'b' of prompt 'b 0' never has its turn"):
        check_tag_schedule(records, {"a": 1, "c": 1})
    check_tag_schedule(records, {})


def test_the_generalist_s_chains_share_their_teachers():
    made = {name: recipe() for name, recipe in RECIPES.items() if recipe.__module__ == generalist.__name__}
    stages = {name: chain.stages for name, chain in made.items() if isinstance(chain, Chain)}
    teachers = stages["shapes_generalist"][:4]
    others = ("shapes_cascade", "shapes_generalist_nft")
    assert all(chain[:4] == teachers for name, chain in stages.items() if name not in others)
    for name in ("shapes_generalist", "shapes_generalist_nft"):
        student, runs = stages[name][-1], stages[name][:4]
        taught = {task for teacher in student.teachers for task in teacher.tasks}
        assert taught == set(student.data.tags)
        assert [t.lora for t in student.teachers] == [str(run.folder / "lora") for run in runs]
        for teacher, run in zip(student.teachers, runs):
            assert set(teacher.tasks) == set(run.data.tags)
    kinds = [type(run.algorithm).__name__ for run in stages["shapes_generalist_nft"][:4]]
    assert kinds == ["DiffusionNFT"] * 3 + ["FlowGRPO"]


def test_a_stage_remembers_what_a_run_s_folder_or_a_file_of_a_lora_held():
    save_lora("pipeline", "runs/a/lora", 0)
    file = "runs/a/lora/pytorch_lora_weights.safetensors"
    sources = ("runs/a", "runs/a/lora", file)
    before = inputs(Merge(sources))
    Path("runs/a/metrics.jsonl").write_text("{}\n")  # of the run, not of its LoRA
    assert inputs(Merge(sources)) == before and None not in before.values()
    save_lora("pipeline", "runs/a/lora", 1)
    assert not set(inputs(Merge(sources)).values()) & set(before.values())
