"""`owner/repo`, a quantization, a pattern: one file of the list that the hub gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llcuda_ffi import hub
from llcuda_ffi.errors import ModelNotFound

from ..support.hub import COMMIT, CONTENT, REPO, Hub, resolve

FILES = (
    "README.md",
    "some-Q4_K_M.gguf",
    "some-Q8_0.gguf",
    "some.q5_0.gguf",
    "mmproj-F16.gguf",
    "big/some-f16.gguf",
)


@pytest.fixture
def listed(own_hub: Hub) -> Hub:
    for file in FILES:
        own_hub.put(file, CONTENT + file.encode())
    siblings = [{"rfilename": file} for file in FILES]
    info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
    own_hub.server.put(f"/api/models/{REPO}", json.dumps(info).encode())
    return own_hub


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        (REPO, "some-Q4_K_M.gguf"),
        (f"{REPO}:Q8_0", "some-Q8_0.gguf"),
        (f"{REPO}:q8_0", "some-Q8_0.gguf"),
        (f"{REPO}:Q5_0", "some.q5_0.gguf"),
        (f"{REPO}:*Q8_0.gguf", "some-Q8_0.gguf"),
        (f"{REPO}:big/*", "some-f16.gguf"),
        (f"hf://{REPO}", "some-Q4_K_M.gguf"),
    ],
)
def test_one_file_is_meant(listed: Hub, reference: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fetched, and the same name gives it again without the network."""
    path = resolve(reference)
    assert path.name == file
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    asked = len(listed.server.requests)
    assert resolve(reference) == path == hub.cached(reference)
    assert len(listed.server.requests) == asked


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("Q6_K", "did you mean some-Q"), ("some*", "matches several"), ("*nothing*", "did you mean")],
)
def test_none_or_several(listed: Hub, wanted: str, words: str) -> None:
    """The error names the files that there are."""
    with pytest.raises(ModelNotFound, match=words):
        resolve(f"{REPO}:{wanted}")


def test_the_other_cache(own_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Hugging Face libraries have fetched is used as it lies there, also offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    place = tmp_path / f"models--{REPO.replace('/', '--')}"
    for file in ("m-Q4_K_M.gguf", "p-00001-of-00002.gguf", "p-00002-of-00002.gguf"):
        (place / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
        (place / "snapshots" / COMMIT / file).write_bytes(CONTENT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    for reference, file in (
        (REPO, "m-Q4_K_M.gguf"),
        (f"{REPO}:m-Q4_K_M.gguf", "m-Q4_K_M.gguf"),
        (f"{REPO}:p-*", "p-00001-of-00002.gguf"),
        (f"{REPO}:p-00001-of-00002.gguf@{COMMIT}", "p-00001-of-00002.gguf"),
    ):
        assert resolve(reference) == place / "snapshots" / COMMIT / file
    assert own_hub.server.requests == []
