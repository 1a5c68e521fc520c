"""Where a model lies: the devices there are, what goes on each, and how many layers fit.

libllama has no call for most of this; it says it in its log while it loads, and that is read here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bundles import InstalledBundle, ensure, select, selected
from ..core.placement import Device, gpus
from ..enums import GGMLType
from ..errors import BundleNotFound, DownloadError
from ..fetch.cache import offline
from ..gguf import GGUFReader
from ..gguf.types import BLOCKS
from ..gguf.types import GGMLType as FileType
from ..native.load import Library, load, loaded
from ..params import ModelParams, override
from . import tuned

logger = logging.getLogger("llcuda_ffi")

_MIB = 1 << 20
_KINDS = {0: "cpu", 1: "gpu", 2: "integrated gpu", 3: "accelerator", 4: "meta"}
# kept free on each GPU: the CUDA context's growth, cuBLAS's workspace, other programs
_MARGIN = 512 * _MIB


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
    """How many layers fit (all: None), and the estimate in words."""

    n_gpu_layers: int | None
    note: str


def library_for(
    device: str,
    bundle: str | InstalledBundle | None = None,
    model: Path | None = None,
    *,
    reading: bool = False,
) -> Library:
    """Load the bundle for a device: the one named, the loaded one, the one that the user selected, else the best.

    Args:
        model: on the CPU, the best is the one that `bundle tune` found for this model's types; without a verdict the
            one that is known to be faster for them on such a processor, where it can be had.
        reading: nothing is generated, so only the speed of prompts counts in a verdict.

    Raises:
        IncompatibleGpu: a GPU was asked for and no bundle runs on it; the message has the table of verdicts.
        LoadError, BundleError: it could not be had or loaded.
    """
    select.parse_device(device)
    there = loaded()
    if isinstance(bundle, InstalledBundle):
        return load(bundle)
    if bundle is None and there is not None:
        return there
    if bundle is None and selected() is None:
        choice = select.choose_here(device)
        if choice.note:
            logger.warning("%s", choice.note)
        bundle = choice.bundle
        if model is not None and not choice.gpus:
            measured = tuned.bundle_for(model, reading=reading)
            if measured is not None:
                return load(measured)
            faster = tuned.faster_pin(model)
            if faster is not None:
                try:
                    return load(ensure(faster))
                except (BundleNotFound, DownloadError) as error:
                    level = logging.INFO if offline() else logging.WARNING
                    logger.log(level, "bundle %s, which reads this model faster, is not to be had: %s", faster, error)
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


def fit(path: Path, targets: Sequence[Device], room: Room, measured: tuple[int, int] | None = None) -> Fit:
    """How many layers of a model fit into the free memory of GPUs, with their KV cache and compute buffers.

    The weights are those of the file. KV cache and compute buffers are `measured` (bytes of all layers, bytes of each
    GPU), else an upper estimate from the model's shape.
    """
    with GGUFReader(path) as reader:
        layers, rest = _weights(reader)
        if measured is None:
            kv, compute = estimate(reader, room)
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


def estimate(reader: GGUFReader, room: Room) -> tuple[int, int]:
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


def head_length(reader: GGUFReader) -> int:
    """Numbers of a key of one head."""
    meta, arch = reader.metadata, reader.architecture
    heads = meta.get(f"{arch}.attention.head_count", 1)
    most = int(max(heads)) if hasattr(heads, "__len__") else int(heads)
    return int(meta.get(f"{arch}.attention.key_length", meta.get(f"{arch}.embedding_length", 0) // max(1, most)))


def _row_bytes(n: int, kind: GGMLType) -> int:
    block, size = BLOCKS[FileType(kind.value)]
    return -(-n // block) * size


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB"
