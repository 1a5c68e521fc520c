"""A KV cache that nobody asked the size of leaves room; the table says what libllama then takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llcuda_ffi import Llama
from llcuda_ffi.cli.model import command
from llcuda_ffi.devices.memory_fit import affordable_cells, plans
from llcuda_ffi.engine import assembly
from llcuda_ffi.enums import GGMLType
from llcuda_ffi.native.load import load

from ..support.tiny_model import make_tiny_llama

F16 = (GGMLType.F16, GGMLType.F16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama of 512 tokens of context."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    make_tiny_llama(path, embd=64, heads=2, heads_kv=1)
    return path


def test_the_estimate_is_what_libllama_takes(tiny: Path) -> None:
    """The bytes of a cell, times cells, are the KV cache; half as many bytes give a smaller cache."""
    (plan,) = plans(load(), tiny, [512], [4], [GGMLType.F16])
    free = tiny.stat().st_size + 2 * plan.kv
    assert affordable_cells(tiny, free + 1024, 512, 4, F16) is None  # it just fits half of what is free
    assert affordable_cells(tiny, free - plan.kv, 512, 4, F16) == 1024
    assert affordable_cells(tiny, 1, 512, 4, F16) == 512  # one request always
    assert affordable_cells(tiny, 0, 512, 4, F16) is None  # nobody knows


def test_llama_follows_the_machine(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Short of memory the cache is shared, which one line says; what is asked for is given."""
    monkeypatch.setattr(assembly, "free_system_memory", lambda: 1)
    with Llama(tiny, device="cpu", n_parallel=4) as llm:
        assert llm.context.n_ctx == llm.n_ctx == 512
        assert "shared by 4 requests" in caplog.text
        texts = [done.text for done in llm.generate(["a", "b", "c", "d"] * 2, max_tokens=8, temperature=0)]
        assert texts[:4] == texts[4:]
    with Llama(tiny, device="cpu", n_parallel=4, n_ctx=512) as llm:
        assert llm.context.n_ctx == 2048


def test_command(tiny: Path) -> None:
    """`model fit` lists contexts, parallel requests and types; what fits depends on the memory."""
    done = CliRunner().invoke(command, ["fit", str(tiny), "--memory", "1", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    assert {row["kv_type"] for row in rows} == {"f16", "q8_0"}
    assert all(row["fits"] and row["total"] == row["weights"] + row["kv"] + row["compute"] for row in rows)
    odd = tiny.with_name("odd.gguf")
    make_tiny_llama(odd)  # heads of 8 numbers: no blocks of 32
    assert {plan.kv_type for plan in plans(load(), odd, [512], [1], [GGMLType.F16, GGMLType.Q8_0])} == {"f16"}
    table = CliRunner().invoke(command, ["fit", str(tiny), "--memory", "0"])
    assert table.output.count("no") >= len(rows)
