"""The command line, run in this process: what it does, and the sentence it says when it cannot."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

import afterflow
from adapters import save_lora
from afterflow.cli.main import main
from afterflow.cli.model_options import ModelOptions, trained_guidance
from afterflow.cli.options import values_by_name
from afterflow.cli.train import overridden, resumable
from afterflow.data.images import HubImages, ImageFolder
from afterflow.data.prompts import PromptFile
from afterflow.experiment.config import Run
from afterflow.experiment.run_folder import read_run
from afterflow.experiment.serialization import to_json
from afterflow.experiment.stages import Chain
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES
from afterflow.system.checks import finite_number
from afterflow.system.errors import ConfigError, InputError

SCHEMA = {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}], "prompt": "a red star"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys):
    """Exit code, standard output and standard error of a command; the frames tyro draws around errors are undone."""

    def run(*argv):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, out, re.sub(r"[\s│─╭╮╰╯]+", " ", err).strip()

    return run


def write_run(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    config = to_json(RECIPES["shapes_flow_grpo"]()) | {"name": folder.name} | changes
    (folder / "run.json").write_text(json.dumps({"recipe": "shapes_flow_grpo", "config": config}))
    return folder / "run.json"


def short_run(pipeline):
    """Options of a run of seconds."""
    size = "--iterations 2 --batch 2 --chunk 8 --data.count 8 --algorithm.group 4 --algorithm.steps 4 --save-every 1"
    window = "--algorithm.window None --algorithm.window-range None --sample-every 0 --name short"
    window += " --held-out.count 7 --inference-steps 2"
    return ["--adapt", "full", *size.split(), *window.split(), "--model.path", pipeline]


# What works


def test_without_arguments_it_helps(said):
    assert said() == said("--help") == said("-h")
    code, out, _ = said()
    assert code == 0 and all(command in out for command in ("train", "eval", "sample", "recipes"))


def test_version(said):
    from afterflow import __version__

    assert said("--version")[:2] == (0, f"afterflow {__version__}\n")


def test_recipes_lists_every_recipe_with_its_label_and_first_line(said):
    code, out, _ = said("recipes", "--all")
    known = json.loads((Path(afterflow.recipes.__file__).parent / "evidence.json").read_text())
    lines = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith("  ")]
    assert code == 0
    first = {name: recipe.__doc__.strip().splitlines()[0] for name, recipe in RECIPES.items()}
    assert sorted(lines) == sorted([name, known[name]["label"], line] for name, line in first.items())


def test_recipes_are_grouped_by_what_a_user_wants_and_the_rest_is_behind_all(said):
    code, out, _ = said("recipes")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert code == 0 and len(listed) == len(set(listed)) < len(RECIPES) and set(listed) < set(RECIPES)
    for heading in ("Try it here", "A paper on a real model", "A step of a chain"):
        assert sum(line.startswith(heading) for line in out.splitlines()) == 1
    assert out.splitlines()[-1].startswith(f"{len(RECIPES) - len(listed)} more")
    assert not [name for name in listed if name.endswith("_8gpu")]


def test_a_name_near_to_none_is_answered_with_the_three_nearest(said):
    _, _, err = said("train", "xyzzy")
    assert err.count("_grpo") <= 3 and "the nearest of" in err and len(err) < 200
    assert "did you mean flux_mix_grpo? Also near: " in said("train", "flux")[2]


@pytest.mark.parametrize("words", ["--help", "recipes", "recipes --all", "eval --help", "train"])
def test_a_reader_that_closes_the_pipe_ends_a_command_quietly(words):
    """The pipe is closed before anything is written, as `head` may do it."""
    code = "import sys; sys.stdin.read(); from afterflow.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *words.split()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_help_and_recipes_import_neither_torch_nor_diffusers():
    code = (
        "import sys; from afterflow.cli.main import main; main(['recipes']); main([])\n"
        "assert 'tyro' not in sys.modules\n"
        "main(['train', '-h'])\n"
        "try: main(['eval', '-h'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_shows_what_each_field_means(said):
    code, out, _ = said("train", "shapes_flow_grpo", "--help")
    assert code == 0
    for text in ("--algorithm.group", "Number of images per prompt.", "--learning-rate", "--data.split", "NAME NUMBER"):
        assert text in out


def test_options_override_the_recipe():
    words = "--algorithm.weights jpeg_compressibility 2 --algorithm.clip 0.01 --data.tags colors text --seed 3"
    run = overridden(RECIPES["shapes_flow_grpo"](), [*words.split(), "--ema-decay", "None"], "afterflow")
    assert run.algorithm.weights == {"jpeg_compressibility": 2.0} and isinstance(run.algorithm.weights, Mapping)
    assert (run.algorithm.clip, run.data.tags, run.seed, run.optimization.ema_decay) == (
        0.01,
        ("colors", "text"),
        3,
        None,
    )
    assert run.algorithm.group == RECIPES["shapes_flow_grpo"]().algorithm.group
    weights = ["--algorithm.weights", "shapes_strict", "0.25", "shapes_partial", "0.75"]
    run = overridden(run, weights, "afterflow")
    assert run.algorithm.weights == {"shapes_strict": 0.25, "shapes_partial": 0.75}


def test_prompts_and_weights_of_another_kind_can_be_put_in():
    options = ["--prompts", "mine.txt", "--held-out-prompts", "theirs.jsonl", "--adapt", "lora", "--tune.rank", "4"]
    run = overridden(RECIPES["shapes_flow_grpo"](), options, "afterflow train")
    assert run.data == PromptFile("mine.txt") and run.evaluation.held_out == PromptFile("theirs.jsonl")
    assert run.tune == LoRA(rank=4)


def test_a_chain_takes_few_options_and_is_compared_by_a_run_at_its_end(said):
    code, _, err = said("train", "shapes_generalist", "--batch", "3")
    assert code == 2 and "takes no option but --plan and --iterations, so not --batch" in err
    code, _, err = said("compare", "shapes_merge_only")
    assert code == 2 and "ends in shapes_merge, which is not a run" in err


def test_turns_are_whole_numbers():
    run = overridden(RECIPES["shapes_flow_grpo"](), ["--tag-schedule", "colors", "3", "counting=1"], "afterflow train")
    assert run.batches.tag_schedule == {"colors": 3, "counting": 1} and all(
        isinstance(n, int) for n in run.batches.tag_schedule.values()
    )


def test_images_can_be_put_in_and_curated(tmp_path):
    options = ["--images", str(tmp_path), "--data.min-reward", "shapes_fidelity=0.9", "--algorithm.num-noises", "7"]
    run = overridden(RECIPES["shapes_sft"](), options, "afterflow train")
    assert run.data == ImageFolder(str(tmp_path), min_reward={"shapes_fidelity": 0.9}) and run.algorithm.num_noises == 7
    assert overridden(run, ["--images", "owner/name"], "afterflow train").data == HubImages("owner/name")


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if isinstance(recipe(), Run)])
def test_no_options_leave_a_recipe_as_it_is(name):
    assert overridden(RECIPES[name](), [], "afterflow") == RECIPES[name]()


def test_a_record_is_repeated_with_its_options(tmp_path):
    file = write_run(tmp_path / "runs" / "mine", iterations=7)
    run, recipe = read_run(file)
    assert (run, recipe) == read_run(file.parent)
    assert (run.name, run.batches.iterations, recipe) == ("mine", 7, "shapes_flow_grpo")


def test_train_resume_repeat_eval_and_sample(said, pipeline, tmp_path):
    weights = ["--algorithm.weights", "jpeg_compressibility", "1"]
    code, out, err = said("train", "shapes_flow_grpo", *short_run(pipeline), *weights)
    assert code == 0 and "runs/short holds the result" in out, err
    recorded, _ = read_run(Path("runs/short"))
    assert recorded == overridden(RECIPES["shapes_flow_grpo"](), [*short_run(pipeline), *weights], "")
    assert said("train", "--resume", "runs/short")[0] == 0
    for again in (("shapes_flow_grpo", *short_run(pipeline)), ("--from", "runs/short")):
        assert "runs/short already holds a run" in said("train", *again)[2]

    assert said("train", "--from", "runs/short/run.json", "--name", "again", "--iterations", 1)[0] == 0
    again = json.loads(Path("runs/again/run.json").read_text())
    assert again["recipe"] == "shapes_flow_grpo" and again["config"]["batches"]["iterations"] == 1

    suite = ["--prompts", "7", "--images", "2", "--steps", "2", "--draws", "50"]
    model, grid = "runs/short/model", tmp_path / "new" / "grid.png"
    code, out, err = said("eval", model, "--against", pipeline, *suite, "--json", "-", "--grid", grid)
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert figures["model"] == model and figures["against"] == pipeline
    assert figures["overall"]["strict"]["delta"]["value"] == 0
    assert Image.open(grid).size[0] > 800
    said("eval", model, *suite, "--json", "figures.json")
    alone = json.loads(Path("figures.json").read_text())
    assert alone["overall"]["partial"]["tuned"] == figures["overall"]["partial"]["tuned"]

    code, out, err = said(
        "sample", model, "a red star", 'a sign that says "A"', "-n", 3, "--steps", 2, "--out", "s.png"
    )
    assert (code, out) == (0, "s.png\n"), err
    assert Image.open("s.png").size == (3 * 102 + 6, 2 * 126 + 6)


def test_a_student_stands_beside_the_teachers_of_its_tags(said, pipeline, tmp_path):
    """A teacher draws from the student's noise: one that is the student itself differs by nothing."""
    mine, other = (save_lora(pipeline, tmp_path / name, seed) for seed, name in enumerate(("mine", "other")))
    suite = ["--prompts", "14", "--images", "2", "--steps", "2", "--draws", "50", "--json", "-"]
    teachers = ["--teachers", f"colors,counting={mine}", f"position={other}"]
    code, out, err = said("eval", pipeline, "--lora", mine, *teachers, *suite)
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])["taught"]
    assert set(found) == {"colors", "counting", "position", "average"}
    assert found["colors"]["delta"]["value"] == 0 and found["colors"]["base"] == found["colors"]["tuned"]
    mean = sum(found[tag]["tuned"]["value"] for tag in ("colors", "counting", "position")) / 3
    assert abs(found["average"]["tuned"]["value"] - mean) < 1e-9
    for words, sentence in (
        (["colors"], "write TAG,TAG=LORA"),
        (["colours=x"], "colours"),
        (["colors=x", "colors=y"], "colors has two teachers, x and y"),
        (["colors=nowhere"], "LoRA nowhere: no pytorch_lora_weights.safetensors"),
    ):
        code, _, err = said("eval", pipeline, "--teachers", *words)
        assert code == 2 and sentence in " ".join(err.split())


# What does not


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["trian"], "no command is called 'trian'; did you mean train?"),
        (["train", "shapes_flow_gpro"], "no recipe is called 'shapes_flow_gpro'; did you mean shapes_flow_grpo?"),
        (["train", "--iterations", "3"], "the recipe comes first"),
        (["train", "--from"], "--from needs a run"),
        (["train", "--from", "nowhere.json"], "nowhere.json: no such file"),
        (["train", "--resume", "nowhere"], "nowhere: no such folder"),
        (["recipes", "all"], "takes no options"),
        (["sample", "nowhere/at/all", "x"], "model 'nowhere/at/all': no such folder, and a hub id reads owner/name"),
        (["sample", "tiny", "x", "--lora", "nowhere"], "LoRA nowhere: no pytorch_lora_weights.safetensors there"),
    ],
)
def test_one_sentence_says_what_is_wrong(said, argv, sentence):
    code, out, err = said(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("afterflow: ") and sentence in err


@pytest.mark.parametrize(
    "options, sentence",
    [
        ("--lerning-rate 1", "did you mean --learning-rate?"),
        ("--algorithm.grup 8", "did you mean --algorithm.group?"),
        ("--algorithm.group 1", "group = 1: an advantage compares images of one prompt; take at least 2"),
        ("--algorithm.window 12 --algorithm.window-range None", "window_range = (0, 12): with 10 steps windows lie in"),
        ("--algorithm.window 5", "window = 5: between 1 and the 4 steps of window_range"),
        ("--algorithm.eta 0", "eta = 0.0: a policy gradient needs stochastic steps"),
        ("--algorithm.weights shapes_strikt 1", "no reward is called 'shapes_strikt'; did you mean shapes_strict?"),
        ("--algorithm.weights shapes_strict", "'shapes_strict' has no number after it"),
        ("--algorithm.weights", "algorithm.weights is empty: name at least one reward and its weight"),
        ("--iterations 0", "iterations = 0: at least 1"),
        ("--lr-schedule cosin", "cosine"),
        ("--decay cosine", "--decay is called --lr-schedule since version 0.2"),
        ("--lanes=2", "--lanes is called --grad-partitions since version 0.2"),
    ],
)
def test_options_that_cannot_be_used(said, options, sentence):
    code, out, err = said("train", "shapes_flow_grpo", *options.split())
    assert (code, out) == (2, "") and sentence in err


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("eval tiny --against base", "--against base compares MODEL with itself"),
        ("eval tiny --lora a --lora-against b", "--lora-against goes on what --against names"),
        ("eval tiny --grid g.jpeg", "--grid g.jpeg: it must end in .png"),
        ("eval tiny --images 0", "images = 0: at least 1"),
        ("eval tiny --split tets", "test"),
        ("sample tiny", "a prompt is missing or empty"),
        ("sample tiny x -n 0", "images = 0: at least 1"),
    ],
)
def test_evaluations_that_make_no_sense(said, argv, sentence):
    code, out, err = said(*argv.split())
    assert (code, out) == (2, "") and sentence in err


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e400"])
@pytest.mark.parametrize(
    "argv",
    [
        "compare shapes_sft --budget-seconds",
        "train shapes_flow_grpo --plan --budget-seconds",
        "train shapes_flow_grpo --plan --algorithm.weights shapes_strict",
        "train shapes_flow_grpo --plan --tune.alpha",
        "train shapes_flow_grpo --plan --reward-models.options video_align_fps",
        "eval tiny --guidance",
        "sample tiny x --guidance",
        "serve-rewards jpeg_compressibility --seconds",
        "merge a b --density",
    ],
)
def test_no_command_takes_a_number_that_is_not_finite(said, argv, word):
    code, out, err = said(*argv.split(), word)
    assert (code, out) == (2, "") and ("is not a finite number" in err or "is not a whole number" in err)


def with_prompts(monkeypatch, rewards, path):
    """A recipe that explores the prompts of a file."""
    from dataclasses import replace

    from afterflow.data.prompts import PromptFile

    run = RECIPES["shapes_flow_grpo"]()
    changed = replace(run, data=PromptFile(path), algorithm=replace(run.algorithm, weights=rewards))
    monkeypatch.setitem(RECIPES, "shapes_flow_grpo", lambda: changed)


def record(**changes):
    return json.dumps(SCHEMA | changes)


BAD_FILES = {
    "empty": ("p.txt", "\n  \n", "prompts p.txt: the file is empty; write one prompt per line"),
    "no json": ("p.jsonl", record() + "\n\n{'a': 1}\n", "p.jsonl:3: not JSON"),
    "no prompt": ("p.jsonl", '{"text": "x"}\n', 'p.jsonl:1: a record needs a "prompt" that is a text'),
    "not utf-8": ("p.txt", b"\xff\xfe", "prompts p.txt:1: not UTF-8 at byte 0 (it is UTF-16); save it as UTF-8"),
    "unknown tag": ("p.jsonl", record() + "\n" + record(tag="colour"), "p.jsonl:2: tag must be one of single_object"),
    "unknown class": ("p.jsonl", record(include=[{"class": "dog", "count": 1}]), "p.jsonl:1: include[0].class must be"),
    "plain text": ("p.txt", "a red star\n", "p.txt:1: tag must be one of"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_prompt_file_is_refused_by_file_and_line(said, monkeypatch, case):
    path, content, sentence = BAD_FILES[case]
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
    with_prompts(monkeypatch, {"shapes_strict": 1.0}, path)
    code, out, err = said("train", "shapes_flow_grpo")
    assert (code, out) == (2, "") and err.startswith("afterflow: ") and sentence in err
    assert not Path("runs").exists()


def test_a_missing_prompt_file_is_refused(said, monkeypatch):
    with_prompts(monkeypatch, {"shapes_strict": 1.0}, "p.txt")
    assert said("train", "shapes_flow_grpo")[2].startswith("afterflow: prompts p.txt: no such file")


def test_rewards_that_look_at_pictures_alone_take_any_prompt(monkeypatch):
    from afterflow.experiment.prompt_checks import prompt_records

    Path("p.jsonl").write_text(record(tag="colour") + '\n{"prompt": "a dog", "tag": "single_object", "include": []}')
    with_prompts(monkeypatch, {"jpeg_compressibility": 1.0}, "p.jsonl")
    assert [each["prompt"] for each in prompt_records(RECIPES["shapes_flow_grpo"]())] == ["a red star", "a dog"]


def test_a_record_with_a_misspelt_key_is_refused(said, tmp_path):
    file = write_run(tmp_path / "mine", lerning_rate=1)
    code, out, err = said("train", "--from", file)
    assert (code, out) == (2, "")
    assert err == f"afterflow: {file}: no field of Run is called 'lerning_rate'; did you mean learning_rate?"


@pytest.mark.parametrize(
    "content, sentence", [("{", "not JSON"), ("[]", 'it has no "config", so afterflow did not write it')]
)
def test_a_file_that_is_no_record_is_refused(said, content, sentence):
    Path("run.json").write_text(content)
    code, _, err = said("train", "--from", "run.json")
    assert code == 2 and err.startswith("afterflow: run.json: ") and sentence in err


def test_a_folder_without_checkpoint_cannot_be_resumed(said, tmp_path):
    write_run(tmp_path / "runs" / "mine")
    code, _, err = said("train", "--resume", "runs/mine")
    assert code == 2 and "runs/mine: no checkpoint to resume from; start anew with --from runs/mine/run.json" in err


def test_a_run_is_resumed_where_it_was_recorded_and_as_it_was(said, tmp_path):
    write_run(tmp_path / "elsewhere" / "mine")
    (tmp_path / "elsewhere/mine/checkpoints/step_000001").mkdir(parents=True)
    assert "elsewhere/mine is recorded as runs/mine" in said("train", "--resume", "elsewhere/mine")[2]
    assert "keeps its configuration" in said("train", "--resume", "elsewhere/mine", "--seed", 1)[2]


def test_a_run_goes_on_spread_as_it_was_the_last_time(tmp_path):
    file = write_run(tmp_path / "runs" / "mine")
    (tmp_path / "runs/mine/checkpoints/step_000001").mkdir(parents=True)
    assert resumable(["runs/mine"])[0].distribution.grad_partitions == 1
    record, begun = json.loads(file.read_text()), to_json(RECIPES["shapes_flow_grpo"]())["distribution"]
    spread = [begun | {"grad_partitions": parts} for parts in (4, 2)]
    resumed = [
        {"iteration": 2, "distribution": spread[0]},
        {"iteration": 3},
        {"iteration": 4, "distribution": spread[1]},
    ]
    file.write_text(json.dumps(record | {"resumed": resumed}))
    assert resumable(["runs/mine"])[0].distribution.grad_partitions == 2
    assert resumable(["runs/mine", "--grad-partitions", "8"])[0].distribution.grad_partitions == 8
    for damaged in ({"grad_partitions": "x"}, {"unknown": 1}, [1]):
        file.write_text(json.dumps(record | {"resumed": [{"iteration": 2, "distribution": damaged}]}))
        with pytest.raises(InputError, match=r"run\.json: .*resumed"):
            resumable(["runs/mine"])


@pytest.mark.parametrize(
    "words, values",
    [
        ("a /data/run=3/m", {"a": "/data/run=3/m"}),
        ("a /d/x=1 b /d/y=2", {"a": "/d/x=1", "b": "/d/y=2"}),
        ("a=http://h:1/?key=k b /d", {"a": "http://h:1/?key=k", "b": "/d"}),
        ("a= b x", {"a": "", "b": "x"}),
    ],
)
def test_a_value_may_have_an_equals_sign(words, values):
    assert values_by_name(words.split(), str) == values


def test_a_name_without_a_value_is_told_what_is_missing():
    with pytest.raises(ConfigError, match="'b' has no value after it; write NAME VALUE NAME VALUE"):
        values_by_name(["a=1", "b"], str)
    with pytest.raises(ConfigError, match="'b' has no number after it; write NAME NUMBER NAME NUMBER"):
        values_by_name(["a=1", "b"], finite_number)


def test_held_out_prompts_take_the_place_of_a_share():
    shared = RECIPES["shapes_flow_grpo"]().with_options(held_out=None, held_out_share=0.1, eval_every=5)
    changed = overridden(shared, ["--held-out-prompts", "h.txt"], "").evaluation
    assert (changed.held_out, changed.held_out_share, changed.eval_every) == (PromptFile("h.txt"), 0.0, 5)


@pytest.mark.parametrize("words", ["--eval-every 0", "--eval-every=0", "--held-out None", "--eval_every 0"])
def test_evaluation_that_is_switched_off_and_given_prompts_is_refused(words):
    with pytest.raises(ConfigError, match="switches evaluation off, and --held-out-prompts names its prompts"):
        overridden(RECIPES["shapes_flow_grpo"](), ["--held-out-prompts", "h.txt", *words.split()], "")


def test_a_model_is_drawn_as_its_lora_was_trained(pipeline, tmp_path, capsys):
    """In size, tokens and precision, but for what is set and for what another family has."""
    lora = save_lora(pipeline, tmp_path / "runs" / "mine" / "lora", 0)
    about = {"path": pipeline, "size": 64, "max_sequence_length": 0, "dtype": "bfloat16", "revision": "v2"}
    trained = SD3(**about)
    write_run(tmp_path / "runs" / "mine", model=to_json(trained) | {"type": "SD3"})
    drawn = ModelOptions().as_trained(pipeline, (None, str(lora)))
    assert drawn == ModelOptions(size=64, max_sequence_length=0, dtype="bfloat16", revision="v2")
    assert drawn.config(pipeline, False) == trained
    assert "was trained: size 64, dtype bfloat16, max_sequence_length 0, revision v2" in capsys.readouterr().err
    assert ModelOptions(size=32).as_trained(pipeline, (str(lora),)).size == 32
    newer = {"type": "SD3", "path": pipeline, "unheard_of": 1}
    write_run(tmp_path / "runs" / "newer", model=newer)
    shutil.copytree(lora, tmp_path / "runs" / "newer" / "lora")
    assert ModelOptions().as_trained(pipeline, (str(tmp_path / "runs/newer/lora"),)) == ModelOptions()
    assert "newer was trained is not known" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(pipeline, other)
    assert ModelOptions().as_trained(str(other), (str(lora),)).revision is None
    assert (
        ModelOptions().as_trained("tiny_wan", (str(lora),)) == ModelOptions() == ModelOptions().as_trained(pipeline, ())
    )
    assert trained_guidance((None, str(lora))) == 1.0 and trained_guidance((None,)) is None


def test_a_folder_that_is_no_pipeline_is_refused(said, tmp_path):
    (tmp_path / "other").mkdir()
    code, _, err = said("sample", tmp_path / "other", "x")
    assert code == 2 and "holds no model_index.json, so it is not a diffusers pipeline" in err
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    assert "is a KolorsPipeline; afterflow knows StableDiffusion3Pipeline, " in said("eval", tmp_path / "other")[2]
    assert (
        "is a KolorsPipeline; this model needs a StableDiffusion3Pipeline"
        in said("train", "shapes_flow_grpo", "--model.path", tmp_path / "other")[2]
    )
    assert not Path("runs").exists()


def test_a_lora_of_another_architecture_is_refused(said, pipeline, tmp_path):
    import torch
    from safetensors.torch import save_file

    layer = "transformer.transformer_blocks.0.attn.to_q"
    weights = {f"{layer}.lora_A.weight": torch.zeros(4, 1536), f"{layer}.lora_B.weight": torch.zeros(1536, 4)}
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")
    code, _, err = said("sample", pipeline, "x", "--lora", tmp_path)
    assert code == 2 and "is of another architecture" in err


def test_training_that_stops_exits_with_1(said, monkeypatch):
    from afterflow.system.errors import TrainingStopped

    def stop(*_, **__):
        raise TrainingStopped("step 3: the loss is nan")

    monkeypatch.setattr("afterflow.experiment.execute.execute", stop)
    assert said("train", "shapes_flow_grpo") == (1, "", "afterflow: step 3: the loss is nan")


def test_a_bug_keeps_its_traceback(said, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("ours")

    monkeypatch.setattr("afterflow.experiment.execute.execute", fail)
    with pytest.raises(RuntimeError, match="ours"):
        said("train", "shapes_flow_grpo")


def test_a_recipe_is_a_run_or_a_chain_of_them():
    assert all(isinstance(recipe(), Run | Chain) for recipe in RECIPES.values())


def test_every_field_of_a_run_has_its_sentence_in_the_help():
    """tyro shows the docstring under a field; a field without one is an option nobody can use."""
    modules = [
        "experiment/config",
        "sampling/flow",
        "objectives/advantages",
        "models/pipeline",
        "models/sd3",
        "models/flux",
        "models/wan",
        "models/qwen_image",
        "models/flux2_klein",
        "models/flux_kontext",
        "models/z_image",
        "models/adapters",
        "models/lora/merge",
        "data/images",
        "data/prompts",
    ]
    modules += ["rewards/shapes_judge", "algorithms/pruning", "algorithms/windows", "algorithms/sft", "algorithms/soar"]
    modules += ["algorithms/dpo", "data/pairs"]
    modules += [f"algorithms/{name}_grpo" for name in ("flow", "dance", "mix", "branch", "pref")] + ["algorithms/ddpo"]
    classes = lambda names: [
        node
        for name in names
        for node in ast.parse((Path(afterflow.__file__).parent / f"{name}.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    kinds, parents = classes(modules), classes(["algorithms/base", "algorithms/policy_gradient"])
    silent, spoken, bases = [], set(), {}
    for kind in [*kinds, *parents]:
        bases[kind.name] = [ast.unparse(base).split("[")[0] for base in kind.bases]
        for field, after in zip(kind.body, [*kind.body[1:], None]):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and said:
                spoken.add((kind.name, ast.unparse(field.target)))
            elif isinstance(field, ast.AnnAssign) and kind in kinds:
                silent.append((kind.name, ast.unparse(field.target)))

    def inherited(kind, field):
        """Whether a class that `kind` derives from has the sentence, which the help then shows."""
        return any((base, field) in spoken or inherited(base, field) for base in bases.get(kind, ()))

    assert [f"{kind}.{field}" for kind, field in silent if not inherited(kind, field)] == []


@pytest.mark.parametrize(
    "words", ["train no_such", "doctor no_such", "compare no_such", "train --resume no/such", "train --from no/such"]
)
def test_what_does_not_exist_is_refused_before_torch_is_imported(words):
    code = (
        "import sys; from afterflow.cli.main import main; code = main(sys.argv[1:])\n"
        "assert code == 2 and not {'torch', 'diffusers', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert words.split()[-1] in ended.stderr


def test_processes_of_a_launcher_train_and_do_nothing_else(monkeypatch, capsys):
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert main(["recipes"]) == 2
    assert "recipes is done by one process; start it without a launcher" in capsys.readouterr().err
    assert main(["train", "shapes_generalist"]) == 2
    assert "starts their processes itself; leave the launcher out" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("sys.stdout", sys.stdout)  # put back afterwards
    assert main(["train", "shapes_generalist"]) == 2
    assert capsys.readouterr().err.startswith("afterflow, process 1: ")
