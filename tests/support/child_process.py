"""Runs Python code in a child process: what could end the process must not end pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def run_child(code: str, *arguments: object, timeout: float = 60, **environment: str) -> str:
    """What the child printed. A signal, an uncaught exception or a hang fails the test with the child's words."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout
