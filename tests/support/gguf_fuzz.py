"""Mutated model files and the process that opens them: the same seed gives the same file."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from llcuda_ffi.core.state import MAGIC, SavedState

from .gguf_mutations import mutate
from .tiny_architectures import TINY
from .tiny_model import TinyFile

LONGEST = 20.0  # seconds that a file may take
ROOT = Path(__file__).resolve().parents[2]
# kinds whose mutations the preflight alone sees through; others are left to the trial (tests/core/test_trial.py)
KINDS = ("bert", "gemma3", "gpt2", "llama", "llama-q8", "mamba", "mixtral", "moe", "phi3", "qwen2", "t5")
BASES = {name: TINY[name]() for name in KINDS}
# those whose states differ in what they are made of
STATE_KINDS = ("llama", "gemma3", "mamba", "lfm2", "lfm2-window", "deepseek2", "qwen35")
# the kinds of model that people run most come up more often
NAMES = [*BASES, "llama", "llama", "llama-q8", "bert", "qwen2", "gemma3"]


class Worker:
    """A process that loads files, started again when it dies."""

    def __init__(self, folder: Path, bundle: str, *options: str, longest: float = LONGEST) -> None:
        """
        Args:
            options: of tests/support/gguf_worker.py.
            longest: seconds that a file may take.
        """
        self._longest = longest
        self.path = folder / "mutated.gguf"
        self.command = [sys.executable, "-m", "tests.support.gguf_worker", *options]
        self.environment = {**os.environ, "LLCUDA_FFI_BUNDLE": bundle, "GGML_NO_BACKTRACE": "1"}
        self.said = folder / "stderr.txt"
        self.process: subprocess.Popen[str] | None = None
        self.counts: Counter[str] = Counter()

    def ask(self, raw: bytes) -> tuple[str, str]:
        """What became of a file with these bytes: ("ok" | "refused" | "bug" | "died" | "hung", detail)."""
        self.path.write_bytes(raw)
        if self.process is None:
            with self.said.open("w") as said:
                self.process = subprocess.Popen(
                    self.command, cwd=ROOT, env=self.environment, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                )  # fmt: skip
            self._pipes()[1].readline()  # it has started
        stdin, stdout = self._pipes()
        try:
            stdin.write(f"{self.path}\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it died after its last answer: the empty line read below tells
        ready, _, _ = select.select([stdout], [], [], self._longest)
        line = stdout.readline() if ready else ""
        if line:
            kind, detail = json.loads(line)
        elif ready:
            said = self.said.read_text(errors="replace")[-800:]
            kind, detail = "died", f"exit code {self.process.wait()}: {said}"
        else:
            kind, detail = "hung", f"no answer in {self._longest} s"
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


def mutated_adapter(seed: int) -> bytes:
    """The LoRA adapter of a seed, for tiny_llama."""
    choice, rng = random.Random(seed), np.random.default_rng(seed)
    metadata = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": 2.0,
    }
    file, base = TinyFile(dict(metadata)), BASES["llama"]
    for name in choice.sample(sorted(base.tensors), 4):
        ne = base.tensors[name][0]
        if len(ne) == 2:
            file.add(f"{name}.lora_a", (ne[0], 2), rng)
            file.add(f"{name}.lora_b", (2, ne[1]), rng)
    return mutate(file, choice) if file.tensors else file.bytes()


def mutated_state(seed: int, sound: Sequence[SavedState]) -> bytes:
    """One of the states with some bytes of libllama's part changed, cut or doubled, or of what stands before it, under
    a hash that is right."""
    choice = random.Random(seed)
    state = choice.choice(sound)
    if choice.random() < 0.25:
        raw = _changed(bytearray(state.to_bytes()[len(MAGIC) + 32 :]), choice)
        return MAGIC + hashlib.sha256(raw).digest() + raw
    return dataclasses.replace(state, data=_changed(bytearray(state.data), choice)).to_bytes()


def _changed(data: bytearray, choice: random.Random) -> bytes:
    for _ in range(choice.choice([1, 1, 2, 4, 16])):
        if not data:
            break
        at = choice.randrange(min(len(data), choice.choice([64, 256, len(data)])))
        pick = choice.randrange(4)
        if pick == 0:
            data[at] = choice.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif pick == 1:
            data[at : at + 4] = choice.choice([0, 1, 2, 0xFFFFFFFF, 0x7FFFFFFF, 1 << 20]).to_bytes(4, "little")
        elif pick == 2:
            del data[at:]
            data += bytes(choice.choice([0, 1, 64]))
        else:
            data[at:at] = data[at : at + choice.choice([1, 4, 64])]
    return bytes(data)


def mutated(seed: int) -> bytes:
    """The model file of a seed."""
    choice = random.Random(seed)
    return mutate(copy.deepcopy(BASES[choice.choice(NAMES)]), choice)
