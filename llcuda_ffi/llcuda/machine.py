"""What llcuda told about the machine: GPU, memory, how many layers fit."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.placement import Device
from ..devices.placement import Room, fit
from ..gguf import GGUFReader
from ..hardware import gpu
from ..hardware.cpu import usable_cores
from ..hardware.memory import free_system_memory
from ..hardware.platform import hosted
from ..hub.references import models_folder
from ..params import INT32_MAX, integer, items, number

GB = 1 << 30

# one folder, some, or None
Folders = Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None


def detect_platform() -> str:
    """ "local", "colab" or "kaggle"."""
    return hosted()


def check_cuda_available() -> bool:
    """Whether this process sees an NVIDIA GPU."""
    return bool(gpu.survey().gpus)


def get_cuda_device_info() -> dict[str, Any] | None:
    """The GPUs and the driver, or None where there is no GPU (`llcuda-ffi doctor` says why)."""
    report = gpu.survey()
    if not report.gpus:
        return None
    return {
        "driver_version": report.driver,
        "cuda_version": ".".join(map(str, report.cuda)) if report.cuda else None,
        "gpus": [
            {
                "index": one.index,
                "name": one.name,
                "compute_capability": f"{one.compute[0]}.{one.compute[1]}",
                "memory_total_gb": one.memory_total / GB,
                "memory_free_gb": one.memory_free / GB,
            }
            for one in report.gpus
        ],
    }


def check_gpu_compatibility(min_compute_cap: float = 5.0) -> dict[str, Any]:
    """Whether a GPU has the compute capability asked for, which one, and why not."""
    least = number("min_compute_cap", min_compute_cap)
    report = gpu.survey()
    if not report.gpus:
        return {
            "compatible": False, "compute_capability": None, "gpu_name": None, "platform": hosted(),
            "reason": report.reason,
        }  # fmt: skip
    best = max(report.gpus, key=lambda one: one.compute)
    capability = best.compute[0] + best.compute[1] / 10
    good = capability >= least
    return {
        "compatible": good,
        "compute_capability": capability,
        "gpu_name": best.name,
        "platform": hosted(),
        "reason": None if good else f"{best.name} has compute capability {capability}, below {least:g}",
    }


def get_recommended_gpu_layers(model_size_gb: float, vram_gb: float, n_layers: int = 32) -> int:
    """Layers that fit, by sizes alone: a fifth of the memory is left to the KV cache and the compute buffers.

    With the file at hand, `auto_configure_for_model` is exact.
    """
    size = number("model_size_gb", model_size_gb, 1e-6)
    layers = integer("n_layers", n_layers, 0, INT32_MAX)
    return min(layers, int(layers * number("vram_gb", vram_gb, 0.0) * 0.8 / size))


def auto_configure_for_model(
    model_path: str | os.PathLike[str], vram_gb: float | None = None, ctx_size: int | None = None, n_parallel: int = 1
) -> dict[str, Any]:
    """Settings for a model: from its real layers, tensors and KV cache, and the GPU's free memory.

    Args:
        vram_gb: GiB of GPU memory to plan with; None asks the GPUs.

    Returns:
        gpu_layers, ctx_size, batch_size, ubatch_size, n_parallel, n_layers, and the estimate in words.
    """
    path = Path(model_path)
    parallel = integer("n_parallel", n_parallel, 1, 256)
    with GGUFReader(path) as reader:
        arch = reader.architecture
        layers = int(reader.metadata.get(f"{arch}.block_count", 0))
        trained = int(reader.metadata.get(f"{arch}.context_length", 4096))
    length = min(trained, 4096) if ctx_size is None else integer("ctx_size", ctx_size, 1, INT32_MAX)
    free = [one.memory_free for one in gpu.survey().gpus] if vram_gb is None else [_bytes(vram_gb)]
    chosen, note = 0, "no GPU: all layers on the CPU"
    if free:
        targets = [Device(f"GPU {i}", "", "gpu", size, size) for i, size in enumerate(free)]
        found = fit(path, targets, Room(length * parallel))
        # libllama counts the output as one layer more
        chosen = layers + 1 if found.n_gpu_layers is None else found.n_gpu_layers
        note = found.note
    return {
        "gpu_layers": chosen,
        "ctx_size": length,
        "batch_size": 512,
        "ubatch_size": 512,
        "n_parallel": parallel,
        "n_layers": layers,
        "reason": note,
    }


def find_gguf_models(directories: Folders = None) -> list[Path]:
    """GGUF files in folders and below them; by default in the cache of downloaded models and the current folder."""
    if isinstance(directories, (str, os.PathLike)):
        directories = [directories]  # one folder, not its letters
    folders = (
        [models_folder(), Path.cwd()] if directories is None else [Path(d) for d in items("directories", directories)]
    )
    found: dict[Path, None] = {}
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.rglob("*.gguf")):
                if path.is_file():
                    found[path] = None
    return list(found)


def _bytes(gigabytes: float) -> int:
    return int(number("vram_gb", gigabytes, 0.0, 1e9) * GB)


def print_system_info() -> None:
    """Print what this machine is."""
    report = gpu.survey()
    print(f"Python {platform.python_version()} on {sys.platform} ({hosted()}), {usable_cores()} usable cores")
    print(f"free memory {free_system_memory() / GB:.1f} GiB")
    if not report.gpus:
        print(f"no GPU: {report.reason}")
    for one in report.gpus:
        memory = f"{one.memory_free / GB:.1f} of {one.memory_total / GB:.1f} GiB free"
        print(f"GPU {one.index}: {one.name}, sm_{one.arch}, {memory}")
