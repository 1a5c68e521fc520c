"""A file that was not seen before is tried in a child process: what ends the child is an exception here."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi.core import trial
from llcuda_ffi.core.adapter import LoraAdapter
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.trial_process import SMALL
from llcuda_ffi.core.trial_verdicts import Verdicts
from llcuda_ffi.errors import InvalidModelFile
from llcuda_ffi.gguf.writer import write_gguf
from llcuda_ffi.params import ContextParams, ModelParams

from ..support.child_process import run_child
from ..support.generation import known_kinds
from ..support.tiny_architectures import TINY
from ..support.tiny_model import make_tiny_llama

pytestmark = pytest.mark.skipif(not trial._possible(), reason="no child can be forked here")

# libllama aborts while it makes a context of several sequences, each with cells of its own, for this sound model
KILLER = "t5"


@pytest.fixture
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without verdicts."""
    cache.mkdir()
    return cache


def _verdicts(cache: Path) -> list[dict[str, object]]:
    path = cache / "trials.json"
    return list(json.loads(path.read_text()).values()) if path.exists() else []


def test_a_new_file_is_tried_once(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first load asks the child and keeps the verdict; the second does not ask; a changed file is asked again."""
    asked = []
    send = trial._Child._send

    def spy(self: trial._Child, bundle: object, job: object) -> bool:
        asked.append(job)
        return send(self, bundle, job)  # type: ignore[arg-type]

    monkeypatch.setattr(trial._Child, "_send", spy)
    path = tmp_path / "a.gguf"
    make_tiny_llama(path)
    for _ in range(3):
        Model.load(path).close()
    assert len(asked) == 1
    assert [v["status"] for v in _verdicts(own_cache)] == [0]
    make_tiny_llama(path, {"general.name": "another"})
    Model.load(path).close()
    assert len(asked) == 2
    Model.load(path, vocab_only=True).close()  # other settings, another verdict
    Model.load(path, trial=False, vocab_only=True).close()
    assert len(asked) == 3


@pytest.mark.parametrize("name", known_kinds(sorted(TINY)))
def test_sound_models_pass(tmp_path: Path, name: str) -> None:
    """Each kind of tiny model is let through, and makes a context of its own."""
    path = tmp_path / f"{name}.gguf"
    TINY[name]().write(path)
    with Model.load(path) as model, Context(model, n_ctx=64, n_batch=32, n_threads=1):
        pass


def test_what_ends_the_child_is_an_exception(own_cache: Path, tmp_path: Path) -> None:
    """libllama's assertion reaches the caller as the message of InvalidModelFile, also from the kept verdict."""
    path = tmp_path / "killer.gguf"
    TINY[KILLER]().write(path)
    os.truncate(path, SMALL + 1)
    with Model.load(path) as model:
        for _ in range(2):
            # Context itself refuses such a setting by name: the trial is asked alone, about a file too large to compute
            settings = ContextParams(n_ctx=128, n_batch=64, n_seq_max=2)
            with (
                pytest.raises(InvalidModelFile, match=r"SIGABRT.*GGML_ASSERT"),
                trial.tried([path], model.params, context=settings),
            ):
                pass
        Context(model, n_ctx=128, n_batch=64).close()
    assert sorted(int(str(v["status"])) for v in _verdicts(own_cache)) == [-signal.SIGABRT, 0]


def test_a_file_that_never_opens(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has a bound; that a machine was slow is not kept."""
    path = tmp_path / "a.gguf"
    make_tiny_llama(path)
    monkeypatch.setattr(trial, "SECONDS", 1e-4)
    with pytest.raises(InvalidModelFile, match="within the time"):
        Model.load(path)
    assert _verdicts(own_cache) == []
    monkeypatch.undo()
    Model.load(path).close()


def test_the_child_is_replaced(own_cache: Path, tmp_path: Path) -> None:
    """A child that was killed from outside is started again, and a file is tried all the same."""
    path = tmp_path / "a.gguf"
    for name in ("one", "two"):
        make_tiny_llama(path, {"general.name": name})
        Model.load(path).close()
        process = trial._child._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
    assert len(_verdicts(own_cache)) == 2


def test_adapters_are_tried(own_cache: Path, tmp_path: Path) -> None:
    """An adapter is opened by the child on top of its model."""

    path = tmp_path / "a.gguf"
    make_tiny_llama(path)
    with Model.load(path) as model:
        n = model.n_embd
        metadata = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
        pair = {
            "blk.0.attn_q.weight.lora_a": np.ones((2, n), np.float32),
            "blk.0.attn_q.weight.lora_b": np.ones((n, 2), np.float32),
        }
        adapter = write_gguf(tmp_path / "lora.gguf", {**metadata, "adapter.lora.alpha": 2.0}, pair)
        LoraAdapter.load(model, adapter).close()
    assert [v["status"] for v in _verdicts(own_cache)] == [0, 0]


def test_verdicts_are_bounded(own_cache: Path) -> None:
    """The newest thousand are kept; a file that is no JSON is as none; a cache that cannot be written is no error."""
    verdicts = Verdicts()
    verdicts.path.write_text(json.dumps({str(i): {"status": 0} for i in range(1500)}))
    verdicts.put("new", {"status": 0})
    kept = json.loads(verdicts.path.read_text())
    assert len(kept) == 1000
    assert list(kept)[-1] == "new"
    verdicts.path.write_text("{")
    assert verdicts.get("new") is None
    verdicts.path.unlink()
    verdicts.path.mkdir()
    verdicts.put("new", {"status": 0})
    assert verdicts.get("new") is None


def test_context_class() -> None:
    """Sizes and threads do not make another kind of context; what changes the graphs does."""
    assert trial.context_class(ContextParams(n_ctx=8192, n_threads=3, n_batch=64, n_ubatch=64)) == {}
    kind = trial.context_class(ContextParams(type_k="Q8_0", n_seq_max=8, embeddings=True))  # type: ignore[arg-type]
    assert kind == {"type_k": 8, "n_seq_max": 2, "embeddings": True}
    assert ModelParams().trial


def test_a_broken_child_blames_no_file(tmp_path: Path) -> None:
    """Where a sound model ends the child too, what is broken is not the file."""
    out = run_child(
        """
        import logging, sys
        logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
        from pathlib import Path
        from llcuda_ffi.core import trial_process
        folder = Path(sys.argv[1])
        from llcuda_ffi.native.load import load
        library = load()
        def die(library, job):
            import os, signal
            os.kill(os.getpid(), signal.SIGSEGV)
        job = {"parts": [], "seconds": 5}
        trial_process.try_model = die
        assert not trial_process._to_blame(library, job)
        """,
        tmp_path,
        timeout=100,
    )
    assert "Traceback" not in out
