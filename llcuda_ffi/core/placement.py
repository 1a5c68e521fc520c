"""Where a model lies: the devices there are, what goes on each, and how many layers fit.

libllama has no call for most of this; it says it in its log while it loads, and that is read here.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bundle import InstalledBundle, ensure, select
from ..enums import GGMLType
from ..errors import IncompatibleGpu
from ..gguf import GGUFReader
from ..gguf.types import BLOCKS
from ..gguf.types import GGMLType as FileType
from ..native import cuda
from ..native.load import Library, load, loaded
from ..params import ModelParams, override

logger = logging.getLogger("llcuda_ffi")

_MIB = 1 << 20
_KINDS = {0: "cpu", 1: "gpu", 2: "integrated gpu", 3: "accelerator", 4: "meta"}
# kept free on each GPU: the CUDA context's growth, cuBLAS's workspace, other programs
_MARGIN = 512 * _MIB


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
        note: what `n_gpu_layers="auto"` decided, or "".
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


@dataclass(frozen=True)
class Room:
    """What a context will need beside the weights.

    Attributes:
        n_cells: tokens of the KV cache, all sequences together.
        n_ubatch: tokens computed at once.
        n_seq_max: sequences.
        n_contexts: contexts that divide the cells; each has compute buffers.
    """

    n_cells: int
    n_ubatch: int = 512
    n_seq_max: int = 1
    type_k: GGMLType = GGMLType.F16
    type_v: GGMLType = GGMLType.F16
    n_contexts: int = 1


@dataclass(frozen=True)
class Fit:
    """How many layers fit (all: None), and the reckoning in words."""

    n_gpu_layers: int | None
    note: str


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


def library_for(device: str, bundle: str | InstalledBundle | None = None) -> Library:
    """Load the bundle for a device: the one named, the one loaded already, LLCUDA_FFI_BUNDLE's, else the best one.

    Raises:
        IncompatibleGpu: a GPU was asked for and no bundle runs on it; the message has the table of verdicts.
        LoadError, BundleError: it could not be had or loaded.
    """
    kind, _ = select.parse_device(device)
    there = loaded()
    if isinstance(bundle, InstalledBundle):
        return load(bundle)
    if bundle is None and there is not None:
        return there
    if bundle is None and kind != "cpu" and not os.environ.get("LLCUDA_FFI_BUNDLE", "").strip():
        choice = select.choose_here(device)
        if choice.note:
            logger.warning("%s", choice.note)
        bundle = choice.bundle
    return load(ensure(bundle))


def place(
    library: Library,
    device: str,
    path: Path,
    params: ModelParams,
    room: Room,
    *,
    automatic: bool,
    measure: Callable[[ModelParams], tuple[int, int]] | None = None,
) -> tuple[ModelParams, str]:
    """Model settings for a device, and what was decided ("" where nothing was).

    Args:
        automatic: choose n_gpu_layers by the free memory; otherwise it stays as `params` has it.
        measure: gives the bytes of the whole KV cache and of a GPU's compute buffers; asked where the estimate, which
            is an upper one, does not fit.
    """
    targets = gpus(library, device)
    if library.bundle.backend != "cuda":
        return params, ""
    if not targets:
        return override(params, {"devices": (), "n_gpu_layers": 0}), ""
    if params.devices is None:
        params = override(params, {"devices": tuple(d.name for d in targets)})
    else:
        targets = tuple(d for d in targets if d.name in params.devices)
    if not automatic or params.n_gpu_layers is not None:
        return params, ""
    found = fit(path, targets, room)
    if found.n_gpu_layers is not None and measure is not None:
        found = fit(path, targets, room, measure(params))
    if found.n_gpu_layers is None:
        logger.info("%s: %s", path.name, found.note)
        return params, found.note
    logger.warning("%s: %s", path.name, found.note)
    return override(params, {"n_gpu_layers": found.n_gpu_layers}), found.note


def spare_unusable(library: Library, params: ModelParams) -> ModelParams:
    """Settings that leave out GPUs which the loaded bundle has no code for."""
    if params.devices is not None or library.bundle.backend != "cuda":
        return params
    found = [d for d in devices(library) if d.kind in ("gpu", "integrated gpu")]
    good = [d.name for d in found if not cuda.unusable(d.pci)]
    return params if len(good) == len(found) else override(params, {"devices": good})


def shortage(library: Library, parts: Sequence[Path], params: ModelParams) -> str:
    """For the message of a failed load: sizes, where the model is larger than the GPUs' free memory."""
    targets = [d for d in gpus(library, "auto") if params.devices is None or d.name in params.devices]
    if not targets or params.n_gpu_layers == 0:
        return ""
    size = sum(part.stat().st_size for part in parts)
    free = sum(d.memory_free for d in targets)
    if size < free:
        return ""
    names = ", ".join(d.name for d in targets)
    return f": it has {_mib(size)}, {_mib(free)} are free on {names}; lower n_gpu_layers, or leave it 'auto'"


def fit(path: Path, targets: Sequence[Device], room: Room, measured: tuple[int, int] | None = None) -> Fit:
    """How many layers of a model fit into the free memory of GPUs, with their KV cache and compute buffers.

    The weights are those of the file. KV cache and compute buffers are `measured` (bytes of all layers, bytes of each
    GPU), else an upper estimate from the model's shape.
    """
    with GGUFReader(path) as reader:
        layers, rest = _weights(reader)
        if measured is None:
            kv, compute = _reckon(reader, room)
        else:
            kv, compute = -(-measured[0] // max(1, len(layers))), measured[1]
    compute *= room.n_contexts
    space = sum(max(0, d.memory_free - _MARGIN - compute) for d in targets)
    whole = sum(layers) + rest + kv * len(layers)
    free = sum(d.memory_free for d in targets)
    told = (
        f"weights {_mib(sum(layers) + rest)}, KV {_mib(kv * len(layers))}, compute {_mib(compute)} on each GPU, "
        f"{_mib(free)} free on {', '.join(d.name for d in targets)}"
    )
    if whole <= space:
        return Fit(None, f"all {len(layers)} layers fit: {told}")
    # libllama puts the last layers on the GPU, the output (one "layer" more) first
    used, count = rest, 0
    if used <= space:
        count = 1
        for size in reversed(layers):
            if used + size + kv > space:
                break
            used += size + kv
            count += 1
    return Fit(count, f"{max(0, count - 1)} of {len(layers)} layers fit: {told}; the others stay on the CPU")


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


def _weights(reader: GGUFReader) -> tuple[list[int], int]:
    """Bytes of each layer, and of what goes to the GPU with the output."""
    layers: dict[int, int] = {}
    rest = 0
    for name, tensor in reader.tensors.items():
        if match := re.match(r"(?:\w+\.)?blk\.(\d+)\.", name):
            layers[int(match[1])] = layers.get(int(match[1]), 0) + tensor.nbytes
        elif name != "token_embd.weight" or "output.weight" not in reader.tensors:
            rest += tensor.nbytes  # a tied embedding is copied to the GPU as the output
    return [layers[i] for i in sorted(layers)], rest


def _reckon(reader: GGUFReader, room: Room) -> tuple[int, int]:
    """Bytes of a layer's KV cache, and of the compute buffers."""
    meta = reader.metadata
    arch = meta.get("general.architecture", "")

    def number(key: str, default: int) -> int:
        value = meta.get(f"{arch}.{key}", default)
        # some models give a value for each layer: the largest
        return int(max(value)) if hasattr(value, "__len__") else int(value)

    n_embd = number("embedding_length", 0)
    n_head = max(1, number("attention.head_count", 1))
    n_head_kv = number("attention.head_count_kv", n_head)
    head = n_embd // n_head
    k = number("attention.key_length", head) * n_head_kv
    v = number("attention.value_length", head) * n_head_kv
    tokens = meta.get("tokenizer.ggml.tokens")
    n_vocab = len(tokens) if tokens is not None else number("vocab_size", 0)
    n_ff = number("feed_forward_length", 4 * n_embd)
    kv = room.n_cells * (_row_bytes(k, room.type_k) + _row_bytes(v, room.type_v))
    # float32 logits of a whole ubatch, a few activations, the attention mask
    compute = room.n_ubatch * (4 * (n_vocab + 3 * n_ff + 8 * n_embd) + 2 * room.n_cells)
    return kv, compute


def _row_bytes(n: int, kind: GGMLType) -> int:
    block, size = BLOCKS[FileType(kind.value)]
    return -(-n // block) * size


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB"


def _text(ffi: Any, pointer: Any) -> str:
    return "" if pointer == ffi.NULL else str(ffi.string(pointer).decode("utf-8", "replace"))
