"""`mmproj="auto"`: the projector beside a model's file, or in its repository."""

from __future__ import annotations

import json

import pytest

from llcuda_ffi.errors import ModelNotFound
from llcuda_ffi.hub.projectors import choose_projector, projector_of

from ..support.hub import COMMIT, CONTENT, REPO, Hub, resolve

FILES = ("seer-Q4_K_M.gguf", "mmproj-F16.gguf", "mmproj-BF16.gguf", "mmproj-Q8_0.gguf")


def publish(hub: Hub, files: tuple[str, ...]) -> None:
    for file in files:
        hub.put(file, CONTENT + file.encode())
    info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
    hub.server.put(f"/api/models/{REPO}", json.dumps(info).encode())


def test_from_the_repository(own_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fetched and verified like a model; then it lies beside the model and needs no network."""
    publish(own_hub, FILES)
    model = resolve(REPO)
    found = projector_of(REPO, model, progress=False)
    assert found.name == "mmproj-F16.gguf"
    assert found.read_bytes() == CONTENT + b"mmproj-F16.gguf"
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    asked = len(own_hub.server.requests)
    assert projector_of(f"{REPO}:Q4_K_M", model) == found == projector_of(model, model)
    assert len(own_hub.server.requests) == asked


def test_a_repository_without_one(own_hub: Hub) -> None:
    """The error says so; a reference of its own is taken as one."""
    publish(own_hub, FILES[:1])
    model = resolve(REPO)
    with pytest.raises(ModelNotFound, match="text only"):
        projector_of(REPO, model)
    with pytest.raises(ModelNotFound, match="beside it"):
        projector_of(model, model)
    assert projector_of(REPO, model, model) == model


@pytest.mark.parametrize(
    ("files", "model", "found"),
    [
        (["mmproj-SmolVLM-256M-Instruct-f16.gguf", "mmproj-SmolVLM-256M-Instruct-Q8_0.gguf"],
         "SmolVLM-256M-Instruct-Q8_0.gguf", "mmproj-SmolVLM-256M-Instruct-f16.gguf"),
        (["mmproj-model-f16.gguf", "other-mmproj-f16.gguf"], "gemma-3-4b-it-Q4_K_M.gguf", "mmproj-model-f16.gguf"),
        (["a.mmproj-Q8_0.gguf", "b.mmproj-Q8_0.gguf"], "b.Q4_K_M.gguf", "b.mmproj-Q8_0.gguf"),
        (["mmproj-other-f16.gguf"], "mine-Q8_0.gguf", None),
        (["mine-Q8_0.gguf", "mmproj.txt"], "mine-Q8_0.gguf", None),
        (["sub/mmproj-BF16.gguf", "mmproj-F32.gguf"], "mine.gguf", "sub/mmproj-BF16.gguf"),
    ],
)  # fmt: skip
def test_which_one(files: list[str], model: str, found: str | None) -> None:
    """That with the model's name before one without a name; half precision before others; none of another model."""
    assert choose_projector(files, model) == found


def test_several() -> None:
    """The error names them."""
    with pytest.raises(ModelNotFound, match=r"several.*mmproj-a\.gguf, mmproj-b\.gguf"):
        choose_projector(["mmproj-a.gguf", "mmproj-b.gguf"], "mine.gguf", of_one_model=True)
