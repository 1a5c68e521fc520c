"""`llcuda-ffi doctor`: what this machine has, what runs on it, what is missing and the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from .. import bundles
from ..bundles import own, pins, select, store
from ..child_process import python_command
from ..errors import BundleNotFound, LlcudaError
from ..fetch.cache import cache_root, offline
from ..hardware import cuda_libraries
from ..hardware.cpu import cpu_features, cpu_name, usable_cores
from ..hardware.gpu import survey
from ..hardware.memory import free_system_memory
from ..hardware.platform import glibc_version, hosted
from .options import examples


@click.command(epilog=examples("doctor", "doctor --json"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Say what this machine has and what is missing; exits with 1 when something must be mended."""
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _print(report)
    sys.exit(1 if report["problems"] else 0)


def examine() -> dict[str, Any]:
    """Everything the doctor says, as JSON."""
    gpus = survey()
    glibc = glibc_version()
    runtimes = cuda_libraries.complete()
    table = select.judge_all(gpus, select.cuda_pins(), glibc=glibc, runtimes=runtimes)
    problems: list[dict[str, str]] = []
    report: dict[str, Any] = {
        "llcuda_ffi": _version("llcuda-ffi"),
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "hosted": hosted(),
        "glibc": ".".join(map(str, glibc)) if glibc else None,
        "cpu": {"name": cpu_name(), "usable_cores": usable_cores(), "features": cpu_features()},
        "memory_free": free_system_memory(),
        "gpu": {
            "driver": gpus.driver,
            "cuda": ".".join(map(str, gpus.cuda)) if gpus.cuda else None,
            "reason": gpus.reason,
            "gpus": [
                {
                    "index": g.index,
                    "name": g.name,
                    "compute_capability": ".".join(map(str, g.compute)),
                    "memory_total": g.memory_total,
                    "memory_free": g.memory_free,
                }
                for g in gpus.gpus
            ],
            "runtime_libraries": {str(major): _runtime(major) for major in cuda_libraries.COMMANDS},
            "verdicts": [{"gpu": v.gpu.index, "bundle": v.bundle, "how": v.how, "why": v.why} for v in table],
        },
        "bundle": _bundle(problems),
        "cache": _cache(problems),
        "switches": {name: value for name, value in sorted(os.environ.items()) if _ours(name)},
        "problems": problems,
    }
    if gpus.gpus and not any(v.how != select.IMPOSSIBLE for v in table) and not report["bundle"].get("own"):
        _gpu_problem(table, runtimes, problems)
    return report


def _gpu_problem(table: list[select.Verdict], runtimes: tuple[int, ...], problems: list[dict[str, str]]) -> None:
    """No bundle runs on the GPU: is it for lack of runtime libraries?"""
    for major, mend in cuda_libraries.COMMANDS.items():
        if major not in runtimes and any(f"CUDA {major}'s runtime libraries" in v.why for v in table):
            problems.append(
                {"what": f"the GPU is not used: CUDA {major}'s runtime libraries are missing", "mend": mend}
            )
            return
    problems.append({"what": "the GPU is not used: no bundle runs on it (see the table)", "mend": "update the driver"})


def _bundle(problems: list[dict[str, str]]) -> dict[str, Any]:
    """The bundle in use, and whether it loads."""
    found: dict[str, Any] = {"installed": [b.name for b in bundles.installed()]}
    name = bundles.selected()
    try:
        name = name or select.choose_here("auto").bundle
        found["name"] = name
        found["own"] = own.is_path(name) or own.named(name) is not None
        if not found["own"]:
            pin = pins.get(name)
            if unsupported := pin.why_unsupported():
                found["state"] = "unusable"
                problems.append(
                    {"what": f"bundle {name} cannot run here: {unsupported}", "mend": "see docs/bundles.md"}
                )
                return found
            there = store.find(pin)
            if there is None:
                found["state"] = "not installed"
                if offline():
                    problems.append(
                        {
                            "what": f"bundle {name} is not installed and LLCUDA_FFI_OFFLINE is set",
                            "mend": f"LLCUDA_FFI_OFFLINE=0 llcuda-ffi bundle install {name}",
                        }
                    )
                return found
            found["path"] = str(there.path)
            there.verify()
    except LlcudaError as error:
        found["state"] = "broken"
        problems.append({"what": str(error), "mend": _mend(name, gone=isinstance(error, BundleNotFound))})
        return found
    done = subprocess.run(  # a library that cannot be loaded must not end the doctor
        python_command("llcuda_ffi.native.try_load"),
        check=False,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LLCUDA_FFI_BUNDLE": name},
    )
    try:
        _, found["profile"], found["cpu_variant"], found["backends"] = json.loads(done.stdout.splitlines()[-1])
        found["state"] = "works"
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()
        found["state"] = "does not load"
        problems.append(
            {
                "what": f"bundle {name} does not load: {said[-1] if said else f'exit status {done.returncode}'}",
                "mend": _mend(name, gone=found["own"]),
            }
        )
    return found


def _mend(name: str | None, *, gone: bool) -> str:
    """The command that puts a bundle back; the way to another one where it was chosen and cannot be had again."""
    if not gone:
        return f"llcuda-ffi bundle prune {name} && llcuda-ffi bundle install {name}"
    chosen = os.environ.get("LLCUDA_FFI_BUNDLE", "").strip()
    return "unset LLCUDA_FFI_BUNDLE" if chosen else "llcuda-ffi bundle use --auto"


def _cache(problems: list[dict[str, str]]) -> dict[str, Any]:
    root = cache_root()
    place = next((p for p in (root, *root.parents) if os.path.exists(p)), Path("/"))
    writable = place.is_dir() and os.access(place, os.W_OK)
    if not writable:
        problems.append(
            {"what": f"the cache {root} cannot be written", "mend": "set LLCUDA_FFI_CACHE to a folder of yours"}
        )
    found: dict[str, Any] = {"path": str(root), "writable": writable}
    for kind in ("bundles", "models"):
        files = [p for p in (root / kind).rglob("*") if p.is_file()] if os.path.isdir(root / kind) else []
        found[kind] = {"files": len(files), "bytes": sum(p.stat().st_size for p in files)}
    jit = Path(os.environ.get("CUDA_CACHE_PATH") or os.path.expanduser("~/.nv/ComputeCache"))
    if os.path.isdir(jit):
        found["kernels"] = {"path": str(jit), "bytes": sum(p.stat().st_size for p in jit.rglob("*") if p.is_file())}
    return found


def _runtime(major: int) -> dict[str, Any]:
    found = cuda_libraries.find(cuda_libraries.sonames(major))
    return {"origin": found.origin, "missing": list(found.missing), "mend": cuda_libraries.COMMANDS[major]}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        from .. import __version__

        return __version__


def _ours(name: str) -> bool:
    return name.startswith(("LLCUDA_FFI_", "GGML_", "CUDA_VISIBLE", "CUDA_CACHE"))


def _print(report: dict[str, Any]) -> None:
    cpu, gpu, bundle, cache = report["cpu"], report["gpu"], report["bundle"], report["cache"]

    def row(label: str, text: str) -> None:
        click.echo(f"{label:<10}{text}")

    row(
        "package",
        f"llcuda-ffi {report['llcuda_ffi']}, Python {report['python']}, {report['platform']}, {report['hosted']}",
    )
    row("glibc", report["glibc"] or "another C library")
    row("cpu", f"{cpu['name']}: {cpu['usable_cores']} usable cores; {' '.join(cpu['features'])}")
    row("memory", f"{report['memory_free'] / 2**30:.1f} GiB free")
    if gpu["gpus"]:
        row("driver", f"{gpu['driver']}, CUDA up to {gpu['cuda']}")
        for g in gpu["gpus"]:
            memory = f"{g['memory_free'] / 2**30:.1f} of {g['memory_total'] / 2**30:.1f} GiB free"
            row(f"gpu {g['index']}", f"{g['name']}, compute capability {g['compute_capability']}, {memory}")
            for v in gpu["verdicts"]:
                if v["gpu"] == g["index"]:
                    row("", f"{v['bundle']:<16} {v['how']}: {v['why']}")
        for major, there in gpu["runtime_libraries"].items():
            missing = f"missing: {', '.join(there['missing'])} ({there['mend']})"
            row(f"cuda {major}", missing if there["missing"] else f"runtime libraries in {there['origin']}")
    else:
        row("gpu", f"none: {gpu['reason']}")
    details = [bundle.get("state", "")]
    if "profile" in bundle:
        details.append(f"ABI {bundle['profile']}")
        details.append("backends " + ", ".join(bundle["backends"]))
        if bundle["cpu_variant"]:
            details.append(f"CPU variant {bundle['cpu_variant']}")
    if bundle.get("state") == "not installed":
        details.append("fetched on first use, or by `llcuda-ffi bundle install`")
    row("bundle", f"{bundle.get('name', '?')}: {', '.join(details)}")
    sizes = ", ".join(f"{kind} {cache[kind]['bytes'] / 2**20:.0f} MiB" for kind in ("bundles", "models"))
    row("cache", f"{cache['path']}: {sizes}")
    for name, value in report["switches"].items():
        row("switch", f"{name}={value}")
    for problem in report["problems"]:
        row("PROBLEM", problem["what"])
        row("", f"→ {problem['mend']}")
    if not report["problems"]:
        click.echo("All is well.")
