"""A dry load takes no memory and tells what a real one takes; the context says what it resolved."""

from __future__ import annotations

from pathlib import Path

import pytest

from llcuda_ffi import Context, Model
from llcuda_ffi.devices import placement
from llcuda_ffi.devices.dry_load import dry_load, from_log
from llcuda_ffi.devices.placement import Device, Room
from llcuda_ffi.enums import GGMLType
from llcuda_ffi.errors import InvalidModelFile
from llcuda_ffi.native.load import load
from llcuda_ffi.native.log import listen
from llcuda_ffi.params import ModelParams

from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_bert


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.Q8_0])
@pytest.mark.parametrize("sequences", [1, 4])
def test_as_a_real_load(smollm2: Path, kind: GGMLType, sequences: int) -> None:
    """KV cache and compute buffers are those that libllama then allocates."""
    room = Room(2048, 256, sequences, kind, kind)
    need = dry_load(load(), smollm2, ModelParams(), room)
    with (
        Model.load(smollm2) as model,
        listen() as heard,
        Context(model, n_ctx=2048, n_batch=256, n_ubatch=256, n_seq_max=sequences, type_k=kind, type_v=kind),
    ):
        pass
    assert need == from_log(heard.lines())
    assert need.kv > 0
    assert need.compute


def test_models_without_a_cache(tmp_path: Path) -> None:
    """An embedding model needs no KV cache."""
    path = tmp_path / "bert.gguf"
    make_tiny_bert(path)
    need = dry_load(load(), path, ModelParams(), Room(64, 64))
    assert need.kv == 0
    assert need.compute


def test_a_broken_file(tmp_path: Path) -> None:
    """A file is checked before libllama sees it, as for a load."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 100)
    with pytest.raises(InvalidModelFile):
        dry_load(load(), path, ModelParams(), Room(64, 64))


def test_nothing_is_allocated(smollm2: Path) -> None:
    """Planning a cache of 20 GiB takes next to no memory, and frees it."""
    run_child(f"""
import resource
from pathlib import Path
from llcuda_ffi.devices.dry_load import dry_load
from llcuda_ffi.devices.placement import Room
from llcuda_ffi.native.load import load
from llcuda_ffi.params import ModelParams
need = dry_load(load(), Path({str(smollm2)!r}), ModelParams(), Room(1 << 20))
assert need.kv > 20 << 30, need
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20
""")


def test_a_measured_fit(smollm2: Path) -> None:
    """What was measured takes the estimate's place."""
    gpu = Device("CUDA0", "a GPU", "gpu", 1 << 30, 2 << 30)
    rough = placement.fit(smollm2, [gpu], Room(16384))
    assert rough.n_gpu_layers is not None
    assert placement.fit(smollm2, [gpu], Room(16384), (100 << 20, 50 << 20)).n_gpu_layers is None


@pytest.mark.parametrize(("asked", "found"), [("AUTO", True), ("ENABLED", True), ("DISABLED", False)])
def test_flash_attention_resolved(smollm2: Path, asked: str, found: bool) -> None:
    """A context says whether it uses flash attention, also where that was left to libllama."""
    with Model.load(smollm2) as model, Context(model, n_ctx=256, flash_attn_type=asked) as context:
        assert context.flash_attn is found
