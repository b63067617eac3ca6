"""What comes from outside is escaped for where it goes, leaves without local paths, and holds no secret."""

import ast
import io
import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.text import Text
from safetensors.torch import load_file, save

from afterflow.cli import output
from afterflow.cli.main import check_words, complain, main
from afterflow.cli.output import print_progress, result_console
from afterflow.cli.push import CONFIGURATIONS, without_paths
from afterflow.data.prompts import PromptFile
from afterflow.experiment.doctor import Finding, finding_text
from afterflow.experiment.model_card import base_in_code, base_in_words, card_metadata, licence
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES
from afterflow.rewards.base import RewardModels
from afterflow.rewards.vlm.judge import VLMJudge
from afterflow.system.errors import ConfigError
from afterflow.system.escapes import code_span, markdown_text, one_line, plot_text, printable, without_local_paths
from afterflow.system.messages import MessageHandler

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "a\u202egnp.exe",
    "two\nlines",
    "| cell | breaks |",
    "`code` ``more``",
    "<script>alert(1)</script>",
    "![x](http://evil/a.png)",
    "[/red] [bold",
    "$\\frac{$",
    "---\nlicense: mit",
    '"); import os; os.system("x") #',
    "*bold* ~gone~ & <b>",
]
CODES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def by_handler(text, capsys):
    import logging

    MessageHandler().emit(logging.LogRecord("afterflow", 20, "", 0, text, None, None))
    return capsys.readouterr().out


def by_console(text, capsys, monkeypatch=None):
    console = result_console()
    console.file = io.StringIO()
    console.print(text)
    return console.file.getvalue()


def by_doctor(text, capsys):
    console = result_console()
    console.file = io.StringIO()
    console.print(Text.from_markup(finding_text(Finding(text, False, text, text)), emoji=False))
    return console.file.getvalue()


def on_stderr(write):
    def written(text, capsys):
        write(text)
        return capsys.readouterr().err

    return written


def by_status(text, capsys):
    folder = Path("runs/x")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"config": {"batches": {"iterations": 3}}}))
    line = {"step": 0, "seconds_trained": 1.0, f"reward/{text}": 1.0, f"invalid/{text}": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["status", "runs/x"]) == 0
    return capsys.readouterr().out


TERMINALS = {
    "an error": on_stderr(lambda text: complain(ValueError(text), 2)),
    "progress": on_stderr(print_progress),
    "a message": by_handler,
    "a table": by_console,
    "the doctor": by_doctor,
    "status": by_status,
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("sink", TERMINALS)
def test_no_text_steers_a_terminal(sink, text, capsys, own_folder):
    written = TERMINALS[sink](text, capsys)
    assert not CODES.search(written.replace("\n", ""))
    if printable(text) == text and "\n" not in text:
        assert text in written.replace("\n", " ")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_in_markdown_is_one_cell_without_markup(text):
    for cell in (markdown_text(text), code_span(text)):
        assert "\n" not in cell and not re.search(r"(?<!\\)\|", cell) and not CODES.search(cell)
    assert not re.search(r"<|(?<!\\)[`*\[]", markdown_text(text))
    ticks = re.match("`+", code_span(text))[0]
    assert code_span(text).endswith(ticks) and ticks not in code_span(text)[len(ticks) : -len(ticks)]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_holds_a_strangers_texts_as_texts(text, own_folder):
    run = RECIPES["shapes_flow_grpo"]()
    run = replace(run, model=SD3(text, revision=text))
    tree = ast.parse(f"f({base_in_code(run)})").body[0].value
    assert [ast.literal_eval(node) for node in (*tree.args, *(word.value for word in tree.keywords))] == [text, text]
    assert "\n" not in base_in_words(run) + base_in_code(run) + licence(run)
    front = yaml.safe_load(card_metadata(run).to_yaml())
    assert front.get("base_model") is None and "license" not in front


@pytest.mark.parametrize("text", HOSTILE)
def test_a_plot_shows_dollars_as_dollars(text):
    figure = Figure()
    figure.subplots().set_title(plot_text(text))
    figure.savefig(io.BytesIO(), format="svg")


LOCAL = ["/home/me/models/sd3", "~/models/sd3", "C:\\Users\\me\\sd3", "/home/My Name/sd3", "file:///home/me/sd3"]


def in_json(path):
    return json.dumps({"model": {"path": path}, "servers": {path: [path]}}).encode()


def in_weights(path):
    metadata = {"format": "pt", "ss_dataset_dirs": path, "lora_adapter_metadata": json.dumps({"base": path})}
    return save({"a": torch.ones(3)}, metadata)


def in_png(path):
    stream, about = io.BytesIO(), PngInfo()
    about.add_text("parameters", path)
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=about)
    return stream.getvalue()


def in_card(path):
    return (
        f"# x\n\n{path} and `{path}` and {json.dumps(path)} and {markdown_text(path)}\n\nhttps://huggingface.co/a/b/c\n"
    ).encode()


UPLOADED = {
    **{name: in_json for name in CONFIGURATIONS},
    **{f"{part}/{name}": in_json for part in ("vae", "tokenizer") for name in CONFIGURATIONS[3:]},
    "README.md": in_card,
    "LICENSE": in_card,
    "pytorch_lora_weights.safetensors": in_weights,
    "transformer/diffusion_pytorch_model.safetensors": in_weights,
    "first.png": in_png,
    "last.png": in_png,
}
STAYS = (
    *(".env", ".git/config", ".cache/x.json", "notes.txt", "train.log", "optimizer.pt", "weights.bin", "pickle.pkl"),
    *("metrics.jsonl", "metadata.csv", "config.yaml", "train.py", "photo.jpg", "sheet.png", "first.gif", "me.json"),
)


def written(folder, files, path):
    for name, make in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make(path))
    return folder


@pytest.mark.parametrize("path", LOCAL)
def test_no_local_path_leaves_with_push(path, tmp_path, capsys):
    stays = {name: lambda path: in_json(path) for name in STAYS}
    folder = written(tmp_path / "lora", UPLOADED | stays, path)
    with without_paths(folder) as copy:
        sent = {str(file.relative_to(copy)): file.read_bytes() for file in copy.rglob("*") if file.is_file()}
        weights = load_file(copy / "pytorch_lora_weights.safetensors")
    assert set(sent) == set(UPLOADED)
    for name, content in sent.items():
        text = content.decode("latin-1")
        assert not any(part in text for part in ("me/", "me\\", "Name", "Users")), name
        assert "sd3" in text or name.endswith(".png")
    assert torch.equal(weights["a"], torch.ones(3))
    assert b"https://huggingface.co/a/b/c" in sent["README.md"]
    told = capsys.readouterr().err
    assert all(f"{name} is not uploaded" in told for name in STAYS)


def test_weights_and_vocabularies_without_paths_are_uploaded_byte_for_byte(tmp_path):
    weights = save({"a": torch.ones(3)}, {"format": "pt", "afterflow": '{"alpha": 4, "family": "SD3"}'})
    template = json.dumps({"chat_template": "{{ '\\n\\n# Tools' }}</tool_call>", "unk": "//", "eos": "</s>"})
    made = {"x.safetensors": lambda _: weights, "tokenizer.json": lambda _: b'{"/a/b": 1}'}
    folder = written(tmp_path, made | {"tokenizer_config.json": lambda _: template.encode()}, "")
    with without_paths(folder) as copy:
        assert (copy / "x.safetensors").read_bytes() == weights
        assert (copy / "tokenizer.json").read_bytes() == b'{"/a/b": 1}'
        assert json.loads((copy / "tokenizer_config.json").read_text()) == json.loads(template)


@pytest.mark.parametrize("file", ["run.json", "README.md", "adapter_config.json", "LICENSE"])
@pytest.mark.parametrize("secret", ["hf_abcdefghijklmnopqrst", "sk-proj-abcdefghijklmnop", "https://me:word@host/v1"])
def test_no_key_leaves_with_push(file, secret, tmp_path):
    if secret.startswith("https") and not file.endswith(".json"):
        secret = "ghp_abcdefghijklmnopqrst"
    (tmp_path / file).write_text(json.dumps({"config": {"reward_models": {"servers": {"x": secret}}}}))
    with pytest.raises(ConfigError, match=file) as told, without_paths(tmp_path):
        pass
    assert secret not in str(told.value)


def test_a_model_behind_an_address_may_leave_with_push(tmp_path):
    address = "http://host:8000/v1#org/judge-7B"
    (tmp_path / "run.json").write_text(json.dumps({"config": {"reward_models": {"weights": {"vlm_quality": address}}}}))
    with without_paths(tmp_path) as copy:
        assert address in (copy / "run.json").read_text()


@pytest.mark.parametrize("text", ["owner/name", "runs/x/lora", "a / b", "https://x.org/a/b", "1/2", "", "/"])
def test_what_is_no_local_path_stays(text):
    assert without_local_paths(text) == text


SECRETS = [
    "http://user:password@host/v1",
    "http://user@host",
    "https://host/v1?key=abc",
    "https://host/v1#token",
    "https://host/v1#sk-abcdefgh12345678",
    "https://host/sk-abcdefgh12345678/v1",
    "https://host/v1/hf_abcdefghij",
    "https://host/4f3c2b1a-0000-1111-2222-333344445555/v1",
    "https://host/0123456789abcdef0123456789abcdef",
    "https://host/proxy-a1B2c3D4e5F6g7H8i9J0k1/v1",
]
SINKS = {
    "servers": lambda address: RewardModels(servers={"pickscore": address}),
    "second server": lambda address: RewardModels(servers={"pickscore": f"http://host:1,{address}"}),
    "weights": lambda address: RewardModels(weights={"pickscore": address}),
    "judge": lambda address: VLMJudge(url=address, model="m"),
    "model": lambda address: replace(RECIPES["shapes_flow_grpo"](), model=SD3(address)),
    "prompts": lambda address: replace(RECIPES["shapes_flow_grpo"](), data=PromptFile(address)),
}


MODEL = ("weights", "https://host/v1#token")
"""There the name of a model stands behind #, unless it looks like a key."""


@pytest.mark.parametrize("sink, address", [pair for pair in product(SINKS, SECRETS) if pair != MODEL])
def test_no_option_takes_an_address_with_a_secret(sink, address):
    with pytest.raises(ConfigError) as told:
        SINKS[sink](address)
    assert "environment variable" in str(told.value)
    assert not re.search(r"password|abc|token|4f3c|0123|a1B2", str(told.value))


@pytest.mark.parametrize("words", ["sample {} x", "eval tiny --lora {}", "eval tiny --reference={}", "train --from {}"])
def test_no_command_takes_an_address_with_a_secret(words, capsys):
    assert main(words.format(SECRETS[0]).split()) == 2
    told = capsys.readouterr().err
    assert "holds a user" in told and "password" not in told


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8000",
        "https://api.openai.com/v1",
        "http://[::1]:80/v1",
        "https://host/Qwen2_5-VL-72B-Instruct",
    ],
)
def test_addresses_without_secrets_are_taken(address):
    for sink in ("servers", "second server", "judge"):
        SINKS[sink](address)


def test_an_error_is_one_line():
    assert one_line("a\n\tb\x1b") == "a b\\x1b"
    assert output.printable("a\tb\n") == "a\tb\n"


def test_a_model_behind_an_address_is_named_in_one_option_alone():
    address = "http://host:8000/v1#org/judge-7B"
    check_words(["shapes_flow_grpo", "--reward-models.weights", "vlm_quality", address])
    for words in (["--model.path", address], [f"--lora={address}"], [address]):
        with pytest.raises(ConfigError, match="holds a fragment"):
            check_words(words)
