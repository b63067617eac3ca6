"""Pipelines on this machine, in its cache and on the hub: which is taken, and what is said where there is none."""

from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from afterflow.cli.main import main
from afterflow.models import pipeline_files
from afterflow.models.pipeline_files import TINY, locate, weights_digest
from afterflow.system import once
from afterflow.system.errors import InputError

LIBRARY = HfHubHTTPError.__bases__[0].__module__.partition(".")[0]
"""Name of the library that asks the hub."""
TRANSPORT = ("ConnectTimeout", "ReadTimeout", "ReadError", "RemoteProtocolError", "ProxyError")
"""Its errors where the hub cannot be reached, or a download breaks; none is an OSError."""


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(once, "_SAID", set())


def network(monkeypatch, error, in_cache):
    """A hub that raises `error`, and a cache that holds the tiny pipeline or nothing; the calls that are made."""
    calls = []

    def fetched(path, revision, weights, from_cache=False):
        calls.append((revision, weights, from_cache))
        if not from_cache:
            raise error
        if not in_cache:
            raise LocalEntryNotFoundError("not in the cache")
        return str(TINY)

    monkeypatch.setattr(pipeline_files, "download", fetched)
    return calls


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", TRANSPORT)
def test_a_hub_out_of_reach_is_told_and_the_cache_is_taken(name, weights, monkeypatch, caplog):
    error = getattr(pytest.importorskip(LIBRARY), name)("timed out")
    assert not isinstance(error, OSError)
    calls = network(monkeypatch, error, in_cache=True)
    assert locate("owner/model", "v1", weights) == TINY and locate("owner/model", "v1", weights) == TINY
    assert calls == 2 * [("v1", weights, False), ("v1", weights, True)]
    assert [record.message for record in caplog.records] == [
        f"model 'owner/model' is taken from this machine's cache; the hub is out of reach ({name}: timed out)"
    ]
    network(monkeypatch, error, in_cache=False)
    with pytest.raises(InputError, match=rf"not on this machine .*\({name}: timed out\); check the id, the network"):
        locate("owner/model", None, weights)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), LocalEntryNotFoundError("offline")])
def test_a_download_that_a_disk_or_a_setting_stops_is_one_sentence(error, monkeypatch):
    network(monkeypatch, error, in_cache=False)
    with pytest.raises(InputError, match=f"could not be fetched from the hub .*{str(error)[-7:]}"):
        locate("owner/model", None)


def test_what_the_hub_refuses_is_not_taken_from_the_cache(monkeypatch):
    calls = network(monkeypatch, HfHubHTTPError.__new__(HfHubHTTPError, "gated"), in_cache=True)
    with pytest.raises(InputError, match="for a gated model, your token"):
        locate("owner/model", None)
    assert calls == [(None, True, False)]


@pytest.mark.parametrize("path", ["my models/base", "owner/mo del", "owner/a--b", "owner/-a", "a/b/c", "./x/y", "/x"])
def test_what_is_no_id_is_refused_in_our_words(path, monkeypatch):
    monkeypatch.setattr(pipeline_files, "download", lambda *_: pytest.fail("the hub is asked"))
    with pytest.raises(InputError, match="no such folder, and a hub id reads owner/name"):
        locate(path, None)


def test_a_single_file_is_no_pipeline_and_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/flux1-dev.safetensors").write_bytes(b"weights")
    assert main(["sample", "models/flux1-dev.safetensors", "a cat"]) == 2
    said = capsys.readouterr().err
    assert "is a single file; a model is a folder as diffusers saves it" in said and "from_single_file" in said


def test_a_digest_of_weights_is_of_the_revision_and_of_the_files_that_are_read(tmp_path, monkeypatch):
    folders = {}
    for name, content in (("main", "a"), ("v1", "b"), ("old", "c"), ("older", "d")):
        folders[name] = tmp_path / name
        ending = "bin" if name.startswith("old") else "safetensors"
        for file, text in (("model_index.json", '{"_class_name": "A"}'), (f"vae/diffusion_model.{ending}", content)):
            (folders[name] / file).parent.mkdir(parents=True, exist_ok=True)
            (folders[name] / file).write_text(text)
    monkeypatch.setattr(pipeline_files, "download", lambda path, revision, weights: str(folders[revision or "main"]))
    digests = [weights_digest("owner/model", revision) for revision in (None, "v1", "old", "older")]
    assert len(set(digests)) == 4 and digests[0] == weights_digest(str(folders["main"]))
    (folders["v1"] / "vae" / "diffusion_model.bin").write_text("not read")
    assert weights_digest("owner/model", "v1") == digests[1]
