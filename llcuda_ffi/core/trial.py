"""A model file that was not seen before is opened by a child process first: what would end this process ends the child.

The child (trial_process.py) loads libllama once and forks for each file; it computes on the CPU. What it found out is
kept in the cache by what the file is, the bundle and the settings, so that each file is tried once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..bundles import InstalledBundle, ensure
from ..child_process import after_fork, end_child, python_command
from ..errors import InvalidModelFile
from ..native.load import loaded
from ..params import ROPE_NUMBERS, ContextParams, ModelParams
from .trial_verdicts import Verdicts

SECONDS = 30.0  # and one more for each 100 MB, or 10 MB of a projector, which computes
_HEAD = 1 << 20
_CONTEXT_CLASS = (
    "pooling_type", "attention_type", "flash_attn_type", "type_k", "type_v", "embeddings", "swa_full", "kv_unified",
    "rope_scaling_type", *ROPE_NUMBERS, "yarn_orig_ctx", "n_rs_seq", "mtp",
)  # fmt: skip
_logger = logging.getLogger(__name__)
_useless: set[Path] = set()  # bundles whose child ends with sound models too


@contextmanager
def tried(
    parts: Sequence[Path],
    params: ModelParams,
    bundle: InstalledBundle | None = None,
    *,
    adapter: Path | None = None,
    projector: Path | None = None,
    context: ContextParams | None = None,
) -> Iterator[None]:
    """Have the files tried while the block runs, which may load the libraries but must not open the files.

    Args:
        parts: the model's files.
        params: what they will be loaded with; params.trial=False tries nothing.
        adapter, projector: a file to open on top of the model.
        context: what a context will be made with; None, or one like the default, is tried with the model.

    Raises:
        InvalidModelFile: the child was ended by the file; the message has libllama's last words.
    """
    kind = {} if context is None else context_class(context)
    library = loaded()
    if (
        not params.trial
        or not _possible()
        or (library and library.bundle.path in _useless)
        or (context is not None and not kind)
    ):
        yield
        return
    files = [*parts, *(file for file in (adapter, projector) if file is not None)]
    try:
        size, facts = sum(path.stat().st_size for path in files), [_identity(path) for path in files]
    except OSError:  # a file is gone meanwhile: the load itself says so
        yield
        return
    used = library.bundle if library is not None else bundle or ensure()
    settings: dict[str, Any] = {
        "parts": [str(part.absolute()) for part in parts],
        "kv_overrides": dict(params.kv_overrides),
        "vocab_only": params.vocab_only,
        "use_extra_bufts": params.use_extra_bufts is not False,
        "context": kind,
        "adapter": None if adapter is None else str(adapter.absolute()),
        "projector": None if projector is None else str(projector.absolute()),
    }
    if params.load_mtp:
        settings["load_mtp"] = True
    if projector is not None:
        settings["encodes"] = True  # verdicts of before did not
    _child.reap()
    key = _key(facts, settings, used)
    verdicts = Verdicts()
    verdict = verdicts.get(key)
    if verdict is not None:
        _raise_if_bad(verdict, files)
        yield
        return
    seconds = SECONDS + size / 1e8 + (0 if projector is None else projector.stat().st_size / 1e7)
    with _child.asked(used, {**settings, "seconds": seconds}) as answer:
        yield
    if answer and not answer["tried"]:
        _useless.add(used.path)  # said once, and not tried again by this process
        _logger.warning(
            "%s was not tried: the child process of bundle %s ends with a sound model too (%s: %s)",
            files[-1], used.name, _how(answer["status"]), answer["words"] or "no words",
        )  # fmt: skip
    elif answer:
        if -answer["status"] not in (signal.SIGALRM, signal.SIGKILL, signal.SIGTERM):  # else it was the machine's doing
            verdicts.put(key, answer)
        _raise_if_bad(answer, files)


def context_class(params: ContextParams) -> dict[str, int | float]:
    """Those settings of a context that decide how libllama builds its graphs, where they differ from the default."""
    default = ContextParams()
    several = {"n_seq_max": 2} if params.n_seq_max > 1 else {}
    return several | {
        name: value
        for name in _CONTEXT_CLASS
        if (value := getattr(params, name)) is not None and value != getattr(default, name)
    }


def _possible() -> bool:
    """Whether a child can be made: only Linux forks safely with libraries loaded; a frozen program is no Python."""
    return sys.platform == "linux" and bool(sys.executable) and not getattr(sys, "frozen", False)


def _raise_if_bad(verdict: Mapping[str, Any], files: Sequence[Path]) -> None:
    status = verdict["status"]
    if not status:
        return
    what = files[-1]
    if status == -signal.SIGALRM:
        raise InvalidModelFile(f"{what} was not opened within the time for it, in a process of its own")
    said = verdict.get("words") or "nothing"
    raise InvalidModelFile(
        f"{what} ended the process that tried it ({_how(status)}): libllama's last words are: {said}. "
        "trial=False loads it all the same"
    )


def _how(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _key(facts: Sequence[object], settings: Mapping[str, Any], bundle: InstalledBundle) -> str:
    """What a verdict holds for: the files by content or identity, the libraries, the settings."""
    rest = {name: value for name, value in settings.items() if name not in ("parts", "adapter", "projector")}
    text = json.dumps([facts, rest, sorted(bundle.libraries.items())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(path: Path) -> list[object]:
    """A small file's content; of a larger one its head, and what changes when it is written again."""
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        head = hashlib.sha256(file.read(_HEAD)).hexdigest()
    if state.st_size <= _HEAD:
        return [state.st_size, head]
    return [state.st_size, state.st_mtime_ns, state.st_ino, state.st_dev, head]


class _Child:
    """The process that tries files, one after the other; started when needed, gone when nobody asked for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._bundle: Path | None = None
        self._owner = 0
        self._end: weakref.finalize[..., Any] | None = None
        after_fork(self._forked)

    def _forked(self) -> None:
        if self._end is not None:
            self._end.detach()
        if self._process is not None:
            self._process.returncode = 0  # the parent's child, not ours: never waited for
        self._lock, self._process, self._end = threading.Lock(), None, None

    @contextmanager
    def asked(self, bundle: InstalledBundle, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a job, run the block, then fill the dict with the answer; empty where no child could be had."""
        answer: dict[str, Any] = {}
        with self._lock:
            sent = self._send(bundle, job)
            try:
                yield answer
                answer.update(self._receive(job["seconds"]) if sent else {})
                if not answer and self._send(bundle, job):  # it ended of itself just when it was asked
                    answer.update(self._receive(job["seconds"]))
            except BaseException:
                self._close()  # its answer would be taken for another job's
                raise
        if not answer:
            _logger.warning("%s was not tried: no child process could be had", job["parts"][0])

    def reap(self) -> None:
        """Leave nothing of a process that ended because nobody asked it for a while."""
        process = self._process
        if process is not None and process.poll() is not None and self._lock.acquire(blocking=False):
            try:
                if self._process is process:
                    self._close()
            finally:
                self._lock.release()

    def _send(self, bundle: InstalledBundle, job: Mapping[str, Any]) -> bool:
        if self._process is not None and (self._bundle != bundle.path or self._process.poll() is not None):
            self._close()
        try:
            if self._process is None:
                self._start(bundle)
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self._close()
            return False
        return True

    def _start(self, bundle: InstalledBundle) -> None:
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",  # a process with threads must not fork
            "CUDA_VISIBLE_DEVICES": "",
            "GGML_NO_BACKTRACE": "1",
        }
        self._process = subprocess.Popen(
            python_command(f"{__package__}.trial_process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C is for us
        )
        self._bundle = bundle.path
        self._end = weakref.finalize(self, end_child, self._process, os.getpid())
        libraries = {name: sha for name, sha in bundle.libraries.items() if not name.startswith("libggml-cuda")}
        cpu = dataclasses.replace(bundle, backend="cpu", libraries=libraries)
        assert self._process.stdin is not None
        start = {**dataclasses.asdict(cpu), "path": str(bundle.path)}
        self._process.stdin.write(json.dumps(start).encode() + b"\n")

    def _receive(self, seconds: float) -> dict[str, Any]:
        process = self._process
        if process is None:
            return {}
        assert process.stdout is not None
        timer = threading.Timer(seconds + 30.0, process.kill)  # the child has a limit of its own
        timer.daemon = True
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self._close()
            return {}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _close(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None


_child = _Child()
