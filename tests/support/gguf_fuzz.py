"""Mutated model files and the process that opens them: the same seed gives the same file."""

from __future__ import annotations

import copy
import json
import os
import random
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import IO

from .gguf_mutations import mutate
from .tiny_architectures import TINY

LONGEST = 20.0  # seconds that a file may take
ROOT = Path(__file__).resolve().parents[2]
BASES = {name: make() for name, make in TINY.items()}
# the kinds of model that people run most come up more often
NAMES = [*BASES, "llama", "llama", "llama-q8", "bert", "qwen2", "gemma3"]


class Worker:
    """A process that loads files, started again when it dies."""

    def __init__(self, folder: Path, bundle: str, *, trial: bool = False) -> None:
        self.path = folder / "mutated.gguf"
        self.command = [sys.executable, "-m", "tests.support.gguf_worker", *(["--trial"] if trial else [])]
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
