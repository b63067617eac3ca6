"""Environment variables that would change a run are refused by name, and half a launcher by what is missing."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from afterflow.system.environment import CHANGES_A_RUN, OFF, check_cpu, check_environment, check_precision
from afterflow.system.errors import ConfigError
from afterflow.system.launcher import NEEDED, OTHER_LAUNCHERS, check_launcher
from afterflow.train.distributed import make_accelerator

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
BY_ACCELERATE_LAUNCH = {
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
    "ACCELERATE_CPU_AFFINITY": "0",
}
"""What `accelerate launch` sets where nothing is asked of it."""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*NEEDED, *OTHER_LAUNCHERS, *CHANGES_A_RUN, "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", [*CHANGES_A_RUN, "ACCELERATE_FP8_BACKEND", "ACCELERATE_DEEPSPEED_CONFIG_FILE"])
def test_a_variable_that_would_change_a_run_is_refused_by_name(monkeypatch, name):
    for value in ("4", "eager", "fp8"):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=f"the environment has {name} = {value}"):
            check_environment()
    for value in (*OFF, *CHANGES_A_RUN.get(name, ((),))[0]):
        monkeypatch.setenv(name, value.upper())
        check_environment()


def test_what_accelerate_launch_sets_by_itself_passes(monkeypatch):
    for name, value in BY_ACCELERATE_LAUNCH.items():
        monkeypatch.setenv(name, value)
    check_environment()
    check_precision("bf16")
    check_cpu(accelerator=True)


def test_a_launcher_may_ask_for_the_precision_of_the_run_and_for_no_other(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "BF16")
    check_precision("bf16")
    for precision in ("no", "fp16"):
        with pytest.raises(ConfigError, match=f"asks for .*bf16, and the run has mixed_precision = {precision}"):
            check_precision(precision)


def test_training_on_the_cpu_beside_a_gpu_is_not_asked_of_accelerate(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    check_cpu(accelerator=False)
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        check_cpu(accelerator=True)


def test_the_accelerator_of_a_run_refuses_them_too(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS = 4"):
        make_accelerator("no")
    # Even where a later version reads another variable, a backward pass adds the whole gradient.
    monkeypatch.setattr("afterflow.train.distributed.check_environment", lambda: None)
    assert make_accelerator("no").gradient_accumulation_steps == 1


# Launchers


@pytest.mark.parametrize("missing", NEEDED)
@pytest.mark.parametrize("gone", ["absent", "empty"])
def test_half_a_launcher_is_refused_by_what_is_missing(monkeypatch, missing, gone):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    check_launcher()
    monkeypatch.delenv(missing) if gone == "absent" else monkeypatch.setenv(missing, "")
    with pytest.raises(ConfigError, match=missing):
        check_launcher()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["", "two", "-1", "1.5", "nan", " 1", "²"])
def test_a_variable_that_is_no_whole_number_is_quoted(monkeypatch, name, value):
    for other in LAUNCHED:
        monkeypatch.setenv(other, LAUNCHED[other])
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        check_launcher()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK"])
def test_ranks_are_below_their_number(monkeypatch, name):
    for other in LAUNCHED:
        monkeypatch.setenv(other, LAUNCHED[other])
    monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError, match="ranks are below WORLD_SIZE = 2"):
        check_launcher()


@pytest.mark.parametrize("name", OTHER_LAUNCHERS)
def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    check_launcher()
    monkeypatch.setenv(name, "4")
    with pytest.raises(ConfigError, match=f"{name} = 4"):
        check_launcher()


def test_a_cluster_that_says_that_a_process_is_alone_is_no_launcher(monkeypatch):
    for name, value in {"WORLD_SIZE": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    check_launcher()


@pytest.mark.parametrize(
    "variable", ["WORLD_SIZE=", "RANK=0", "LOCAL_RANK=x", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4"]
)
def test_a_command_says_so_in_one_sentence_before_torch_is_imported(variable):
    code = (
        "import sys; from afterflow.cli.main import main; code = main(['train', 'shapes_sft'])\n"
        "assert code == 2 and not {'torch', 'diffusers', 'accelerate'} & set(sys.modules), code"
    )
    name, _, value = variable.partition("=")
    environment = {key: text for key, text in os.environ.items() if key not in NEEDED} | {name: value}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0 and name in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize("mac", [True, False])
def test_a_mac_computes_on_its_cpu_where_models_are_loaded(monkeypatch, mac):
    asked = {}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mac)
    stand_in = lambda **options: asked.update(options) or SimpleNamespace(num_processes=1)
    monkeypatch.setattr("afterflow.train.distributed.Accelerator", stand_in)
    make_accelerator("no")
    assert asked["cpu"] == mac
