"""What a model takes besides its weights: libllama goes through a load without allocating; its log has the sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import gguf
from ..core.dry_run import dry_run
from ..core.trial import tried
from ..native.load import Library
from ..params import ContextParams, ModelParams
from .placement import Room

_MIB = 1 << 20


@dataclass(frozen=True)
class Need:
    """Bytes that a context takes.

    Attributes:
        kv: the KV cache (or the recurrent state), all layers and devices together.
        compute: the compute buffer of each backend ("CUDA0", "CPU", "CUDA_Host").
    """

    kv: int
    compute: Mapping[str, int]


def dry_load(library: Library, path: Path, params: ModelParams, room: Room) -> Need:
    """Load a model's metadata and plan a context for it, without memory for either (`no_alloc` of llama.h).

    Raises:
        InvalidModelFile, UnsupportedModel: as for a load.
        UnsupportedByBundle: a setting that the loaded bundle lacks.
        ModelError: libllama refused the file or the context.
    """
    gguf.check(path, params.kv_overrides)
    with tried([path], params):
        settings = ContextParams(
            n_ctx=room.n_cells,
            n_batch=max(room.n_ubatch, room.n_seq_max),
            n_ubatch=room.n_ubatch,
            n_seq_max=room.n_seq_max,
            type_k=room.type_k,
            type_v=room.type_v,
        )
    return from_log(dry_run(library, path, params, [settings]))


def from_log(lines: list[str]) -> Need:
    """The sizes that libllama names while it makes a context."""
    kv = 0
    compute: dict[str, int] = {}
    for line in lines:
        if match := re.search(r": +(\S+) compute buffer size = +([\d.]+) MiB", line):
            compute[match[1]] = int(float(match[2]) * _MIB)
        elif match := re.search(r"^llama_(?:kv_cache|memory)\w*: size = +([\d.]+) MiB", line):
            kv += int(float(match[1]) * _MIB)
    return Need(kv, compute)
