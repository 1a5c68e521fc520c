"""Mutated model files, loaded and run in a process of their own: an exception or a working model, never a signal.

More examples: `pytest tests/gguf/test_fuzz.py --hypothesis-profile=long`. A failing seed is printed and reproduces the
file: `mutated(seed)`.
"""

from __future__ import annotations

import copy
import json
import os
import random
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llcuda_ffi.bundles import InstalledBundle

from ..support.gguf_mutations import mutate
from ..support.tiny_architectures import TINY

LONGEST = 20.0  # seconds that a file may take
ROOT = Path(__file__).resolve().parents[2]
BASES = {name: make() for name, make in TINY.items()}
# the kinds of model that people run most come up more often
NAMES = [*BASES, "llama", "llama", "llama-q8", "bert", "qwen2", "gemma3"]
PROFILE = settings.default.max_examples if settings.default is not None else 100
LONG = PROFILE > 100  # asked for by option


class Worker:
    """A process that loads files, started again when it dies."""

    def __init__(self, folder: Path, bundle: str) -> None:
        self.path = folder / "mutated.gguf"
        self.environment = {**os.environ, "LLCUDA_FFI_BUNDLE": bundle, "GGML_NO_BACKTRACE": "1"}
        self.said = folder / "stderr.txt"
        self.process: subprocess.Popen[str] | None = None
        self.counts: Counter[str] = Counter()

    def ask(self, raw: bytes) -> tuple[str, str]:
        """What became of a file with these bytes: ("ok" | "refused" | "bug" | "died" | "hung", detail)."""
        self.path.write_bytes(raw)
        if self.process is None:
            with self.said.open("w") as said:
                command = [sys.executable, "-m", "tests.support.gguf_worker"]
                self.process = subprocess.Popen(
                    command, cwd=ROOT, env=self.environment, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                )  # fmt: skip
        stdin, stdout = self._pipes()
        try:
            stdin.write(f"{self.path}\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it died after its last answer: the empty line read below tells
        ready, _, _ = select.select([stdout], [], [], LONGEST)
        line = stdout.readline() if ready else ""
        if line:
            kind, detail = json.loads(line)
        elif ready:
            said = self.said.read_text(errors="replace")[-800:]
            kind, detail = "died", f"exit code {self.process.wait()}: {said}"
        else:
            kind, detail = "hung", f"no answer in {LONGEST} s"
        if not line:
            self.close()
        self.counts[kind] += 1
        return kind, str(detail)

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            stdin, stdout = self._pipes()
            self.process.kill()
            self.process.wait()
            stdout.close()
            try:
                stdin.close()
            except BrokenPipeError:
                pass  # it died with a question unread
            self.process = None


def mutated(seed: int) -> bytes:
    """The file of a seed."""
    choice = random.Random(seed)
    return mutate(copy.deepcopy(BASES[choice.choice(NAMES)]), choice)


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
    """2,000 mutated files on the default bundle."""
    fuzz(worker, 2000)


@pytest.mark.timeout(36_000 if LONG else 300)
def test_mutated_files_never_kill_b7698(worker_b7698: Worker) -> None:
    """500 mutated files on the bundle of January 2026, whose loader asserts more."""
    fuzz(worker_b7698, 500)
