"""NVIDIA GPUs and their driver, as NVML tells them (nvidia-ml-py). Nothing here starts CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: NVML's, the order of PCI addresses.
        compute: compute capability, (9, 0) is sm_90.
        memory_total, memory_free: bytes.
        uuid, pci: "" where they are unknown.
    """

    index: int
    name: str
    compute: tuple[int, int]
    memory_total: int = 0
    memory_free: int = 0
    uuid: str = ""
    pci: str = ""

    @property
    def arch(self) -> int:
        """The compute capability as architectures are numbered: 75, 90, 120."""
        return self.compute[0] * 10 + self.compute[1]


@dataclass(frozen=True)
class GpuReport:
    """The GPUs that CUDA programs of this process see.

    Attributes:
        gpus: in NVML's order, without those that CUDA_VISIBLE_DEVICES hides.
        driver: its version, e.g. "580.159.04"; None without a driver.
        cuda: the newest CUDA that the driver knows, e.g. (13, 0).
        reason: why there is no GPU, where there is none.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    reason: str | None = None


def survey(environment: Mapping[str, str] | None = None) -> GpuReport:
    """Ask NVML. A machine without GPU or driver gives a report without GPUs that says why."""
    try:
        import pynvml
    except ImportError:
        return GpuReport(reason="nvidia-ml-py is not installed: pip install nvidia-ml-py")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuReport(reason=_why(pynvml, error))
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        cuda = (number // 1000, number % 1000 // 10)
        found = tuple(_gpu(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return GpuReport(reason=f"the NVIDIA driver answered: {error}")
    finally:
        pynvml.nvmlShutdown()
    if not found:
        return GpuReport(driver=driver, cuda=cuda, reason="the NVIDIA driver lists no GPU")
    wanted = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    seen = visible(found, wanted)
    hidden = None if seen else f"CUDA_VISIBLE_DEVICES={wanted!r} hides every GPU"
    return GpuReport(seen, driver, cuda, hidden)


def visible(gpus: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves: numbers or the beginnings of UUIDs, up to the first unknown one."""
    if setting is None:
        return gpus
    seen: list[Gpu] = []
    for word in (part.strip() for part in setting.split(",")):
        if word.isdigit():
            match = [gpu for gpu in gpus if gpu.index == int(word)]
        else:
            match = [gpu for gpu in gpus if word and gpu.uuid.startswith(word)]
        if len(match) != 1 or match[0] in seen:
            break
        seen.append(match[0])
    return tuple(seen)


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError:
        total = free = 0  # GPUs that share the system's memory do not say
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        compute=(int(major), int(minor)),
        memory_total=total,
        memory_free=free,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        pci=_text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower(),
    )


def _why(nvml: Any, error: Any) -> str:
    code = getattr(error, "value", None)
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "there is no NVIDIA driver on this machine (libnvidia-ml.so.1 was not found)"
    if code == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "the NVIDIA driver is installed but not running"
    if code == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "the NVIDIA driver was updated and waits for a restart of the machine"
    return f"the NVIDIA driver answered: {error}"


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
