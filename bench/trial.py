"""What it costs to try a model file in a child process before it is opened (docs/reliability.md).

    python bench/trial.py [-m smollm2-135m] [-r 5] [--json bench/results/trial.json]

A tiny model, and a copy of the one given, both as files that were never seen: the first trial of a process, which
starts the child, the trials after it, and the look at a file that was seen before.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import report

from llcuda_ffi.hub.references import resolve
from llcuda_ffi.native.load import load

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.tiny_model import make_tiny_llama

ROOT = Path(__file__).resolve().parent.parent
# arguments: files; prints the seconds of a trial of each
TRIED = """
import json, sys
from time import perf_counter
from pathlib import Path
from llcuda_ffi.core.trial import tried
from llcuda_ffi.native.load import load
from llcuda_ffi.params import ModelParams
load()
seconds = []
for file in sys.argv[1:]:
    began = perf_counter()
    with tried([Path(file)], ModelParams()):
        pass
    seconds.append(perf_counter() - began)
print(json.dumps(seconds))
"""


def main() -> None:
    p = report.parser(__doc__, rounds=5)
    a = p.parse_args()
    model = Path(resolve(a.model))
    out = report.header("trial", load(), {"model": model.name, "mb": round(model.stat().st_size / 1e6)})
    found: dict[str, list[float]] = {"first": [], "tiny": [], "model": [], "seen": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = folder / "model.gguf"
        shutil.copyfile(model, copy)
        for i in range(a.rounds):
            tiny = [folder / f"{i}-{n}.gguf" for n in range(2)]
            for n, path in enumerate(tiny):
                make_tiny_llama(path, {"general.name": f"{os.getpid()} {i} {n}"})
            copy.touch()  # a file of this size is known by its time of change, among others
            command = [sys.executable, "-c", TRIED, *map(str, tiny), str(copy), str(copy)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            for values, seconds in zip(found.values(), json.loads(done.stdout), strict=True):
                values.append(seconds * 1e3)
        out["tiny_kb"] = round(tiny[0].stat().st_size / 1e3)
    words = ("first trial of a process, tiny model", "tiny model", model.name, "a file seen before")
    out["ms"] = {key: report.line(what, values, "ms") for what, (key, values) in zip(words, found.items(), strict=True)}
    report.write(out, a.json)


if __name__ == "__main__":
    main()
