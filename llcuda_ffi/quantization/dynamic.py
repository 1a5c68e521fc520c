"""The file type that fits a memory target: by libllama's own sizes, with room for the KV cache and the compute."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..devices.placement import Room, estimate
from ..enums import FType, GGMLType
from ..errors import InvalidRequest
from ..gguf import GGUFReader
from ..params import INT32_MAX, integer, member, number
from .files import Quantized, QuantizePlan, plan_quantize, quantize

# best first; each is smaller than the one before it
LADDER = (
    FType.F16, FType.Q8_0, FType.Q6_K, FType.Q5_K_M, FType.Q5_K_S, FType.Q4_K_M, FType.Q4_K_S, FType.IQ4_XS,
    FType.Q3_K_M, FType.Q3_K_S, FType.Q2_K,
)  # fmt: skip
# a strategy names the best type that it still takes: better ones cost memory and speed for little quality
STRATEGIES = {"quality": FType.F16, "balanced": FType.Q5_K_M, "speed": FType.Q4_K_M}
GB = 1 << 30
_CUDA = 400 << 20  # a CUDA context, its modules and cuBLAS


@dataclass(frozen=True)
class Choice:
    """A type and what it needs.

    Attributes:
        ftype: the file type.
        plan: its dry run.
        weights, kv_cache, compute, overhead: bytes.
        target: bytes that there are.
        considered: other types that were tried, with the bytes that they would need in all.
    """

    ftype: FType
    plan: QuantizePlan
    weights: int
    kv_cache: int
    compute: int
    overhead: int
    target: int
    considered: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.kv_cache + self.compute + self.overhead

    def __str__(self) -> str:
        return (
            f"{self.ftype.name}: {self.total / GB:.2f} GiB of {self.target / GB:.2f} (weights {self.weights / GB:.2f}, "
            f"KV cache {self.kv_cache / GB:.2f}, compute {self.compute / GB:.2f}, CUDA {self.overhead / GB:.2f})"
        )


class DynamicQuantizer:
    """Chooses the best file type that fits into `target_vram_gb`.

    Args:
        target_vram_gb: GiB of GPU memory that the model may take, everything included.
        strategy: "quality" (up to F16), "balanced" (up to Q5_K_M) or "speed" (up to Q4_K_M).
        n_ctx: tokens of one request.
        n_parallel: requests at once.
        n_ubatch: tokens computed at once.
        kv_type: type of the KV cache.
        overhead_gb: memory of CUDA itself.
    """

    def __init__(
        self,
        target_vram_gb: float,
        strategy: str = "balanced",
        *,
        n_ctx: int = 4096,
        n_parallel: int = 1,
        n_ubatch: int = 512,
        kv_type: GGMLType | str = GGMLType.F16,
        overhead_gb: float = _CUDA / GB,
    ) -> None:
        self.target = int(number("target_vram_gb", target_vram_gb, 1e-6, 1e6) * GB)
        if strategy not in STRATEGIES:
            raise InvalidRequest(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r:.60}")
        self.strategy = strategy
        cells = integer("n_ctx", n_ctx, 1, INT32_MAX) * integer("n_parallel", n_parallel, 1, 256)
        kind = member("kv_type", kv_type, GGMLType)
        self.room = Room(cells, integer("n_ubatch", n_ubatch, 1, 1 << 20), kind, kind)
        self.overhead = int(number("overhead_gb", overhead_gb, 0, 1e6) * GB)

    @property
    def ladder(self) -> Sequence[FType]:
        """The types that the strategy takes, best first."""
        return LADDER[LADDER.index(STRATEGIES[self.strategy]) :]

    def choose(self, source: str | os.PathLike[str], **options: Any) -> Choice:
        """The best type that fits.

        Args:
            source: a GGUF file.
            **options: of `core.quantize.quantize`.

        Raises:
            InvalidRequest: not even the smallest type fits; the message says what it needs.
        """
        with GGUFReader(source) as reader:
            per_layer, compute = estimate(reader, self.room)
            layers = int(reader.metadata.get(f"{reader.architecture}.block_count", 1))
        rest = per_layer * layers + compute + self.overhead
        ladder, considered = self.ladder, {}
        found: QuantizePlan | None = None
        low, high = 0, len(ladder) - 1
        while low <= high:  # sizes fall along the ladder
            middle = (low + high) // 2
            plan = plan_quantize(source, ladder[middle], **options)
            considered[plan.ftype.name] = plan.tensor_bytes + rest
            if plan.tensor_bytes + rest <= self.target:
                found, high = plan, middle - 1
            else:
                low = middle + 1
        if found is None:
            smallest = min(considered, key=lambda name: considered[name])
            raise InvalidRequest(
                f"{source} does not fit into {self.target / GB:.2f} GiB: {smallest} needs "
                f"{considered[smallest] / GB:.2f} GiB, {rest / GB:.2f} of it for KV cache, compute and CUDA; lower "
                "n_ctx, use kv_type='q8_0', or leave layers on the CPU"
            )
        del considered[found.ftype.name]
        return Choice(
            found.ftype, found, found.tensor_bytes, per_layer * layers, compute, self.overhead, self.target, considered
        )

    def quantize(
        self, source: str | os.PathLike[str], target: str | os.PathLike[str], **options: Any
    ) -> tuple[Choice, Quantized]:
        """Choose, then write the file."""
        progress = options.pop("progress", None)
        choice = self.choose(source, **options)
        return choice, quantize(source, Path(target), choice.ftype, progress=progress, **options)
