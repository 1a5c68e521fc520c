"""`llcuda-ffi bundle tune`: installed bundles are measured, and a Llama for which none is named follows the verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llcuda_ffi import Llama, bundles
from llcuda_ffi.bundles import InstalledBundle, store
from llcuda_ffi.cli.bundle import command
from llcuda_ffi.devices import tuned
from llcuda_ffi.devices.tuned import Row, Verdict
from llcuda_ffi.enums import GGMLType
from llcuda_ffi.errors import BundleError, InvalidModelFile
from llcuda_ffi.hardware.cpu import cpu_features
from llcuda_ffi.native.load import load

from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_llama, tiny_llama

TELL = """
import sys
from llcuda_ffi import Llama
with Llama(sys.argv[1], n_ctx=64, device="cpu") as llm:
    print(llm.model.library.bundle.name, llm.model.params.use_extra_bufts, llm.model.placement.note, sep="|")
"""


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Path:
    """Weights in F32, which no bundle repacks."""
    return tiny_llama


@pytest.fixture(scope="module")
def newer() -> InstalledBundle:
    """A second generation, from the user's cache or fetched once."""
    return bundles.ensure("v0.6.0-cpu", progress=False)


def tell(model: Path, cache: Path, **environment: str) -> list[str]:
    return run_child(TELL, model, LLCUDA_FFI_CACHE=str(cache), **environment, timeout=120).strip().split("|")


def read(model: Path, cache: Path, **environment: str) -> list[str]:
    """The same of an Embedder."""
    told = TELL.replace("Llama", "Embedder").replace("n_ctx=64, ", "")
    return run_child(told, model, LLCUDA_FFI_CACHE=str(cache), **environment, timeout=120).strip().split("|")


@pytest.mark.bundle("v0.5.0")
def test_tune(
    bundle: InstalledBundle, newer: InstalledBundle, bundle_b7698: InstalledBundle, cache: Path, tiny: Path
) -> None:
    """The newer generations are measured; a fresh process follows the verdict, and the user's own choice before it."""
    run = CliRunner().invoke
    with pytest.raises(BundleError, match=r"no bundle for the CPU is installed.*`llcuda-ffi bundle install`"):
        run(command, ["tune"], catch_exceptions=False)
    place = store.bundles_folder()
    place.mkdir(parents=True, exist_ok=True)
    for one in (newer, bundle_b7698, bundle):
        if not (place / one.name).exists():
            (place / one.name).symlink_to(one.path)
    with pytest.raises(InvalidModelFile, match="not a GGUF file"):
        run(command, ["tune", __file__], catch_exceptions=False)
    done = run(command, ["tune", str(tiny), "-r", "1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {row["bundle"] for row in found["rows"]} == {bundle.name, newer.name}
    assert found["types"] == "F32"
    assert all(row["repack"] is None and row["prompt"] > 0 and row["answer"] > 0 for row in found["rows"])

    best = found["best"]["bundle"]
    name, _, note = tell(tiny, cache)
    assert name == best
    assert note.startswith(f"bundle {best}: measured with tiny.gguf on 20")
    other = next(one.name for one in (bundle, newer) if one.name != best)
    name, _, note = tell(tiny, cache, LLCUDA_FFI_BUNDLE=other)
    assert name == other
    assert note.startswith(f"bundle {other}: measured with")
    assert run(command, ["tune", "--forget"]).exit_code == 0
    assert tell(tiny, cache)[::2] == [bundle.name, ""]


@pytest.mark.bundle("v0.5.0")
def test_models_that_only_read(
    bundle: InstalledBundle, newer: InstalledBundle, cache: Path, minilm: Path, tmp_path: Path
) -> None:
    """An embedding model is measured too; its verdict is for embedders of its types and moves no Llama."""
    place = store.bundles_folder()
    place.mkdir(parents=True)
    for one in (newer, bundle):
        (place / one.name).symlink_to(one.path)
    done = CliRunner().invoke(command, ["tune", str(minilm), "-r", "1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert all(row["prompt"] > 0 and row["answer"] is None for row in found["rows"])
    best = found["best"]["bundle"]
    name, _, note = read(minilm, cache)
    assert name == best
    assert "measured with all-MiniLM-L6-v2-f16.gguf" in note
    make_tiny_llama(tmp_path / "f16.gguf", kind=1)
    assert "measured with" not in tell(tmp_path / "f16.gguf", cache)[2]


@pytest.mark.bundle("v0.5.0")
def test_faster_libraries_are_taken(
    bundle: InstalledBundle, newer: InstalledBundle, cache: Path, tmp_path: Path
) -> None:
    """F16 on a processor with AVX2 and no AVX512: the newer libraries, where they can be had."""
    make_tiny_llama(tmp_path / "f16.gguf", kind=1)
    make_tiny_llama(tmp_path / "q8.gguf", kind=8)
    place = store.bundles_folder()
    place.mkdir(parents=True)
    (place / bundle.name).symlink_to(bundle.path)
    for ask in (read, tell):
        assert ask(tmp_path / "f16.gguf", cache, LLCUDA_FFI_OFFLINE="1")[0] == bundle.name
    (place / newer.name).symlink_to(newer.path)
    features = set(cpu_features())
    faster = newer if "avx2" in features and "avx512f" not in features else bundle
    for ask in (read, tell):
        name, _, note = ask(tmp_path / "f16.gguf", cache)
        assert name == faster.name
        assert note == (f"bundle {newer.name}: reads F16 faster on this processor" if faster is newer else "")
        assert ask(tmp_path / "q8.gguf", cache)[0] == bundle.name
        assert ask(tmp_path / "f16.gguf", cache, LLCUDA_FFI_BUNDLE=bundle.name)[0] == bundle.name


def test_reading_counts_prompts_only() -> None:
    """What decodes faster and reads slower is the best for a Llama and not for an Embedder."""
    found = Verdict("", "", (Row("decodes", "", None, 100.0, 100.0), Row("reads", "", None, 150.0, 20.0)))
    assert (found.best.bundle, found.reading.best.bundle) == ("decodes", "reads")


def test_verdict_of_what_is_loaded(cache: Path, tiny: Path) -> None:
    """The layout that was measured for the loaded bundle is taken; not after it was rebuilt, nor over the user's."""
    here = load().bundle
    rows = tuple(Row(here.name, tuned.digest(here), repack, 100.0 - repack, 10.0) for repack in (True, False))
    tuned.keep("F32", Verdict("other.gguf", "2026-11-26", (rows[0], replace(rows[1], prompt=900.0))))
    with Llama(tiny, n_ctx=64, device="cpu") as llm:
        assert llm.model.params.use_extra_bufts is False
        assert "weights not repacked: measured with other.gguf on 2026-11-26" in llm.model.placement.note
    from llcuda_ffi import ModelParams

    with Llama(tiny, n_ctx=64, device="cpu", model_params=ModelParams(use_extra_bufts=True)) as llm:
        assert llm.model.params.use_extra_bufts is True
        assert llm.model.placement.note == ""
    tuned.keep("F32", Verdict("other.gguf", "2026-11-26", tuple(replace(row, digest="rebuilt") for row in rows)))
    with Llama(tiny, n_ctx=64, device="cpu") as llm:
        assert llm.model.params.use_extra_bufts is None
        assert llm.model.placement.note == ""


@pytest.mark.skipif("amx_int8" in cpu_features(), reason="with AMX libllama decides")
def test_k_quants_where_tiled_kernels_are(bundle: InstalledBundle, newer: InstalledBundle, tmp_path: Path) -> None:
    """Q4_K is not repacked by a bundle that exports them, and the placement says why; an older one is left alone."""
    file = tiny_llama(embd=256, ff=256)
    for name, (ne, _, _) in list(file.tensors.items()):
        if len(ne) > 1:
            file.tensors[name] = (ne, GGMLType.Q4_K, bytes(ne[0] * ne[1] // 256 * 144))
    file.write(tmp_path / "q4_k.gguf")
    cache = bundle.path.parent.parent
    name, repack, note = tell(tmp_path / "q4_k.gguf", cache, LLCUDA_FFI_BUNDLE=newer.name)
    assert (name, repack) == (newer.name, "False")
    assert note == f"weights not repacked: bundle {newer.name} has faster kernels for Q4_K"
    if bundle.name == "v0.5.0-cpu":
        assert tell(tmp_path / "q4_k.gguf", cache, LLCUDA_FFI_BUNDLE=bundle.name) == [bundle.name, "None", ""]


@pytest.mark.parametrize(("speeds", "index"), [((100, 102), 0), ((100, 110), 1), ((100, 90), 0)])
def test_an_earlier_row_wins_within_3_percent(speeds: tuple[int, int], index: int) -> None:
    """Noise does not move anybody from the default bundle."""
    rows = tuple(Row(f"bundle {i}", "", None, speed, speed) for i, speed in enumerate(speeds))
    assert Verdict("", "", rows).best is rows[index]


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', "{"])
def test_broken_file(content: str, cache: Path, tiny: Path) -> None:
    """A file that is none of ours is as good as none."""
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "tuned.json").write_text(content)
    found: Any = tuned.verdict(tiny)
    assert found is None


def test_types(tmp_path: Path) -> None:
    """What holds a tenth of the weights is named; norms are not."""
    make_tiny_llama(tmp_path / "q8.gguf", kind=8)
    assert tuned.weight_types(tmp_path / "q8.gguf") == "Q8_0"
    (tmp_path / "q8.gguf").write_bytes(b"GGUF")
    assert tuned.weight_types(tmp_path / "q8.gguf") == ""
