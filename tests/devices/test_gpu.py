"""For machines with an NVIDIA GPU: `pytest -m gpu --llcuda-require=gpu`, LLCUDA_FFI_BUNDLE set or a bundle that fits.

The model is that of --llcuda-model.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Batch, Llama, Model, ModelParams
from llcuda_ffi.bundles import ensure, select
from llcuda_ffi.devices import placement
from llcuda_ffi.errors import IncompatibleGpu, ModelError, UnsupportedByBundle, UnsupportedModel
from llcuda_ffi.hardware.gpu import survey
from llcuda_ffi.native import cuda, guard
from llcuda_ffi.native.load import loaded
from llcuda_ffi.pytest_plugin import Leaks

from ..support.tiny_architectures import TINY

pytestmark = pytest.mark.gpu
PROMPT = "Once upon a time there was a small dragon who"


@pytest.fixture(scope="module")
def llm(llcuda_model: Path) -> Llama:
    """All layers on the GPU."""
    return Llama(llcuda_model, device="cuda", n_ctx=512, n_parallel=4)


def test_every_layer_is_on_the_gpu(llm: Llama) -> None:
    """`n_gpu_layers="auto"` puts all layers of a model that fits on the GPU, and `placement` says so."""
    placed = llm.model.placement
    assert any(name.startswith("CUDA") for name in placed.buffers)
    if placed.layers:
        assert all(device.startswith("CUDA") for device in placed.layers)
        assert len(placed.layers) == llm.model.n_layer + 1
    assert "all" in placed.note


def test_runtime_libraries_are_mapped_once(llm: Llama) -> None:
    """cudart, cuBLAS and cuBLASLt are in the process once each, whatever the linker's path has."""
    for stem in ("libcudart.so", "libcublas.so", "libcublasLt.so", "libggml-cuda", "libggml-base"):
        assert len({path.resolve() for path in guard.mapped(stem)}) == 1, stem


def test_greedy_text_is_the_same_twice_and_streamed(llm: Llama) -> None:
    """Greedy decoding on the GPU repeats itself, whole and streamed."""
    first = llm.generate(PROMPT, temperature=0, max_tokens=48, prefix_cache=False)
    again = llm.generate(PROMPT, temperature=0, max_tokens=48, prefix_cache=False)
    streamed = "".join(chunk.text for chunk in llm.stream(PROMPT, temperature=0, max_tokens=48, prefix_cache=False))
    assert first.token_ids == again.token_ids
    assert streamed == first.text


def test_four_sequences_at_once(llm: Llama) -> None:
    """A batch of several sequences completes, each with its own length."""
    outs = llm.generate([f"{PROMPT} {i}" for i in range(6)], max_tokens=24, ignore_eos=True, seed=3)
    assert [out.usage.completion_tokens for out in outs] == [24] * 6


def test_several_contexts_at_once(llcuda_model: Path, llm: Llama) -> None:
    """Four contexts that compute at the same time give what one gives: each has one sequence, as when alone."""
    prompts = [f"{PROMPT} {name}" for name in ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal")]
    settings = {"temperature": 0.7, "max_tokens": 60, "prefix_cache": False, "ignore_eos": True, "seed": 3}
    alone = [llm.generate(p, **settings).token_ids for p in prompts]
    with Llama(llm.model, n_ctx=512, n_parallel=4, n_contexts=4) as several:
        for _ in range(3):
            assert [c.token_ids for c in several.generate(prompts, **settings)] == alone
        assert all(scheduler.metrics.requests for scheduler in several.engine.schedulers)
    with Llama(llm.model, n_ctx=64, n_parallel=32) as many:
        assert len(many.contexts) == 2


def test_devices_and_switches_are_readable(llm: Llama) -> None:
    """The GPU appears with its memory and address; the CUDA switches are fixed once the library is loaded."""
    gpus = placement.gpus(llm.model.library, "cuda")
    assert gpus[0].name == "CUDA0"
    assert gpus[0].memory_total > 1 << 30
    assert gpus[0].pci
    assert cuda.in_force().graphs is True or cuda.in_force().graphs is False
    with pytest.raises(ImportError, match="loaded already"):
        cuda.configure(graphs=False)


def test_unknown_gpu_is_refused(llm: Llama) -> None:
    """cuda:N beyond the last GPU names those that there are."""
    with pytest.raises(IncompatibleGpu, match="cuda:0"):
        placement.gpus(llm.model.library, "cuda:63")


def test_vram_comes_back(llcuda_model: Path, llcuda_leaks: Leaks, llm: Llama) -> None:
    """Twenty loads, texts and closes leave the GPU's memory where it was."""
    for round_ in range(21):
        if round_ == 1:
            llcuda_leaks.restart()
        with Llama(llcuda_model, device="cuda", n_ctx=256, n_parallel=1) as other:
            other.generate(PROMPT, max_tokens=4)
    llcuda_leaks.check(vram="16MiB", rss="256MiB")


def test_two_models_at_once(llcuda_model: Path, llm: Llama) -> None:
    """A second model on the same GPU gives the same greedy tokens as the first."""
    with Llama(llcuda_model, device="cuda", n_ctx=512, n_parallel=4) as other:
        a = llm.generate(PROMPT, temperature=0, max_tokens=16, prefix_cache=False)
        b = other.generate(PROMPT, temperature=0, max_tokens=16, prefix_cache=False)
    assert a.token_ids == b.token_ids


def test_some_layers_on_the_cpu(llcuda_model: Path, llm: Llama) -> None:
    """n_gpu_layers=2 leaves the other layers on the CPU, and text still comes."""
    with Llama(llcuda_model, device="cuda", n_gpu_layers=2, n_ctx=256, n_parallel=1) as mixed:
        if mixed.model.placement.layers:
            assert mixed.model.placement.layers.count("CPU") == llm.model.n_layer - 1
        assert mixed.generate(PROMPT, max_tokens=4, ignore_eos=True).usage.completion_tokens == 4


def test_cpu_with_a_cuda_bundle(llcuda_model: Path, llm: Llama) -> None:
    """device="cpu" keeps the weights off the GPU also when a CUDA bundle is loaded."""
    with Llama(llcuda_model, device="cpu", n_ctx=256, n_parallel=1) as other:
        assert not any(name.startswith("CUDA") and "Host" not in name for name in other.model.placement.buffers)
        assert other.generate(PROMPT, max_tokens=2, ignore_eos=True).usage.completion_tokens == 2


def test_context_too_large_is_an_error_with_sizes(llm: Llama) -> None:
    """A KV cache beyond the GPU's memory is a ModelError that carries libllama's sizes, and the process lives on."""
    model = llm.model
    each = model.n_layer * 4 * (model.n_embd // model.n_head) * model.n_head_kv  # bytes of a cell: K and V in F16
    cells = 2 * sum(d.memory_total for d in placement.gpus(model.library, "cuda")) // each
    with pytest.raises(ModelError, match=r"(?s)context of .*(alloc|memory|size)"):
        Llama(model, n_ctx=cells // 64, n_parallel=64)
    assert llm.generate(PROMPT, max_tokens=2, ignore_eos=True).usage.completion_tokens == 2


def test_bundle_in_use_fits(llm: Llama) -> None:
    """The verdict from the library's own headers is native or JIT for a GPU that just computed."""
    there = loaded()
    assert there is not None
    code = select.code_of_bundle(there.bundle)
    found = select.judge_all(survey(), [code], glibc=(9, 9), runtimes=(12, 13))
    assert any(verdict.how != select.IMPOSSIBLE for verdict in found)


@pytest.mark.parametrize("switch", ["graphs=False", "fusion=False", "pinned=False"])
def test_switches_reach_the_library(switch: str, llcuda_model: Path) -> None:
    """Each switch, set before loading in a fresh process, still gives text."""
    code = (
        "from llcuda_ffi.native import cuda\n"
        f"cuda.configure({switch})\n"
        "from llcuda_ffi import Llama\n"
        f"with Llama({str(llcuda_model)!r}, device='cuda', n_ctx=256, n_parallel=1) as llm:\n"
        "    print(llm.generate('a b c', max_tokens=4, ignore_eos=True).usage.completion_tokens)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "4"


@pytest.mark.gpu(count=2)
@pytest.mark.parametrize("mode", ["LAYER", "ROW", "TENSOR"])
def test_two_gpus_compute_what_one_computes(mode: str, llcuda_model: Path, llm: Llama) -> None:
    """A model split over all GPUs gives the logits of one GPU: by layer the same, else but for the order of sums.

    Row split is refused by name where the bundle's library has none.
    """

    def logits(device: str, params: ModelParams) -> np.ndarray:
        with Llama(llcuda_model, device=device, n_ctx=512, n_parallel=1, model_params=params) as made:
            batch = Batch(64)
            batch.extend(made.model.vocab.tokenize(PROMPT))
            made.context.decode(batch)
            return made.context.logits()

    alone = logits("cuda:0", ModelParams())
    try:
        split = logits("cuda", ModelParams(split_mode=mode))  # type: ignore[arg-type]
    except UnsupportedByBundle:
        assert mode == "ROW"
        return
    if mode == "LAYER":
        assert int(split.argmax()) == int(alone.argmax())
    assert np.corrcoef(split, alone)[0, 1] > 0.99


def test_model_load_takes_the_loaded_bundle(llcuda_model: Path, llm: Llama) -> None:
    """The low level loads on the same GPU without being told which bundle."""
    with Model.load(llcuda_model) as model:
        assert any(name.startswith("CUDA") for name in model.placement.buffers)
        assert model.library.bundle.path == ensure().path or model.library is llm.model.library


def test_sizes_that_cuda_lacks(tmp_path: Path, llm: Llama) -> None:
    """A model that would end the process in a kernel is refused, with no layer on the GPU too; the CPU computes."""
    path = tmp_path / "tiny.gguf"
    TINY["qwen35"]().write(path)
    for settings in ({}, {"n_gpu_layers": 0}):
        with pytest.raises(UnsupportedModel, match="a state of 8"):
            Llama(path, device="cuda", n_ctx=64, n_parallel=1, **settings)  # type: ignore[arg-type]
    with Llama(path, device="cpu", n_ctx=64, n_parallel=1) as small:
        assert small.generate([5, 6, 7], max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
