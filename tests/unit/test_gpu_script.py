"""bench/gpu.sh: its parts end in time, one that fails stops no other, and what came of each is stored.

And docs/real_size.md says what is stored of whole networks on a CPU.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend

from afterflow.algorithms.base import Models
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.diffusion_nft import DiffusionNFT
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment import cards, doctor
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import trial_iteration
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks, in_context
from afterflow.sampling.conditioning import Embedding, condition
from afterflow.sampling.seeds import generator
from afterflow.system.errors import ConfigError
from afterflow.train.clock import Clock
from afterflow.train.explore import ExploreOptions
from pretended_device import NUMBER, recording

ROOT = Path(__file__).parents[2]
WAIT = "called a synchronizing CUDA operation"


@pytest.fixture
def gpu(monkeypatch):
    """bench/gpu.py, and no module of bench/ stays imported."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    before = set(sys.modules)
    import gpu

    yield gpu
    for name in set(sys.modules) - before:
        # By where it came from: `script` gives gpu.py another __file__.
        if str(ROOT / "bench") in str(getattr(getattr(sys.modules[name], "__spec__", None), "origin", "")):
            del sys.modules[name]


@pytest.fixture
def gpu_parts(gpu):
    """bench/gpu_parts.py, which gpu.py imports."""
    return sys.modules["gpu_parts"]


@pytest.fixture
def script(gpu, monkeypatch, tmp_path):
    """Puts a program of some lines in the place of bench/gpu.py."""

    def put(lines):
        (tmp_path / "part.py").write_text(lines)
        monkeypatch.setattr(gpu, "__file__", str(tmp_path / "part.py"))

    return put


def test_all_parts_end_within_nine_minutes(gpu):
    assert sum(part.seconds for part in gpu.PARTS.values()) <= gpu.TOTAL_SECONDS < 9 * 60


def test_the_parts_have_every_method_precision_and_kernel(gpu, gpu_parts):
    cases = {name: [case for case, _ in gpu.PARTS[name].cases(False)] for name in ("doctor", "ratios", "memory")}
    assert len(cases["ratios"]) == len(set(cases["ratios"])) == 12
    assert {case.split(", ")[1] for case in cases["doctor"]} == {"no", "bf16"}
    assert {case.split(", ")[1] for case in cases["memory"]} == {"checkpointing", "plain"}
    assert len(gpu_parts.short_methods()) == 5
    assert {name for name in gpu.PARTS if "speed" in name} == {
        "speed",
        "speed, checkpointing",
        "speed, compiled",
        "speed, compiled, checkpointing",
    }


@pytest.mark.parametrize(
    "code, lines, state, reason",
    [
        (0, ['RESULT ["a", {"x": 1}]', "noise"], "done", None),
        (0, ['RESULT ["a", {"x": 1}]', 'RESULT ["b", {"failed": "no memory"}]'], "failed", "b: no memory"),
        (1, ['RESULT ["a", {"x": 1}]', "ValueError: no"], "failed", "exit status 1; its last line: ValueError: no"),
        (3, [], "failed", "exit status 3"),
        (-9, [], "failed", "ended by SIGKILL (exit status -9)"),
        (
            -11,
            ['RESULT ["a", {"x": 1}]', "UserWarning: slow", ""],
            "failed",
            "ended by SIGSEGV (exit status -11); its last line: UserWarning: slow",
        ),
        (None, ['RESULT ["a", {"x": 1}]'], "cut", "cut after 7 s, with 1 cases measured"),
    ],
)
def test_a_part_has_a_state_and_a_reason_where_it_is_not_done(gpu, code, lines, state, reason):
    result = gpu.outcome(code, lines, 7)
    assert (result["state"], result.get("reason")) == (state, reason)
    assert ("a" in result["cases"]) == bool(lines)


def test_a_part_that_is_cut_leaves_its_cases_and_no_process(gpu, script, tmp_path):
    script(
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "print('RESULT [\"a\", {}]\\nRESULT [\"b', end='', flush=True)\n"
        "time.sleep(60)\n"
    )
    result = gpu.run_part("speed", 5, True, str(tmp_path))
    assert result["state"] == "cut" and result["cases"] == {"a": {}} and result["seconds"] < 30
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_part_ends_with_the_script_that_is_ended(gpu, script, monkeypatch, tmp_path):
    script(f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse", "--out", str(tmp_path / "out"), "doctor"])

    def end_it():
        while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=end_it)
    thread.start()
    try:
        with pytest.raises(SystemExit, match="143"):
            gpu.main()
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    assert is_gone(int((tmp_path / "pid").read_text()))


def is_gone(pid):
    """Whether a process has ended, also where nobody has asked for its status."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_part_that_fails_does_not_stop_the_next_and_the_status_says_so(gpu, script, tmp_path, capsys):
    script(
        "import sys\n"
        "assert sys.argv[1:] == ['--part', sys.argv[2], '--rehearse']\n"
        "if sys.argv[2] == 'doctor':\n"
        "    raise ValueError('the | pipe')\n"
        'print(\'RESULT ["a", {"x": 0.25}]\')\n'
    )
    out = tmp_path / "out"
    assert gpu.carry_out_all(["doctor", "ratios"], True, out) == 1
    result = json.loads((out / "rehearsal.json").read_text())
    assert {name: part["state"] for name, part in result["parts"].items()} == {"doctor": "failed", "ratios": "done"}
    assert result["parts"]["doctor"]["reason"] == "exit status 1; its last line: ValueError: the | pipe"
    assert result["parts"]["ratios"]["cases"] == {"a": {"x": 0.25}}
    assert {"command", "git_commit", "hardware", "card", "seconds"} <= result.keys()
    table = (out / "rehearsal.md").read_text()
    assert "the \\| pipe" in table and "| a | x 0.25 |" in table
    assert "doctor: failed" in capsys.readouterr().out


@pytest.fixture
def parts(gpu, monkeypatch):
    """Puts parts that end at once in the place of those that measure; the commit is the first of `commits`."""
    commits, calls = ["first", "second"], []

    def run_part(name, seconds, *others):
        calls.append((name, seconds))
        return {"state": "done", "seconds": 2.0, "cases": {"a": {"call": len(calls)}}}

    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu, "card", lambda: {"cards": [commits[0]]})
    monkeypatch.setattr(gpu, "provenance", lambda command: {"command": command, "git_commit": commits.pop(0)})
    return calls


def test_a_part_that_is_measured_again_takes_no_other_out_of_the_file(gpu, parts, tmp_path):
    assert gpu.carry_out_all(["ratios", "doctor", "speed"], True, tmp_path) == 0
    assert gpu.carry_out_all(["doctor"], True, tmp_path) == 0
    result = json.loads((tmp_path / "rehearsal.json").read_text())
    assert {name: part["cases"]["a"]["call"] for name, part in result["parts"].items()} == {
        "doctor": 4,
        "ratios": 1,
        "speed": 3,
    }
    assert list(result["parts"]) == ["doctor", "ratios", "speed"] and result["seconds"] == 6.0
    commits = {name: (part["git_commit"], part["card"]) for name, part in result["parts"].items()}
    assert commits["ratios"] == commits["speed"] == ("first", {"cards": ["first"]})
    assert commits["doctor"] == ("second", {"cards": ["second"]}) and result["git_commit"] == "second"
    assert "| speed | done | 2.0 | first |" in (tmp_path / "rehearsal.md").read_text()


def test_a_part_of_an_earlier_file_keeps_its_commit_and_one_without_a_name_of_today_stays(gpu, parts, tmp_path):
    old = {"git_commit": "before", "card": {}, "parts": {"gone": {"state": "done", "seconds": 1, "cases": {}}}}
    (tmp_path / "rehearsal.json").write_text(json.dumps(old))
    gpu.carry_out_all(["doctor"], True, tmp_path)
    result = json.loads((tmp_path / "rehearsal.json").read_text())
    assert list(result["parts"]) == ["doctor", "gone"] and result["parts"]["gone"]["git_commit"] == "before"
    assert "| gone | done | 1 | before |" in (tmp_path / "rehearsal.md").read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"parts": [1]}', '{"parts": {"doctor": 1}}', '{"parts": {"doctor": {}}}'])
def test_a_file_that_holds_no_results_is_not_written_over(gpu, parts, tmp_path, text):
    (tmp_path / "rehearsal.json").write_text(text)
    with pytest.raises(SystemExit, match="does not hold results"):
        gpu.carry_out_all(["doctor"], True, tmp_path)
    assert (tmp_path / "rehearsal.json").read_text() == text and parts == []


def test_what_a_part_leaves_goes_to_the_next_and_none_takes_the_least_of_the_others(
    gpu, gpu_parts, parts, monkeypatch, tmp_path
):
    least = {"doctor": 30, "ratios": 20, "waits": 10}
    monkeypatch.setattr(gpu, "PARTS", {name: gpu_parts.Part(seconds, None, "") for name, seconds in least.items()})
    monkeypatch.setattr(gpu, "TOTAL_SECONDS", 70)
    monkeypatch.setattr(gpu.time, "monotonic", iter([0, 0, 5, 50]).__next__)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB/HBM3")
    assert gpu.carry_out_all(list(least), False, tmp_path) == 0
    assert parts == [("doctor", 40), ("ratios", 55), ("waits", 20)]
    assert (tmp_path / "NVIDIA_H100_80GB_HBM3.json").is_file()


def test_parts_find_what_those_before_them_counted_and_compiled(gpu, script, tmp_path):
    script(
        "import os, pathlib\n"
        "for name in ('AFTERFLOW_CACHE', 'TORCHINDUCTOR_CACHE_DIR'):\n"
        "    folder = pathlib.Path(os.environ[name])\n"
        '    print(\'RESULT ["%s", {"there": %d}]\' % (name, folder.exists()))\n'
        "    folder.mkdir(exist_ok=True)\n"
    )
    gpu.carry_out_all(["doctor", "ratios"], True, tmp_path)
    parts = json.loads((tmp_path / "rehearsal.json").read_text())["parts"]
    there = {name: [case["there"] for case in part["cases"].values()] for name, part in parts.items()}
    assert there == {"doctor": [0, 0], "ratios": [1, 1]}


def test_every_case_has_a_peak_of_its_own(gpu, gpu_parts, monkeypatch, capsys):
    events, gib = [], 2**30
    for name, value in {"is_available": True, "max_memory_allocated": 3 * gib}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("init", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: events.append(name))

    def fails():
        events.append("b")
        raise torch.OutOfMemoryError("too much\nby far")

    cases = [("a", lambda: events.append("a") or {"x": 1}), ("b", fails)]
    monkeypatch.setattr(gpu, "PARTS", {"speed": gpu_parts.Part(1, lambda rehearsal: iter(cases), "")})
    print("a library says", end="")
    gpu.carry_out("speed", False)
    measured = gpu.outcome(0, capsys.readouterr().out.splitlines(), 1)["cases"]
    assert measured == {
        "a": {"x": 1, "peak_gib": 3.0},
        "b": {"failed": "OutOfMemoryError: too much", "peak_gib": 3.0},
    }
    assert events == ["init", "reset_peak_memory_stats", "a", "init", "reset_peak_memory_stats", "b"]


def test_what_torch_warns_of_is_noted_at_the_line_of_afterflow(gpu_parts, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    waiting = in_context(warnings.warn, nullcontext)  # like an operation of torch, it has no frame of its own
    with recording() as events, gpu_parts.waits_noted():
        waiting(WAIT, UserWarning, 1)
        waiting(WAIT, UserWarning, 1)
        waiting("something else", UserWarning, 1)
    assert [(event.kind, event.caller) for event in events] == [(NUMBER, "")] * 2
    assert all(event.line.startswith("models/wrappers.py:") and event.line.endswith(" v") for event in events)
    assert modes == ["warn", "default"]


def test_each_recipe_that_is_examined_has_a_peak_of_its_own(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("init", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: events.append(name))
    findings = doctor.examine(SimpleNamespace(rewards=["no such reward"]))
    with pytest.raises(ConfigError):
        next(findings)
    assert events == ["init", "reset_peak_memory_stats"]


NAMES = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
    "NVIDIA A100-SXM4-40GB MIG 3g.20gb": None,
    "NVIDIA H20": None,
    "": None,
}


@pytest.mark.parametrize("name, peak", NAMES.items())
def test_only_a_card_of_a_known_name_has_a_peak(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert cards.peak_flops(torch.device("cuda")) == peak
    assert cards.peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize("method, flops", [(FlowGRPO, 96 / 4), (DiffusionNFT, 96 / 4 * 2)])
def test_the_share_of_the_peak_is_of_a_guided_velocity(monkeypatch, method, flops):
    """Flow-GRPO's passes are counted with guidance, and those of a method that learns from images without."""
    monkeypatch.setattr(doctor, "network_counts", lambda run: SimpleNamespace(forward=96))
    monkeypatch.setattr(doctor, "peak_flops", lambda device: 1e3)
    run = Run(method({"jpeg_compressibility": 1.0}), ShapesPrompts(), SD3("tiny")).with_options(
        chunk=4, guidance_scale=3.0
    )
    finding = doctor.rollout_mfu(run, flops / 500, torch.device("cuda"))
    assert finding.detail == "50% of 0 TFLOP/s"


@pytest.mark.parametrize("prompts, chunk", [(1, 8), (1, 4), (3, 2), (2, 3)])
def test_each_step_of_a_rollout_pads_its_last_pass(prompts, chunk):
    calls = []

    def velocity(x, t, cond):
        calls.append(len(x))
        return torch.zeros_like(x)

    algorithm = BranchGRPO({"reward": 1.0}, steps=6, splits=(0, 2, 4))
    trial(algorithm, in_chunks(velocity, chunk), prompts, chunk)
    plan = algorithm.plan(0, generator(0))
    assert doctor.padded_rows(plan, prompts, chunk) == sum(calls) > prompts * sum(plan.widths[:-1]) - 1


def trial(algorithm, velocity, prompts, chunk):
    """A small iteration on latents of one number."""
    embedding = Embedding(torch.zeros(1, 1, 1))
    cond = condition(embedding, embedding, [{"prompt": ""}] * prompts, torch.zeros(prompts, dtype=torch.long))
    return trial_iteration(algorithm, Models(velocity), cond, ExploreOptions(0, (1,), chunk), Clock())


@pytest.fixture
def small_model():
    """A network of one layer with the parts of a model that a trial reads, and the states of torch at each pass."""

    def make(with_gradients=0.0):
        layer, seen = nn.Linear(1, 1), []
        layer.dtype = torch.bfloat16

        def velocity(x, t, cond):
            seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return layer(x).float() + with_gradients * torch.is_grad_enabled()

        about = {"device": torch.device("cpu"), "latent_shape": (1,), "text_shape": (1, 1, None)}
        return SimpleNamespace(module=layer, velocity=lambda module: velocity, seen=seen, **about)

    return make


def test_a_replay_is_that_of_training_with_gradients_and_a_precision_of_each_pass(gpu_parts, small_model, monkeypatch):
    loss, outside = FlowGRPO.loss, []

    def noted(*arguments):
        outside.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return loss(*arguments)

    monkeypatch.setattr(FlowGRPO, "loss", noted)
    model = small_model()
    assert gpu_parts.ratio(model, SDPBackend.MATH) == {"largest_deviation": 0.0}
    # Four steps of eight states, of which three are replayed, in passes of four.
    assert model.seen == [(False, True)] * 8 + [(True, True)] * 6 and outside == [(True, False)] * 6
    assert model.module.weight.grad is None


def test_no_precision_encloses_a_rollout_and_its_update():
    for file in (ROOT / "bench").glob("*.py"):
        assert not re.search(r"^\s*with\b.*autocast", file.read_text(), re.MULTILINE), f"{file.name}: see precise"


@pytest.mark.parametrize("deviation", [1e-3, -1e-3, float("nan")])
def test_a_kernel_that_gradients_change_fails(gpu_parts, small_model, deviation):
    assert "a ratio is off by" in gpu_parts.ratio(small_model(deviation), SDPBackend.MATH)["failed"]


@pytest.fixture
def speeds(gpu_parts, small_model, monkeypatch):
    """The cases of a part of speeds, where a row takes a second forwards and three in an update."""
    import real_size

    padded = lambda count, chunk: -(-count // chunk) * chunk

    def trained_once(algorithm, model, cond, chunk, dtype):
        plan = algorithm.plan(0, generator(0))
        rows = sum(plan.widths[1:-1]) if isinstance(algorithm, BranchGRPO) else 5
        rollout = sum(padded(width, chunk) for width in plan.widths[:-1])
        made = {"rollout": rollout, "update": 3 * padded(rows, chunk), "rows": rows, "ratio_max": 1.0}
        return {key: float(value) for key, value in made.items()} | {"rows": rows, "ratio_deviation": 1e-6}

    counted = {"tflop_forward": 0.008, "tflop_backward": 0.016, "gib_activations": 0.0}
    monkeypatch.setattr(real_size, "trained_once", trained_once)
    monkeypatch.setattr(real_size, "peak_flops", lambda device: 2e9)
    monkeypatch.setattr(real_size, "prepared", lambda options, folder, count: (small_model(), counted))
    monkeypatch.setattr(real_size, "ready", lambda options, model: real_size.prompts(model, 1, model.device))
    monkeypatch.setattr(gpu_parts, "pipeline_folder", Path)

    def of(chunk, compiled=False):
        monkeypatch.setattr(gpu_parts, "chunk_of", lambda checkpointing: chunk)
        return {name: call() for name, call in gpu_parts.speeds(False, compiled)(False)}

    return of


def test_images_a_second_are_those_of_full_passes(speeds):
    images = {chunk: {name: case.get("images_per_second") for name, case in speeds(chunk).items()} for chunk in (4, 8)}
    assert images[4] == pytest.approx(images[8])
    # A tree of 1, 2, 2, 4, 4 and 8 states, of which those before the last step are trained.
    assert images[8]["branch_grpo"] == pytest.approx(8 / (21 + 3 * 20))


def test_the_share_of_the_peak_is_of_the_rows_that_were_computed(speeds):
    case = speeds(8)["branch_grpo"]
    # 1 and 3 GFLOP a row of the chunk's 8, a second and three: half of the peak of 2 GFLOP/s.
    assert (case["mfu_rollout"], case["mfu_update"]) == pytest.approx((0.5, 0.5))


def test_the_speed_of_a_method_counts_only_where_its_ratios_are_1(speeds):
    plain, compiled = ({name: "failed" in case for name, case in speeds(8, each).items()} for each in (False, True))
    assert list(plain) == ["counted", "first passes", *METHODS] and not any(compiled.values())
    assert [name for name, failed in plain.items() if failed] == METHODS


METHODS = ["flow_grpo", "dance_grpo", "mix_grpo", "branch_grpo", "branch_grpo_mix"]


def test_what_checkpointing_computes_again_is_no_work_of_the_network(gpu, monkeypatch):
    import real_size

    precisions = []

    def count(run):
        precisions.append(run.optimization.mixed_precision)
        again = run.optimization.gradient_checkpointing
        return SimpleNamespace(saved=2**30 / (1 + again), forward=1e12, backward=2e12 + 1e12 * again)

    options = Namespace(tune="lora", chunk=4, checkpointing=True)
    counted = real_size.counted_passes(options, SD3("tiny", dtype="bfloat16"), count)
    assert counted == {
        "gib_activations": 0.5,
        "tflop_forward": 1.0,
        "tflop_backward": 2.0,
        "tflop_recomputed": 1.0,
    }
    assert precisions == ["bf16", "bf16"]  # else what is cast for a LoRA of fp32 is counted as fp32


@pytest.mark.parametrize("gib, rows", [(8, 1), (24, 4), (80, 8)])
def test_a_pass_has_as_many_rows_as_fit_and_eight_images_fill_it(gpu_parts, monkeypatch, gib, rows):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=gib * 2**30))
    assert gpu_parts.chunk_of(False) == rows


@pytest.fixture
def failing_training(monkeypatch):
    """Puts a training that fails in the folder it has changed into in the place of the tests' own."""

    def trained(method, family, folder, **options):
        os.chdir(folder)
        raise RuntimeError("CUDA error")

    stub = SimpleNamespace(trained=trained, start=lambda: None, EDITORS=())
    monkeypatch.setitem(sys.modules, "pretended_runs", stub)
    for name, names in {"tinies": {"BUILDERS": ()}, "small_runs": {"METHODS": ()}}.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**names))


def test_a_training_that_fails_leaves_the_next_ones_where_they_were(gpu, failing_training, capsys):
    home = Path.cwd()
    gpu.carry_out("waits", False)
    cases = gpu.outcome(0, capsys.readouterr().out.splitlines(), 1)["cases"]
    assert len(cases) == 10 and Path.cwd() == home
    assert {case["failed"] for case in cases.values()} == {"RuntimeError: CUDA error"}


def test_what_a_run_does_around_its_iterations_is_not_counted(gpu_parts, monkeypatch):
    around, each = {"cudaMalloc": 3, "cudaMemcpyAsync": 40}, {"cudaMemcpyAsync": 5, "Memcpy DtoH": 1}
    calls = lambda iterations: {k: around.get(k, 0) + iterations * each.get(k, 0) for k in {*around, *each}}
    monkeypatch.setattr(gpu_parts, "profiled_calls", calls)
    assert gpu_parts.profiled() == {"calls": {"cudaMemcpyAsync": 10, "Memcpy DtoH": 2}}


def test_no_profiled_run_finds_what_another_encoded(gpu_parts, monkeypatch):
    seen = []

    def trained(method, family, folder, iterations):
        seen.append((iterations, Path(os.environ["AFTERFLOW_CACHE"])))
        seen[-1][1].mkdir()  # fails where there is one

    monkeypatch.setitem(sys.modules, "pretended_runs", SimpleNamespace(trained=trained))
    monkeypatch.setattr(gpu_parts, "chdir", nullcontext)
    before = os.environ.get("AFTERFLOW_CACHE")
    assert gpu_parts.profiled() == {"calls": {}}
    assert [iterations for iterations, _ in seen] == [1, 3] and os.environ.get("AFTERFLOW_CACHE") == before
    assert not any(cache.exists() for _, cache in seen)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_sentence():
    ended = start(PYTHON=sys.executable)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr == (
        "bench/gpu.sh: torch sees no GPU here; bench/gpu.sh --rehearse tries the script without one\n"
    )


def test_without_an_environment_it_says_what_to_do():
    ended = start(PYTHON="/no/such/python")
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and "make demo" in ended.stderr and "/no/such/python" in ended.stderr


def start(**environment):
    """Start bench/gpu.sh from another folder, and return how it ended."""
    command = ["sh", str(ROOT / "bench" / "gpu.sh")]
    return subprocess.run(command, cwd="/", env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture
def real_size(gpu):
    """The page about whole networks, and what is stored of them."""
    import real_size_page

    return real_size_page, json.loads(real_size_page.STORED.read_text())


def test_the_page_about_real_sizes_says_what_is_stored(real_size):
    page, stored = real_size
    assert page.PAGE.read_text(encoding="utf-8") == page.page(stored), "run python bench/real_size_page.py"


def test_what_is_stored_of_whole_networks_holds(real_size):
    _, stored = real_size
    entries = [entry for entry in stored["pairs"].values() if "failed" not in entry]
    assert entries
    for entry in entries:
        assert [entry[name] for name in ("ratio_mean", "ratio_max") if name in entry] in ([1.0, 1.0], [])
        assert entry["not_finite"] == [] and entry["grad_norm"] > 0
        assert entry["resume"]["differing"] == [] and entry["resume"]["changed"] > 0
        assert entry["lora"]["largest_difference"] == 0 < entry["lora"]["largest_difference_without_it"]
        assert 0.9 < entry["memory"]["measured_over_counted"] < 1.1
        assert 0 < entry["share_of_matmul"] < 1


def test_a_ratio_that_is_off_and_a_pair_that_failed_are_on_the_page(real_size):
    page, stored = real_size
    (name, entry), *_ = [pair for pair in stored["pairs"].items() if "ratio_mean" in pair[1]]
    changed = entry | {"ratio_mean": 0.998}
    assert "| 0.002 |" in page.page({"pairs": {name: changed}})
    assert "| failed: no memory |" in page.page({"pairs": {name: {"failed": "no memory"}}})
