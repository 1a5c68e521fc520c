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
from ..errors import InvalidRequest
from ..gguf import GGUFReader
from ..hardware import gpu
from ..hardware.cpu import usable_cores
from ..hardware.memory import free_system_memory
from ..hardware.platform import hosted
from ..hub.references import models_folder

GB = 1 << 30


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
    report = gpu.survey()
    if not report.gpus:
        return {
            "compatible": False, "compute_capability": None, "gpu_name": None, "platform": hosted(),
            "reason": report.reason,
        }  # fmt: skip
    best = max(report.gpus, key=lambda one: one.compute)
    capability = best.compute[0] + best.compute[1] / 10
    good = capability >= min_compute_cap
    return {
        "compatible": good,
        "compute_capability": capability,
        "gpu_name": best.name,
        "platform": hosted(),
        "reason": None if good else f"{best.name} has compute capability {capability}, below {min_compute_cap}",
    }


def get_recommended_gpu_layers(model_size_gb: float, vram_gb: float, n_layers: int = 32) -> int:
    """Layers that fit, by sizes alone: a fifth of the memory is left to the KV cache and the compute buffers.

    With the file at hand, `auto_configure_for_model` is exact.
    """
    if model_size_gb <= 0 or vram_gb < 0:
        raise InvalidRequest("model_size_gb must be above 0, vram_gb not below 0")
    return min(n_layers, int(n_layers * vram_gb * 0.8 / model_size_gb))


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
    with GGUFReader(path) as reader:
        arch = reader.architecture
        layers = int(reader.metadata.get(f"{arch}.block_count", 0))
        trained = int(reader.metadata.get(f"{arch}.context_length", 4096))
    length = ctx_size or min(trained, 4096)
    free = [one.memory_free for one in gpu.survey().gpus] if vram_gb is None else [int(vram_gb * GB)]
    chosen, note = 0, "no GPU: all layers on the CPU"
    if free:
        targets = [Device(f"GPU {i}", "", "gpu", size, size) for i, size in enumerate(free)]
        found = fit(path, targets, Room(length * n_parallel))
        # libllama counts the output as one layer more
        chosen = layers + 1 if found.n_gpu_layers is None else found.n_gpu_layers
        note = found.note
    return {
        "gpu_layers": chosen,
        "ctx_size": length,
        "batch_size": 512,
        "ubatch_size": 512,
        "n_parallel": n_parallel,
        "n_layers": layers,
        "reason": note,
    }


def find_gguf_models(directories: Sequence[str | os.PathLike[str]] | None = None) -> list[Path]:
    """GGUF files in folders and below them; by default in the cache of downloaded models and the current folder."""
    folders = [Path(d) for d in directories] if directories is not None else [models_folder(), Path.cwd()]
    found: dict[Path, None] = {}
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.rglob("*.gguf")):
                if path.is_file():
                    found[path] = None
    return list(found)


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
