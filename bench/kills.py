"""What writes files, killed at random moments, on a full disk, in a folder that cannot be written, with jumping clocks.

    python -m bench.kills [--kills 200] [--full 50] [--only NAME ...] [--seed 0]
        [--json bench/results/kills.json]

The operations are those of tests/package/test_killed.py, each in a process forked for it. After each kill (SIGKILL)
the times of all that was left are set to random ones, up to ten years back or ahead, as by a clock that jumps; what
stands under the final name must be whole, and every twentieth time a run that nobody kills must succeed. A full disk is
a tmpfs of a random part of what is needed, a folder that cannot be written the same one mounted read-only (both need
root): each must end in one exception of ours, or OSError, and the run after it, with room, must succeed. Prints the
counts as a table; exits with 1 where something broke.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from llcuda_ffi.errors import LlcudaError
from tests.package.test_killed import HEAD, LONG, OPERATIONS
from tests.support.tiny_model import make_tiny_llama

from . import report
from .tables import kill_rows

EVERY = {**OPERATIONS, **LONG}
READY, DONE = b"r", b"d"
_PYTHON_ONLY = (  # imported before the forks, none of them opens a library
    "llcuda_ffi.core.model", "llcuda_ffi.llama", "llcuda_ffi.quantization", "llcuda_ffi.gguf.writer",
    "llcuda_ffi.conversion.tensors", "llcuda_ffi.conversion.bert", "llcuda_ffi.pipelines.files",
    "llcuda_ffi.bundles.own", "llcuda_ffi.embedder", "llcuda_ffi.fetch.http", "tests.support.tiny_bert", "http.server",
)  # fmt: skip
REFUSED, BUG = 3, 4


def forked(code: str, model: Path, target: Path) -> tuple[int, int]:
    """A process that runs `code`; its pid, and where it says that it is ready and done."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = BUG
    try:
        os.close(reading)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        sys.argv = ["kills", str(model), str(target)]
        exec(compile(HEAD + code, "kills", "exec"), {"__name__": "__main__", "tell": lambda b: os.write(writing, b)})
        status = 0
    except (LlcudaError, OSError) as error:
        status = REFUSED if str(error).strip() else BUG
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def told(reading: int, wait: float) -> bytes:
    """The next word of a forked process; b"" when it ended or the time is over."""
    return os.read(reading, 1) if select.select([reading], [], [], wait)[0] else b""


def ended(pid: int, reading: int, *, kill: bool = False) -> int:
    """Its exit status; killed where that is asked for."""
    if kill:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


class Operation:
    """One that writes a file, and what became of its runs."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        work, check = map(textwrap.dedent, EVERY[name])
        self.work = f"{work}\ntell({READY!r})\nwork()\ntell({DONE!r})\n"
        self.check, self.dice, self.counts = check, random.Random(f"{name} {seed}"), Counter[str]()
        self.model, self.place = folder / "model.gguf", folder / "out"
        self.target = self.place / f"target-{name}"
        make_tiny_llama(self.model)
        self.place.mkdir()
        self.shortest, self.size = 60.0, 0

    def whole(self) -> bool:
        """Run it, and check what it wrote; how long it takes at least, and how many bytes it leaves."""
        pid, reading = forked(self.work, self.model, self.target)
        told(reading, 120)
        began = time.perf_counter()
        done = told(reading, 120) == DONE
        self.shortest = min(self.shortest, time.perf_counter() - began)
        good = ended(pid, reading) == 0 and done and self.sound()
        self.size = max(self.size, sum(f.stat().st_size for f in self.place.rglob("*") if f.is_file()))
        return good

    def sound(self) -> bool:
        """Whether what stands under the final name is whole."""
        return ended(*forked(self.check, self.model, self.target)) == 0

    def clear(self) -> None:
        """As if it had never run."""
        for path in self.place.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def killed(self, kills: int) -> None:
        """Killed at random moments, in a folder where the earlier ones left what they left."""
        for kill in range(kills):
            pid, reading = forked(self.work, self.model, self.target)
            told(reading, 120)
            over = told(reading, self.dice.uniform(0, self.shortest)) == DONE
            ended(pid, reading, kill=True)
            self.counts["killed too late" if over else "killed"] += 1
            for path in (self.place, *self.place.rglob("*")):
                jump = time.time() + self.dice.uniform(-3e8, 3e8)
                with suppress(FileNotFoundError):  # a child of it may still tidy up
                    os.utime(path, (jump, jump), follow_symlinks=False)
            if self.target.exists():
                self.counts["broken"] += not self.sound()
                if over:  # or the next run may find nothing to do
                    self.clear()
            if kill % 20 == 19:
                self.counts["failed to go on"] += not self.whole()
                self.counts["went on"] += 1
                self.clear()

    def full(self, times: int) -> None:
        """On a disk that is too small, and on one that cannot be written."""
        for i in range(times):
            shut = i % 5 == 4
            room = f"size={max(4096, int(self.dice.random() * self.size))}"
            if not _mount("-t", "tmpfs", "-o", room, "tmpfs", str(self.place)):
                self.counts["not mounted"] += 1
                return
            try:
                if shut:
                    _mount("-o", "remount,ro", str(self.place))
                pid, reading = forked(self.work, self.model, self.target)
                while told(reading, 120):
                    pass
                status = ended(pid, reading)
                kind = "read-only" if shut else "full"
                self.counts[kind] += 1
                self.counts[f"{kind}: no exception of ours"] += status not in (0, REFUSED)
                self.counts["broken"] += self.target.exists() and not self.sound()
                # more room: it goes on with what is there
                _mount("-o", f"remount,rw,size={4 * self.size + (1 << 20)}", str(self.place))
                self.counts["failed to go on"] += not self.whole()
                self.counts["went on"] += 1
            finally:
                subprocess.run(["umount", "-l", str(self.place)], check=False)


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


def main() -> None:
    """Run the operations one after the other."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=200, help="of each operation")
    p.add_argument("--full", type=int, default=50, help="disks that are too small, every fifth of them read-only")
    p.add_argument("--only", nargs="+", default=list(EVERY), choices=list(EVERY), metavar="NAME")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path, metavar="FILE", help="write the counts there too")
    given = p.parse_args()
    for module in _PYTHON_ONLY:
        importlib.import_module(module)
    out: dict[str, Any] = {
        "benchmark": "kills",
        "command": report.command(),
        "machine": report.host(),
        "operations": {},
    }
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            operation = Operation(name, Path(folder), given.seed)
            if not operation.whole():
                raise SystemExit(f"{name} does not work at all")
            operation.clear()
            operation.killed(given.kills)
            operation.clear()
            operation.full(given.full)
        n = operation.counts
        failed = n["failed to go on"] + sum(count for what, count in n.items() if "no exception" in what)
        counted = ("killed", "killed too late", "full", "read-only", "went on", "broken")
        out["operations"][name] = {what: n[what] for what in counted} | {"failed": failed}
        print(name, out["operations"][name], flush=True)
    report.write(out, given.json)
    print("\n".join(kill_rows(out["operations"])))
    raise SystemExit(any(found["broken"] or found["failed"] for found in out["operations"].values()))


if __name__ == "__main__":
    main()
