"""Running a build: configured, compiled with its progress shown, measured, and installed under its name.

CACHE/builds/NAME/ holds the source, the build folder and log.txt; NAME.lock stands beside it. A build that was stopped
goes on from there with the same options; when it is done only the log stays.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ...errors import BundleError
from ...fetch.cache import cache_root, disk_error, folder
from ...fetch.lock import entry_lock
from ...fetch.progress import Progress, note
from ...hardware.cpu import cpu_flags, usable_cores
from ...hardware.gpu import survey
from ...hardware.memory import free_system_memory
from .. import own, pins, store
from ..installed import InstalledBundle
from . import options, source, tools

JOB_MEMORY = 600 << 20  # what the largest compile job takes, and some more
DISK_NEEDED = 300 << 20
_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")


def build(
    name: str = "native",
    given: Path | None = None,
    *,
    cuda_arch: str | None = None,
    jobs: int | None = None,
    progress: bool | None = None,
) -> InstalledBundle:
    """Build llama.cpp for this machine and install it as the bundle `name`, in place of an earlier one.

    Args:
        name: What the bundle is used by.
        given: A llama.cpp source tree; default the pinned one, which is fetched.
        cuda_arch: CUDA architectures ("75;86;90"); default those of the GPUs here, if there is nvcc.
        jobs: How many files are compiled at once; default what cores and memory allow.
        progress: False for silence.

    Raises:
        BundleError: The name, the source or a tool is not usable, or compiling failed; the message names the log.
        AbiMismatch: The source is of no known ABI.
        DownloadError: Source or tools could not be fetched, or the disk is full.
    """
    pins.require_linux()
    reserved = {store.IN_USE, *(pin.name for pin in pins.all_pins())}
    if not _NAME.fullmatch(name) or name.startswith("own-") or name.endswith(".lock") or name in reserved:
        raise BundleError(
            f"{name!r} cannot be a build's name: take letters, digits, '.', '_', '-', and no known bundle's"
        )
    work = cache_root() / "builds" / name
    with entry_lock(work, f"building bundle {name}", progress):
        folder(work)
        free = shutil.disk_usage(work).free
        if free < DISK_NEEDED:
            raise BundleError(f"a build needs {DISK_NEEDED >> 20} MB in {work}, {free >> 20} are free there")
        tree = source.read(given.absolute()) if given is not None else source.pinned(work, progress)
        have = tools.find(progress)
        chosen = _options(tree, have, cuda_arch, progress)
        log = work / "log.txt"
        note(f"building {tree.what} as bundle {name}; log in {log}", progress)
        _compile(tree, have, chosen, work / "build", log, jobs or _jobs(), progress)
        bundle = _install(name, tree, work / "build", progress)
        for left in (work / "build", work / "source"):
            shutil.rmtree(left, ignore_errors=True)
        return bundle


def _jobs() -> int:
    return max(1, min(usable_cores(), free_system_memory() // JOB_MEMORY or 1))


def _options(tree: source.Source, have: tools.Tools, cuda_arch: str | None, progress: bool | None) -> list[str]:
    lacks_flag = partial(tools.lacks_flag, have)
    zig = not have.compiler
    chosen, unknown = options.processor(platform.machine(), cpu_flags(), lacks_flag, zig=zig)
    if unknown:
        note(f"the compiler is too old for {', '.join(unknown)}: built without", progress)
    chosen = [*options.common(tree, tune=not zig and not lacks_flag(options.TUNE)), *chosen]
    report = survey()
    if cuda_arch is not None or (report.gpus and have.nvcc):
        chosen += options.cuda(options.architectures(cuda_arch, report), have, report)
    elif report.gpus:
        note("there is a GPU, but no nvcc: built for the CPU only", progress)
    return chosen


def _compile(
    tree: source.Source,
    have: tools.Tools,
    chosen: Sequence[str],
    place: Path,
    log: Path,
    jobs: int,
    progress: bool | None,
) -> None:
    configure = [
        have.cmake,
        "-S",
        str(tree.path),
        "-B",
        str(place),
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={have.ninja}",
    ]
    configure += [*have.options, *(f"-D{option}" for option in chosen)]
    targets = ["llama", "mtmd", "ggml-cpu", *(["ggml-cuda"] if "GGML_CUDA=ON" in chosen else [])]
    # as the log's first line, so that another choice, or another compiler, starts anew
    first = " ".join([f"CC={' '.join(have.compiler)}", *configure])
    if log.exists() and log.read_text(encoding="utf-8", errors="replace").partition("\n")[0] != first:
        shutil.rmtree(place, ignore_errors=True)
    try:
        with log.open("w", encoding="utf-8") as out:
            out.write(first + "\n")
        with Progress("configuring", None, progress, unit="step") as shows:
            _run(configure, have, log, shows)
        with Progress("compiling", None, progress, unit="step") as shows:
            _run([have.ninja, "-C", str(place), f"-j{jobs}", *targets], have, log, shows)
    except OSError as error:
        raise disk_error(error, log) from error


def _run(command: Sequence[str], have: tools.Tools, log: Path, shows: Progress) -> None:
    """Run one program, its output into the log, its steps shown; its whole process group ends with us."""
    environment = {**have.environment, "NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C"}
    with log.open("a", encoding="utf-8", errors="replace") as out:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            cwd=log.parent,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                out.write(line)
                if step := _STEP.match(line):
                    shows.at(int(step[1]), int(step[2]))
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        finally:
            process.stdout.close()
    if status != 0:
        raise BundleError(
            f"{shows.label} failed: {_cause(log)}; the whole output is in {log}, and the next run goes on"
        )


def _cause(log: Path) -> str:
    """The line of a log that says what went wrong."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    for pattern in (r"No space left on device", r"\berror\b|\bError\b|unable to find", r"\S"):
        for number, line in enumerate(lines):
            if re.search(pattern, line):
                # cmake says what it is about in the line behind
                return " ".join(part.strip() for part in lines[number : number + (3 if "CMake Error" in line else 1)])
    return "no output"


def _install(name: str, tree: source.Source, place: Path, progress: bool | None) -> InstalledBundle:
    started = time.monotonic()
    entry = store.bundles_folder() / name
    with entry_lock(entry, f"installing bundle {name}", progress):
        bundle = own.install(name, place / "bin", entry, source=f"built from {tree.what}")
    note(
        f"installed bundle {name}: ABI profile {bundle.profile}, {bundle.backend} "
        f"(measured in {time.monotonic() - started:.1f} s); `llcuda-ffi bundle use {name}` makes it the one in use",
        progress,
    )
    return bundle
