"""Mutated model files, loaded and run in a process of their own: an exception or a working model, never a signal.

More examples: `pytest tests/gguf/test_fuzz.py --hypothesis-profile=long`. A failing seed is printed and reproduces the
file: `mutated(seed)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llcuda_ffi.bundles import InstalledBundle

from ..support.gguf_fuzz import BASES, Worker, mutated

PROFILE = settings.default.max_examples if settings.default is not None else 100
LONG = PROFILE > 100  # asked for by option


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, bundle: InstalledBundle) -> Iterator[Worker]:
    """Runs the default bundle."""
    found = Worker(tmp_path_factory.mktemp("fuzz"), bundle.name)
    yield found
    found.close()


@pytest.fixture(scope="module")
def worker_b7698(tmp_path_factory: pytest.TempPathFactory, bundle_b7698: InstalledBundle) -> Iterator[Worker]:
    """Runs the bundle of January 2026."""
    found = Worker(tmp_path_factory.mktemp("fuzz"), bundle_b7698.name)
    yield found
    found.close()


def fuzz(worker: Worker, examples: int) -> None:
    """Feed mutated files to the worker."""

    # the usual run repeats its files and so fails only for what was changed; the long one looks for new ones
    @settings(
        max_examples=PROFILE if LONG else examples,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**48))
    def run(seed: int) -> None:
        kind, detail = worker.ask(mutated(seed))
        assert kind in ("ok", "refused"), f"seed {seed}: {kind}: {detail}"

    run()
    # the test means something only while both happen
    assert worker.counts["ok"] > examples // 20
    assert worker.counts["refused"] > examples // 20


def test_the_models_that_are_mutated_run(worker: Worker) -> None:
    """Each kind of tiny model loads and computes as it is."""
    for name, base in BASES.items():
        assert worker.ask(base.bytes())[0] == "ok", name


def test_the_models_that_are_mutated_run_on_b7698(worker_b7698: Worker) -> None:
    """And on the older bundle."""
    for name, base in BASES.items():
        assert worker_b7698.ask(base.bytes())[0] == "ok", name


@pytest.mark.timeout(36_000 if LONG else 300)
def test_mutated_files_never_kill(worker: Worker) -> None:
    """600 mutated files on the default bundle."""
    fuzz(worker, 600)


@pytest.mark.timeout(36_000 if LONG else 300)
def test_mutated_files_never_kill_b7698(worker_b7698: Worker) -> None:
    """200 mutated files on the bundle of January 2026, whose loader asserts more."""
    fuzz(worker_b7698, 200)
