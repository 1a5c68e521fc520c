"""What tests of several subjects share: the real model, the real bundle, a loopback server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from llcuda_ffi import Embedder, Llama, bundles, hub
from llcuda_ffi.devices.placement import library_for

from .support.loopback import Loopback
from .support.server_process import SLOTS, Server
from .support.tiny_model import make_tiny_llama

# pytest --hypothesis-profile=long: many more examples, other ones each time
settings.register_profile("long", max_examples=50_000)

PROCESSES = 4  # of the suite at most: each loads models of its own


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many processes as cores, up to four."""
    return min(len(os.sched_getaffinity(0)), PROCESSES)


def pytest_configure(config: pytest.Config) -> None:
    """Each process has its share of the cores: the threads of two libraries on one core wait for each other."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        cores = sorted(os.sched_getaffinity(0))
        own, count = int(worker["workerid"].removeprefix("gw")), int(worker["workercount"])
        os.sched_setaffinity(0, cores[own::count])


@pytest.fixture(scope="session")
def trained() -> Path:
    """The real small model, from the user's cache or fetched once: for what takes a real vocabulary or real text."""
    return hub.resolve("smollm2-135m", progress=False)


@pytest.fixture(scope="session")
def smollm2(trained: Path) -> Path:
    """The same; in folders whose subject is not the model, a tiny one (see their conftest.py)."""
    return trained


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of random weights with a small vocabulary and room for 8,192 tokens."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    make_tiny_llama(path, {"llama.context_length": 8192})
    return path


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[Llama]:
    """Four requests at once, 512 tokens each; files that need another one have their own."""
    with Llama(smollm2, n_ctx=512, n_parallel=4) as llm:
        yield llm


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real embedding model in F16: fetched and converted once into the user's cache.

    The libraries are loaded first, those for a Llama: an Embedder would load the ones that read F16 faster.
    """
    library_for("auto")
    return hub.resolve("all-minilm-l6-v2", progress=False)


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Iterator[Embedder]:
    """It, loaded, for the tests that only encode."""
    with Embedder(minilm) as made:
        yield made


@pytest.fixture(scope="session")
def bundle() -> bundles.InstalledBundle:
    """The bundle that the environment asks for, by default the default one, installed once."""
    return bundles.ensure(progress=False)


@pytest.fixture(scope="session")
def bundle_b7698() -> bundles.InstalledBundle:
    """The bundle of January 2026, installed once."""
    return bundles.ensure("b7698-cpu", progress=False)


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    """A server on 127.0.0.1."""
    server = Loopback()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own; the network switches are off."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLCUDA_FFI_CACHE", str(folder))
    for name in ("LLCUDA_FFI_OFFLINE", "LLCUDA_FFI_MIRROR", "LLCUDA_FFI_BUNDLE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def server(smollm2: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 and MiniLM; at the end it must stop by itself, with status 0 and no error in its log."""
    log = tmp_path_factory.mktemp("server") / "log"
    options = ("--embedding-model", minilm, "--alias", "smol", "--parallel", SLOTS, "-c", 512, "--max-queue", 32)
    server = Server(log, smollm2, *options)
    yield server
    assert server.stop() == 0
    assert "Traceback" not in log.read_text(), log.read_text()
