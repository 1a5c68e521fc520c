"""Llama: text from a model, for any number of prompts at once."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from .bundles import InstalledBundle
from .chat.methods import ChatMethods
from .core.context import Context
from .core.model import Model
from .core.projector import Projector
from .core.row_reduction import can_reduce
from .devices.placement import Room
from .engine.assembly import (
    DEFAULT_N_CTX,
    cells_that_fit,
    kv_types,
    longest_request,
    open_engine,
    open_model,
    with_cache,
)
from .engine.state import Engine, LlamaState
from .enums import FlashAttnType, GGMLType
from .errors import InvalidRequest
from .generate_methods import GenerateMethods
from .hardware.cpu import usable_cores
from .hub.projectors import projector_of
from .isolated.opening import open_isolated
from .keywords import names_methods, names_unknown
from .llama_settings import LlamaSettings
from .multimodal.encoder import MediaEncoder
from .native.one_process import OneProcess
from .params import INT32_MAX, ContextParams, ModelParams, byte_size, checked, flag, integer, override

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack


_MANY = 32  # requests from which a GPU waits for the CPU to choose tokens


@names_methods
@names_unknown
class Llama(LlamaState, GenerateMethods, ChatMethods, OneProcess):
    """A model ready to generate. Any number of threads may use one Llama; their requests share its batches.

        with Llama("smollm2-135m") as llm:
            print(llm.generate("Once upon a time", max_tokens=64).text)

    Attributes:
        model: the loaded model; `model.vocab` tokenizes.
        context: the context that all requests share. Leave its memory to the scheduler.
        contexts: all of them, where n_contexts is more than 1; `context` is the first.
        n_ctx: most tokens of one request, prompt and answer together.
        n_parallel: how many requests run at once (of an encoder-decoder model one in each context).
        engine: the loop that computes the requests, for front ends that wait for them in their own way.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model,
        *,
        device: str = "auto",
        n_ctx: int | None = None,
        n_parallel: int = 8,
        n_contexts: int | Literal["auto"] = "auto",
        n_batch: int | None = None,
        n_ubatch: int | None = None,
        n_threads: int | Literal["auto"] = "auto",
        n_gpu_layers: int | Literal["auto"] = "auto",
        kv_type: str | GGMLType | tuple[str | GGMLType, str | GGMLType] = GGMLType.F16,
        kv_cells: int | None = None,
        flash_attn: str | FlashAttnType | bool = FlashAttnType.AUTO,
        prefix_cache: bool = True,
        host_cache_bytes: int | str = "auto",
        checkpoint_bytes: int | str = "auto",
        disk_cache: int | str = 0,
        draft: str | os.PathLike[str] | Model | None = None,
        n_draft: int | None = None,
        backend_sampling: bool | Literal["auto", "rows"] = "auto",
        bundle: str | InstalledBundle | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        trial: bool = True,
        isolate: bool = False,
        model_params: ModelParams | None = None,
        context_params: ContextParams | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        """Load a model and make room for requests.

        Args:
            model: a path, a registry name ("smollm2-135m"), "repo:file.gguf", "hf://repo/file@revision", or a loaded
                Model, which then stays open when the Llama is closed.
            device: "auto", "cpu", "cuda" or "cuda:1".
            n_ctx: most tokens of one request; default the model's training context, at most 4,096.
            n_parallel: requests that run together. The KV cache holds n_ctx tokens for each.
            n_contexts: contexts that divide them, each with a thread: while the CPU chooses the tokens of one, a GPU
                computes for another. "auto" is 2 on a GPU from 32 requests on (not with kv_cells, draft or
                backend_sampling=True), else 1.
            n_batch, n_ubatch: most tokens of a batch, and computed at once (default 512; on a GPU batches of four times
                that, which keep it busy while nothing is generated).
            n_threads: CPU threads; "auto" starts with the usable cores and gives way on a busy machine.
            n_gpu_layers: layers on the GPU; "auto" puts as many as fit.
            kv_type: type of the KV cache ("f16", "q8_0", …), or a pair for K and V.
            kv_cells: total tokens of the KV cache, shared by all requests, instead of n_ctx × n_parallel. Where
                neither is given and that would take more than half of the free memory, as many as that half holds.
            flash_attn: "auto", True/"enabled" or False/"disabled".
            prefix_cache: reuse what earlier requests computed.
            host_cache_bytes: ordinary memory for prefixes that no longer fit the KV cache; 0 forgets them. "auto" is an
                eighth of what is free, at most 4 GiB, on the CPU, and 0 with a GPU.
            checkpoint_bytes: ordinary memory for the small states from which recurrent, hybrid and windowed models go
                on where prompts part; "auto" is an eighth of what is free, at most 4 GiB. Other models need none.
            disk_cache: most bytes ("16GiB") of the user's folder of prefixes, which outlive the process and are shared
                by processes (docs/cache.md); 0 writes and reads none.
            draft: speculative decoding: "ngram" looks up the prompt; "mtp" takes the model's own layers of multi-token
                prediction; otherwise a smaller model of the same vocabulary (path, name or Model).
            n_draft: tokens drafted at a time (default 8 for "ngram", 3 for "mtp", 5 for a model).
            backend_sampling: sample on the GPU where a request's samplers allow it (not with constraints, log
                probabilities or drafts). "rows": the GPU picks the parts of each row of logits that can hold the next
                token, and only those are copied; the token is chosen on the host as ever. "auto" is "rows" on a GPU
                from 32 requests on (not with draft), where the bundle and the vocabulary allow it, else False.
            bundle: the libraries to use: the name of a pin or of a build ("native"), a folder, an archive.
            mmproj: the model's projector, a file or a reference of the hub, or "auto": the one beside the model's file,
                else that of its repository. Conversations then take images or sound, and `media_prompt` makes prompts
                of them. The bundle must have libmtmd (v0.6.0-cpu, or an own build).
            trial: have a model file that was not seen before opened by a child process first, which it ends if it ends
                one; files that the registry pins are known.
            isolate: compute in a child process. When that dies (an assertion, a driver, too little memory), the
                requests that run get BackendFailure and the next one starts a new child. Settings must be plain data
                then, and requests take no adapters.
            model_params, context_params: further settings; the arguments above win.
            progress: called with the share of the model loaded.

        Raises:
            ModelError, BundleError, LoadError: the model or the libraries could not be had or loaded.
            InvalidRequest: a setting is out of range.
        """
        asked = dict(locals())
        self._owned: list[Any] = []
        self.contexts: list[Context] = []
        self.media: MediaEncoder | None = None
        if flag("isolate", isolate):
            self.n_parallel = integer("n_parallel", n_parallel, 1, 256)
            settings = {name: asked[name] for name in asked if name not in ("self", "isolate")}
            self.model, remote, seen = open_isolated(settings)
            self._owned.append(self.model)
            self.engine: Engine = remote
            self.media = None if seen is None else MediaEncoder(seen)
            self.n_ctx, self._can_shift = int(remote.ready["n_ctx"]), bool(remote.ready["can_shift"])
            return
        n_parallel = integer("n_parallel", n_parallel, 1, 256)
        sizes = {"n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_ubatch, "kv_cells": kv_cells}
        for name, size in sizes.items():
            if size is not None:
                integer(name, size, 1, INT32_MAX)
        types = kv_types(kv_type)
        if kv_cells is None and n_ctx is None and not isinstance(model, Model):
            kv_cells = cells_that_fit(model, device, n_parallel, types)
        if n_contexts == "auto":
            plain = kv_cells is None and draft is None and backend_sampling is not True
            replicas = 2 if plain and n_parallel >= _MANY and n_parallel % 2 == 0 else 1
        else:
            replicas = integer("n_contexts", n_contexts, 1, 16)
        if n_parallel % replicas:
            raise InvalidRequest(f"n_parallel={n_parallel} cannot be divided among n_contexts={n_contexts}")
        if n_threads != "auto":
            integer("n_threads", n_threads, 1, 512)
        flag("prefix_cache", prefix_cache)
        if not flag("trial", trial):
            model_params = override(checked("model_params", model_params, ModelParams), {"trial": False})
        if draft == "mtp":
            model_params = override(checked("model_params", model_params, ModelParams), {"load_mtp": True})
        if backend_sampling not in ("auto", "rows"):
            flag("backend_sampling", backend_sampling)
        if backend_sampling in (True, "rows") and draft is not None:
            raise InvalidRequest("backend_sampling gives one token per sequence and step: it does not go with draft")
        try:
            base = checked("context_params", context_params, ContextParams)
            ubatch = n_ubatch or base.n_ubatch
            if isinstance(model, Model):
                self.model = model
            else:
                cells = kv_cells or (n_ctx or DEFAULT_N_CTX) * n_parallel
                room = Room(cells, ubatch, n_parallel, *types, replicas * (1 + (draft == "mtp")))
                self.model = open_model(model, device, n_gpu_layers, bundle, model_params, progress, room)
                self._owned.append(self.model)
            if backend_sampling == "auto":
                many = self.model.placement.on_gpu and n_parallel >= _MANY and draft is None
                backend_sampling = "rows" if many and can_reduce(self.model) else False
            self.n_ctx = longest_request(self.model, n_ctx)
            self.n_parallel = n_parallel
            params = override(
                with_cache(base, self.n_ctx, n_parallel, types, kv_cells, flash_attn),
                {
                    "n_seq_max": n_parallel,
                    "n_ubatch": ubatch,
                    "n_batch": max(n_batch or ubatch * (4 if self.model.placement.on_gpu else 1), n_parallel, ubatch),
                },
            )
            self.engine = open_engine(
                self.model,
                params,
                1 if n_contexts == "auto" and not self.model.placement.on_gpu else replicas,
                self._owned,
                n_ctx=self.n_ctx,
                n_threads=n_threads,
                draft=draft,
                n_draft=n_draft,
                prefix_cache=prefix_cache,
                backend_sampling=backend_sampling,
                host_cache_bytes=host_cache_bytes,
                disk_cache_bytes=byte_size("disk_cache", disk_cache),
                checkpoint_bytes=checkpoint_bytes,
            )
            self.contexts = [scheduler.context for scheduler in self.engine.schedulers]
            self.context = self.contexts[0]
            self.n_parallel = sum(context.n_seq_max for context in self.contexts)
            if mmproj is not None:
                place = projector_of(self.model.path if isinstance(model, Model) else model, self.model.path, mmproj)
                cores = usable_cores() if n_threads == "auto" else n_threads
                projector = Projector(self.model, place, n_threads=cores, use_gpu=self.model.placement.on_gpu)
                self._owned.append(projector)
                self.media = MediaEncoder(projector)
            # asked once: while a context computes, another thread may ask it nothing
            memory = self.context.memory
            self._can_shift = memory is not None and memory.can_shift and not self.model.has_encoder
        except BaseException:
            for owned in reversed(self._owned):
                owned.close()
            raise
        # Where nobody closes it: the engine's threads must stop before the contexts that they use are freed. Not at
        # exit, where such threads may be held (native/handle.py).
        weakref.finalize(self, self.engine.stop).atexit = False

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str | None = None, **settings: Unpack[LlamaSettings]) -> Self:
        """A model of the Hugging Face hub, as llama-cpp-python names this: `Llama(f"{repo_id}:{filename}")`.

        Args:
            filename: a file of the repository, a pattern such as "*q8_0.gguf", or a quantization such as "Q4_K_M"; None
                takes Q4_K_M where there is one.
            **settings: of Llama.
        """
        return cls(f"{repo_id}:{filename}" if filename else repo_id, **settings)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.engine.closed

    def close(self) -> None:
        """End all requests with Cancelled and free the memory. Does nothing the second time.

        Raises:
            ConcurrentUseError: another thread is in one of its calls; call again after that.
        """
        self.engine.close()
        while self._owned:
            self._owned[-1].close()
            self._owned.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"n_ctx={self.n_ctx} n_parallel={self.n_parallel}"
        return f"<Llama {self.model.path.name} {state}>"
