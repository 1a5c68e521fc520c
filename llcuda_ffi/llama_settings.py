"""The keywords of Llama, typed for those who pass them on: AsyncLlama, from_pretrained, integrations."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from .bundles import InstalledBundle
    from .core.model import Model
    from .enums import FlashAttnType, GGMLType
    from .params import ContextParams, ModelParams


class LlamaSettings(TypedDict, total=False):
    """What Llama takes beside the model; see there."""

    device: str
    n_ctx: int | None
    n_parallel: int
    n_contexts: int | Literal["auto"]
    n_batch: int | None
    n_ubatch: int | None
    n_threads: int | Literal["auto"]
    n_gpu_layers: int | Literal["auto"]
    kv_type: str | GGMLType | tuple[str | GGMLType, str | GGMLType]
    kv_cells: int | None
    flash_attn: str | FlashAttnType | bool
    prefix_cache: bool
    host_cache_bytes: int | str
    checkpoint_bytes: int | str
    disk_cache: int | str
    draft: str | os.PathLike[str] | Model | None
    n_draft: int | None
    backend_sampling: bool | Literal["auto", "rows"]
    bundle: str | InstalledBundle | None
    mmproj: str | os.PathLike[str] | None
    trial: bool
    isolate: bool
    model_params: ModelParams | None
    context_params: ContextParams | None
    progress: Callable[[float], object] | None
