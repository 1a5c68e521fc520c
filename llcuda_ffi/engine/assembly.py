"""What a Llama is made of: the model in its place, its contexts with their schedulers, its drafter, thread control."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from ..bundles import InstalledBundle
from ..bundles.pins import require_linux
from ..bundles.select import parse_device
from ..core.context import Context
from ..core.model import Model
from ..devices import tuned
from ..devices.dry_load import dry_load
from ..devices.memory_fit import affordable_cells
from ..devices.placement import Room, library_for, place
from ..enums import FlashAttnType, GGMLType
from ..errors import InvalidModelFile, InvalidRequest, UnsupportedModel
from ..gguf import GGUFReader
from ..hardware.cpu import usable_cores
from ..hardware.memory import free_memory, free_system_memory
from ..hub.references import is_pinned, resolve
from ..params import (
    INT32_MAX,
    KV_TYPES,
    ContextParams,
    ModelParams,
    byte_size,
    checked,
    integer,
    member,
    override,
    shown,
)
from .mtp_draft import MtpDraft
from .scheduler import Scheduler
from .speculative import Drafter, DraftModel, PromptLookup
from .state import LocalEngine
from .thread_control import ThreadControl

DEFAULT_N_CTX = 4096


def open_model(
    model: str | os.PathLike[str],
    device: str,
    n_gpu_layers: int | Literal["auto"],
    bundle: str | InstalledBundle | None,
    params: ModelParams | None,
    progress: Callable[[float], object] | None,
    room: Room,
    *,
    reading: bool = False,
) -> Model:
    """Fetch a model where it is missing, choose the libraries and where its layers go, and load it.

    Args:
        reading: nothing is generated: the libraries are chosen by the speed of prompts.
    """
    require_linux()
    params = checked("model_params", params, ModelParams)
    if n_gpu_layers != "auto":
        params = override(params, {"n_gpu_layers": n_gpu_layers})
    parse_device(device)
    path = resolve(model)
    if is_pinned(model):
        params = override(params, {"trial": False})
    library = library_for(device, bundle, path, reading=reading)
    params, layout = tuned.layout(library, path, params, reading=reading)

    def measure(params: ModelParams) -> tuple[int, int]:
        need = dry_load(library, path, params, room)
        return need.kv, max((size for name, size in need.compute.items() if not name.startswith("CPU")), default=0)

    params, note = place(library, device, path, params, room, automatic=n_gpu_layers == "auto", measure=measure)
    loaded = Model.load(path, params, progress=progress, bundle=library.bundle)
    loaded.placement = replace(loaded.placement, note="; ".join(filter(None, (note, layout))))
    return loaded


def cells_that_fit(
    model: str | os.PathLike[str], device: str, n_parallel: int, types: tuple[GGMLType, GGMLType]
) -> int | None:
    """Shared cells for a Llama whose cache nobody asked the size of; None where a cache for each request fits.

    Raises:
        ModelNotFound, DownloadError: the model could not be had.
    """
    require_linux()
    kind, _ = parse_device(device)
    path = resolve(model)
    free = free_system_memory() if kind == "cpu" else free_memory()[0]
    try:
        with GGUFReader(path) as reader:
            trained = int(reader.metadata.get(f"{reader.metadata.get('general.architecture', '')}.context_length", 0))
        return affordable_cells(path, free, min(trained or DEFAULT_N_CTX, DEFAULT_N_CTX), n_parallel, types)
    except (InvalidModelFile, TypeError, ValueError, LookupError):
        return None  # the load says what is wrong with it


def longest_request(model: Model, n_ctx: int | None) -> int:
    """Most tokens of one request: as asked, else the training context, at most 4,096."""
    if n_ctx is not None:
        return integer("n_ctx", n_ctx, 1, INT32_MAX)
    trained = model.n_ctx_train
    return min(trained, DEFAULT_N_CTX) if trained > 0 else DEFAULT_N_CTX


def kv_types(kv_type: str | GGMLType | tuple[str | GGMLType, str | GGMLType]) -> tuple[GGMLType, GGMLType]:
    """The types of the K and the V cache."""
    type_k, type_v = kv_type if isinstance(kv_type, tuple) and len(kv_type) == 2 else (kv_type, kv_type)
    for one in (type_k, type_v):
        if isinstance(one, str) and one.upper() not in KV_TYPES:
            names = ", ".join(KV_TYPES).lower()
            raise InvalidRequest(f"kv_type must be one of {names}, or a pair of them, not {shown(one)}")
    return member("kv_type", type_k, GGMLType), member("kv_type", type_v, GGMLType)


def with_cache(
    params: ContextParams,
    n_ctx: int,
    n_parallel: int,
    types: tuple[GGMLType, GGMLType],
    kv_cells: int | None,
    flash_attn: str | FlashAttnType | bool,
) -> ContextParams:
    """`params` with a KV cache for `n_parallel` requests of `n_ctx` tokens: a stream for each, or `kv_cells` shared."""
    if isinstance(flash_attn, bool):
        flash_attn = FlashAttnType.ENABLED if flash_attn else FlashAttnType.DISABLED
    per_sequence = -(-n_ctx // 256) * 256  # libllama rounds up to this
    cells = per_sequence * n_parallel
    unified = params.kv_unified
    if kv_cells is not None:
        cells, unified = integer("kv_cells", kv_cells, n_ctx, INT32_MAX), True
    if cells > INT32_MAX:
        raise InvalidRequest(f"n_ctx × n_parallel is {cells} tokens, more than 2^31: lower one of them")
    return override(
        params,
        {
            "n_ctx": cells,
            "kv_unified": unified,
            "type_k": types[0],
            "type_v": types[1],
            "flash_attn_type": member("flash_attn", flash_attn, FlashAttnType),
        },
    )


def open_engine(
    model: Model,
    params: ContextParams,
    n_contexts: int,
    owned: list[Any],
    *,
    n_ctx: int,
    n_threads: int | Literal["auto"],
    draft: str | os.PathLike[str] | Model | None,
    n_draft: int | None,
    host_cache_bytes: int | str,
    checkpoint_bytes: int | str,
    **settings: Any,
) -> LocalEngine:
    """Contexts of a model and what steps them; what must be closed with the Llama is added to `owned`.

    Args:
        params: of one context that all share; its sequences and cells are divided among several.
        settings: of each Scheduler.

    Raises:
        UnsupportedModel: it generates no text.
        InvalidRequest: shared cells are too few for so many contexts.
    """
    if model.is_diffusion:
        raise UnsupportedModel(
            f"{model.path.name} ({model.architecture}) generates by diffusion, which Llama does not do"
        )
    if params.mtp:
        raise InvalidRequest("ContextParams(mtp=True) computes only the layers that draft: use draft='mtp'")
    if model.has_encoder:
        if draft is not None:
            raise UnsupportedModel(f"{model.path.name} is an encoder-decoder model: it takes no draft")
        # one request at a time in each context (see encoder.py); a prompt is encoded whole
        one = {"n_seq_max": n_contexts, "n_ctx": n_contexts * -(-n_ctx // 256) * 256}
        params = override(params, one | {name: max(getattr(params, name), n_ctx) for name in ("n_batch", "n_ubatch")})
    cells = params.n_ctx // n_contexts
    if params.kv_unified and cells < n_ctx:
        raise InvalidRequest(
            f"kv_cells={params.n_ctx} in n_contexts={n_contexts} are {cells} in each, too few for a request of "
            f"n_ctx={n_ctx} tokens: raise kv_cells, or lower one of the others"
        )
    # what a GPU computes again takes little longer than to fetch it from there
    if host_cache_bytes == "auto" and model.placement.on_gpu:
        host_cache_bytes = 0
    settings["host_cache_bytes"] = memory_budget("host_cache_bytes", host_cache_bytes, n_contexts)
    settings["checkpoint_bytes"] = memory_budget("checkpoint_bytes", checkpoint_bytes, n_contexts)
    cores = usable_cores()
    threads = max(1, cores // n_contexts) if n_threads == "auto" else n_threads
    schedulers = []
    share = {"n_seq_max": params.n_seq_max // n_contexts, "n_ctx": cells, "n_threads": threads}
    for _ in range(n_contexts):
        context = Context(model, override(params, share))
        owned.append(context)
        if context.memory is None or not model.has_decoder:
            raise UnsupportedModel(f"{model.path.name} is an embedding model, it generates no text: use Embedder")
        drafter = None
        if draft is not None:
            drafter = open_drafter(draft, n_draft, context, n_ctx, owned)
            draft = drafter.model if isinstance(drafter, DraftModel) else draft
        # several contexts would take each other's cores for another program's
        control = thread_control(context, cores) if n_threads == "auto" and n_contexts == 1 else None
        schedulers.append(Scheduler(context, n_ctx=n_ctx, drafter=drafter, threads=control, **settings))
    return LocalEngine(schedulers)


def memory_budget(name: str, size: int | str, n_contexts: int) -> int:
    """How much ordinary memory one of `n_contexts` contexts may take of `size`, which "auto" chooses."""
    if size == "auto":
        size = min(4 << 30, free_system_memory() // 8)
    return byte_size(name, size) // n_contexts


def thread_control(context: Context, cores: int) -> ThreadControl | None:
    """What makes n_threads="auto" follow the machine; None where there is one core."""
    if cores < 2:
        return None
    return ThreadControl(cores, context.set_threads)


def open_drafter(
    draft: str | os.PathLike[str] | Model, n_draft: int | None, target: Context, n_ctx: int, owned: list[Any]
) -> Drafter:
    """The drafter of speculative decoding; what must be closed with the Llama is added to `owned`."""
    if draft == "mtp":
        mtp = MtpDraft(target, n_draft=n_draft or 3)
        owned.append(mtp)
        return mtp
    if draft == "ngram":
        return PromptLookup(n_ctx, n_draft=n_draft or 8)
    if not isinstance(draft, Model):
        draft = Model.load(resolve(draft), trial=not is_pinned(draft))
        owned.append(draft)
    if draft.is_recurrent or draft.is_hybrid:
        raise UnsupportedModel(f"{draft.path.name} cannot be a draft model: its recurrent state cannot be rolled back")
    drafter = DraftModel(draft, target, n_draft=n_draft or 5)
    owned.append(drafter)
    return drafter
