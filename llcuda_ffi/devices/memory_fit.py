"""What fits this machine's memory: a KV cache that leaves room for others, and a table of what settings would take."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..enums import GGMLType
from ..gguf import GGUFReader
from ..gguf.types import BLOCKS
from ..gguf.types import GGMLType as FileType
from ..native.load import Library
from ..params import ModelParams
from .dry_load import dry_load
from .placement import Room, estimate, head_length

logger = logging.getLogger("llcuda_ffi")

_MIB = 1 << 20
# of the memory that is free beside the weights, what a KV cache takes that nobody asked the size of
SHARE = 0.5


@dataclass(frozen=True)
class Plan:
    """What a Llama with these settings takes, in bytes.

    Attributes:
        n_ctx, n_parallel, kv_type: the settings.
        weights: of the file.
        kv: the KV cache.
        compute: the compute buffers.
    """

    n_ctx: int
    n_parallel: int
    kv_type: str
    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.compute


def plans(
    library: Library, path: Path, n_ctx: Sequence[int], n_parallel: Sequence[int], kv_types: Sequence[GGMLType]
) -> list[Plan]:
    """What each combination takes, as libllama plans it, without loading the model.

    Types whose blocks do not divide the model's heads are left out.

    Raises:
        InvalidModelFile, UnsupportedModel, ModelError: as for a load.
    """
    weights = path.stat().st_size
    found = []
    with GGUFReader(path) as reader:
        kv_types = [kind for kind in kv_types if head_length(reader) % BLOCKS[FileType(kind.value)][0] == 0]
    for kind in kv_types:
        for context in n_ctx:
            for parallel in n_parallel:
                need = dry_load(library, path, ModelParams(), Room(context * parallel, 512, parallel, kind, kind))
                compute = sum(need.compute.values())
                found.append(Plan(context, parallel, kind.name.lower(), weights, need.kv, compute))
    return found


def affordable_cells(
    path: Path, free: int, n_ctx: int, n_parallel: int, types: tuple[GGMLType, GGMLType]
) -> int | None:
    """Cells of a KV cache that all requests share, where one of n_ctx for each would take too much; None where it fits.

    Args:
        free: bytes of memory; 0 where that is not known.
        n_ctx: of one request; at least so many cells there are.
    """
    if not free:
        return None
    with GGUFReader(path) as reader:
        layers = reader.metadata.get(f"{reader.metadata.get('general.architecture', '')}.block_count", 0)
        cell = int(layers) * estimate(reader, Room(1, 1, 1, *types))[0]
    wanted = n_ctx * n_parallel
    room = int(max(0, free - path.stat().st_size) * SHARE)
    if not cell or wanted * cell <= room:
        return None
    cells = max(n_ctx, room // cell // 256 * 256)
    if cells >= wanted:
        return None
    logger.warning(
        "%s: a KV cache of %s tokens (%s) shared by %d requests, half of the memory that is free: n_ctx=, n_parallel=, "
        "kv_type= or kv_cells= choose another (llcuda-ffi model fit shows what fits)",
        path.name, f"{cells:,}", f"{cells * cell / _MIB:,.0f} MiB", n_parallel,
    )  # fmt: skip
    return cells
