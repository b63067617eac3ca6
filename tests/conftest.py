"""One thread for every test, and no test for an accelerator that is not there.

Heavy libraries are imported by the fixtures that need them: the process that hands tests out would wait for them too.
"""

import copy
import gc
import os
import signal
import sys
from collections import OrderedDict

import pytest

# A shell that starts the tests in the background, or `nohup`, has signals ignored, and all processes inherit that.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL), ("SIGTERM", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
os.environ["OMP_NUM_THREADS"] = "1"  # the toys' tensors are so small that threads cost more than they bring


NO_GPU = pytest.mark.skip(reason="no CUDA GPU here; make test ARGS='-m gpu' runs these where there is one")


@pytest.fixture(scope="session", autouse=True)
def one_cache(tmp_path_factory):
    """What is encoded in one test, by content, need not be in the next; a user's cache is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTERFLOW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def pipelines_read_once():
    """What a pipeline's folder holds is read once while its files stay as they are, and copied."""
    module = sys.modules.get("afterflow.models.pipeline")  # absent where no test that was collected needs it
    if module is None:
        yield
        return
    kept, kind = {}, module.Model

    def once(name, read):
        def copied(self, without=(), **parts):
            if parts:  # of somebody else, and not to be kept
                return read(self, without, **parts)
            files = [(file, file.stat()) for file in sorted(self.folder.rglob("*")) if file.is_file()]
            stamps = tuple((str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino) for file, stat in files)
            key = read, type(self), self.config.dtype, tuple(without), stamps
            if key not in kept:
                kept[key] = read(self, without) if without else read(self)
            if name == "meta_pipeline" and self.device.type != "meta":
                return kept[key]  # it is looked at, and replaced by one with weights
            return copy.deepcopy(kept[key])

        return copied

    with pytest.MonkeyPatch.context() as patch:
        for name in ("pipeline", "meta_pipeline"):
            patch.setattr(kind, name, once(name, getattr(kind, name)))
        # A module has ten, nearly all empty, and each would be copied by way of its pickled form.
        patch.setitem(copy._deepcopy_dispatch, OrderedDict, copied_dict)
        yield


def copied_dict(items, memo):
    """A deep copy of an OrderedDict."""
    memo[id(items)] = copied = OrderedDict()
    if items:
        copied.update((copy.deepcopy(key, memo), copy.deepcopy(value, memo)) for key, value in items.items())
    return copied


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk():
    """Files of tests need not outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def pytest_collection_finish():
    """Libraries stay until the end, so the search for garbage leaves out what they have made so far."""
    gc.freeze()


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(NO_GPU)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The toy after supervised training; to be copied, not changed.  What one worker has trained the others read."""
    from safetensors.torch import load_model, save_model

    from afterflow.algorithms.sft import SFT
    from toy import MLP, learn

    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    model, file = MLP(), shared / "base.safetensors"
    if file.is_file():
        load_model(model, file)
    else:
        for _ in learn(SFT(shift=1.0), model, 500, lr=3e-3):
            pass
        own = folder / file.name
        save_model(model, own)
        own.replace(file)
    return model.requires_grad_(False)


@pytest.fixture
def noted_threads(monkeypatch):
    """Numbers of threads that torch is asked for, after the 8 it has; noted and not used: tests share the cores."""
    import torch

    threads = [8]
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    return threads


@pytest.fixture(scope="session")
def tinies(tmp_path_factory):
    """A tiny pipeline of every family with random weights."""
    from tinies import FAMILIES, built

    return {name: built(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """The test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """The folder of a tiny SD3 pipeline with random weights."""
    from tinies import built

    return built("sd3", tmp_path_factory.mktemp("pipeline")).path


@pytest.fixture(scope="session")
def deep_pipeline(tmp_path_factory):
    """The same as deep as the shipped one."""
    from tinies import built

    return built("deep_sd3", tmp_path_factory.mktemp("deep_pipeline")).path
