"""The devices of the loaded backends, and where a model lies on them.

libllama has no call for the second; it says it in its log while it loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bundles import select
from ..errors import IncompatibleGpu
from ..native import cuda
from ..native.load import Library
from ..params import ModelParams, override

_MIB = 1 << 20
_KINDS = {0: "cpu", 1: "gpu", 2: "integrated gpu", 3: "accelerator", 4: "meta"}


@dataclass(frozen=True)
class Device:
    """A device that libllama can compute on.

    Attributes:
        name: as `ModelParams.devices` takes it: "CUDA0", "CPU".
        kind: "gpu", "integrated gpu", "accelerator", "cpu" or "meta".
        memory_free, memory_total: bytes.
        pci: its address, or "".
    """

    name: str
    description: str
    kind: str
    memory_free: int
    memory_total: int
    pci: str = ""


@dataclass(frozen=True)
class Placement:
    """What is where.

    Attributes:
        layers: the device of each layer, the output last; empty where the bundle does not say.
        buffers: bytes of weights by buffer ("CUDA0", "CPU_Mapped"), as far as libllama named them.
        note: what `n_gpu_layers="auto"` decided, and what `bundle tune` or the kernels there decided; or "".
    """

    layers: tuple[str, ...] = ()
    buffers: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def by_device(self) -> dict[str, int]:
        """How many layers each device has."""
        counts: dict[str, int] = {}
        for device in self.layers:
            counts[device] = counts.get(device, 0) + 1
        return counts

    @property
    def on_gpu(self) -> bool:
        """Whether any layer is on another device than the CPU."""
        return any(device != "CPU" for device in self.layers) or any(re.match(r"CUDA\d", name) for name in self.buffers)

    def __str__(self) -> str:
        layers = ", ".join(f"{n} layers on {device}" for device, n in self.by_device.items())
        buffers = ", ".join(f"{size / _MIB:.0f} MiB in {name}" for name, size in self.buffers.items())
        return "; ".join(part for part in (layers, buffers, self.note) if part)


def from_log(lines: Sequence[str], note: str = "") -> Placement:
    """What libllama said while it loaded a model."""
    layers: dict[int, str] = {}
    buffers: dict[str, int] = {}
    for line in lines:
        if match := re.search(r"layer +(\d+) assigned to device (\S+?),", line):
            layers[int(match[1])] = match[2]
        elif match := re.search(r": +(\S+) model buffer size = +([\d.]+) MiB", line):
            buffers[match[1]] = buffers.get(match[1], 0) + int(float(match[2]) * _MIB)
    return Placement(tuple(layers[i] for i in sorted(layers)), buffers, note)


def devices(library: Library) -> tuple[Device, ...]:
    """Every device of the loaded backends."""
    ffi, lib = library.ffi, library.lib
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        handle = lib.ggml_backend_dev_get(i)
        props: Any = ffi.new("struct ggml_backend_dev_props *")
        lib.ggml_backend_dev_get_props(handle, props)
        found.append(
            Device(
                name=_text(ffi, props.name),
                description=_text(ffi, props.description),
                kind=_KINDS.get(int(lib.ggml_backend_dev_type(handle)), "other"),
                memory_free=int(props.memory_free),
                memory_total=int(props.memory_total),
                pci=_text(ffi, props.device_id),
            )
        )
    return tuple(found)


def gpus(library: Library, device: str) -> tuple[Device, ...]:
    """The GPUs that a device setting ("auto", "cpu", "cuda", "cuda:1") means, in the loaded bundle.

    Raises:
        IncompatibleGpu: a GPU was asked for and the loaded bundle has none, or not so many.
    """
    kind, number = select.parse_device(device)
    found = tuple(d for d in devices(library) if d.kind in ("gpu", "integrated gpu"))
    good = tuple(d for d in found if not cuda.unusable(d.pci))
    if kind == "cpu":
        return ()
    if kind == "auto":
        return good
    if not found:
        raise IncompatibleGpu(
            f"device={device!r}: the loaded bundle {library.bundle.name} has no GPU. One process loads one bundle: ask "
            "for the GPU first, or in another process; `llcuda-ffi doctor` says which bundle runs on it"
        )
    if number is None:
        return good
    if number >= len(found):
        listed = ", ".join(f"cuda:{i} {d.description}" for i, d in enumerate(found))
        raise IncompatibleGpu(f"there is no {device}: the loaded bundle has {listed}")
    if found[number] not in good:
        raise IncompatibleGpu(f"{device} is {found[number].description}: {cuda.unusable(found[number].pci)}")
    return (found[number],)


def spare_unusable(library: Library, params: ModelParams) -> ModelParams:
    """Settings that leave out GPUs which the loaded bundle has no code for."""
    if params.devices is not None or library.bundle.backend != "cuda":
        return params
    found = [d for d in devices(library) if d.kind in ("gpu", "integrated gpu")]
    good = [d.name for d in found if not cuda.unusable(d.pci)]
    return params if len(good) == len(found) else override(params, {"devices": good})


def computes_on_cuda(library: Library, params: ModelParams) -> bool:
    """Whether a GPU of CUDA takes part, also where all layers stay on the CPU: long batches are sent to it."""
    if library.bundle.backend != "cuda" or params.vocab_only:
        return False
    return bool(gpus(library, "auto") if params.devices is None else params.devices)


def shortage(library: Library, parts: Sequence[Path], params: ModelParams) -> str:
    """For the message of a failed load: sizes, where the model is larger than the GPUs' free memory."""
    targets = [d for d in gpus(library, "auto") if params.devices is None or d.name in params.devices]
    if not targets or params.n_gpu_layers == 0:
        return ""
    size = sum(part.stat().st_size for part in parts)
    free = sum(d.memory_free for d in targets)
    if size < free:
        return ""
    names, sizes = ", ".join(d.name for d in targets), [f"{n / _MIB:,.0f} MiB" for n in (size, free)]
    return f": it has {sizes[0]}, {sizes[1]} are free on {names}; lower n_gpu_layers, or leave it 'auto'"


def _text(ffi: Any, pointer: Any) -> str:
    return "" if pointer == ffi.NULL else str(ffi.string(pointer).decode("utf-8", "replace"))
