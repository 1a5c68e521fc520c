"""A context: the memory and the buffers in which a model computes. One thread at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..enums import AttentionType, FlashAttnType, PoolingType
from ..errors import InvalidRequest, ModelError, UnsupportedModel
from ..native import cuda_graphs as graphs
from ..native.handle import Handle
from ..native.log import listen
from ..native.status import check_decode
from ..params import ContextParams, checked, flag, integer, override
from .batch import Batch
from .context_settings import KEEP_HIDDEN, check_mtp, check_settings, flash_attn_of, memory_kind, native_params
from .embedding_batch import EmbeddingBatch
from .extended_batch import extended_batch
from .hidden_batch import HiddenBatch
from .memory import Memory
from .model import Model
from .outputs import Outputs
from .trial import tried


@dataclass(frozen=True)
class ContextPerf:
    """Timings counted by libllama (llama_perf_context), zero unless the context was made with no_perf=False.

    Attributes:
        load_ms: time of the load.
        prompt_ms, prompt_tokens: batches of several tokens.
        decode_ms, decode_tokens: single tokens.
        graphs_reused: how often a compute graph was used again.
    """

    load_ms: float
    prompt_ms: float
    decode_ms: float
    prompt_tokens: int
    decode_tokens: int
    graphs_reused: int


class Context(Outputs):
    """A computation over a model (struct llama_context).

    Attributes:
        model: what it computes with.
        params: what it was made with.
        n_ctx, n_batch, n_ubatch, n_seq_max: what libllama granted (it may round n_ctx up).
        n_ctx_seq: most tokens of one sequence.
        flash_attn: whether it computes with flash attention, which AUTO leaves to libllama.
        mixes_embeddings: whether a batch may have embeddings beside tokens (`Batch.embed`).
        samplers: the chains that run in its graph, by sequence (`SamplerChain.attach`).
    """

    def __init__(self, model: Model, params: ContextParams | None = None, **settings: Any) -> None:
        """Make a context (llama_init_from_model).

        Raises:
            InvalidRequest: a setting is unknown or out of range.
            UnsupportedModel: the model was loaded with vocab_only.
            UnsupportedByBundle: a setting that the loaded bundle lacks.
            InvalidModelFile: a context of this kind ended the process that tried it (ModelParams.trial).
            ModelError: there is too little memory, or libllama refused; the message carries its log.
        """
        params = override(checked("params", params, ContextParams), settings)
        if not isinstance(model, Model):
            raise InvalidRequest(f"a Context is made from a Model, not from {type(model).__name__}")
        if model.params.vocab_only:
            raise UnsupportedModel("this model was loaded with vocab_only=True: load it again without it")
        library = model.library
        ffi, lib = library.ffi, library.lib
        if params.n_seq_max > lib.llama_max_parallel_sequences():
            raise InvalidRequest(
                f"n_seq_max must be at most {lib.llama_max_parallel_sequences()} with this bundle, "
                f"not {params.n_seq_max}"
            )
        # Cancelling costs no Python call: libllama asks strlen(flag) between graph nodes, and a flag of one
        # character instead of none answers "stop".
        self._abort_flag = ffi.new("char[2]")
        check_settings(model, params)
        with tried([model.path], model.params, context=params):
            native = native_params(library, params, self._abort_flag)
        on_gpu = model.placement.on_gpu
        if on_gpu:
            flash = params.flash_attn_type != FlashAttnType.DISABLED
            graphs.decide(model.path, flash_attn=flash, embeddings=params.embeddings)
        with model.shared():
            made, heard = self._make(lib.llama_init_from_model, (model.pointer, native[0]), lib.llama_free, model)
        if not made:
            raise ModelError(
                f"libllama could not make a context of {params.n_ctx} tokens for {model.path.name}: "
                f"try a smaller n_ctx, n_ubatch or another KV type{heard.why()}"
            )
        pointer = self.pointer
        self._resource.stop = partial(self._abort_flag.__setitem__, 0, b"!")
        self.model, self.params = model, params
        self._ffi, self._lib = ffi, lib
        self.n_ctx: int = lib.llama_n_ctx(pointer)
        self.n_batch: int = lib.llama_n_batch(pointer)
        self.n_ubatch: int = lib.llama_n_ubatch(pointer)
        self.n_seq_max: int = lib.llama_n_seq_max(pointer)
        self.n_ctx_seq: int = lib.llama_n_ctx_seq(pointer)
        self.kv_unified = params.kv_unified
        self.flash_attn = flash_attn_of(params, heard.lines())
        if on_gpu:
            if flash and not self.flash_attn:
                graphs.decide(model.path, flash_attn=False, embeddings=params.embeddings)
            graphs.used()
        self.n_vocab = model.vocab.n_tokens
        self.pooling_type = PoolingType(lib.llama_pooling_type(pointer))
        self._memory = lib.llama_get_memory(pointer)
        self._rope_type, self._memory_kind, self._n_swa = model.rope_type, memory_kind(model, params), model.n_swa
        causal = model.metadata.get(f"{model.architecture}.attention.causal", "true") != "false"
        self._causal = (
            causal
            if params.attention_type == AttentionType.UNSPECIFIED
            else (params.attention_type == AttentionType.CAUSAL)
        )
        self._embeddings = params.embeddings
        self._decodes = model.has_decoder
        self._two_part = model.has_encoder and self._decodes
        self._encoded = False
        self._n_outputs = 0
        self.mixes_embeddings = (
            library.profile.has("llama_process.mixed") and self._causal and bool(self._memory) and not model.has_encoder
        )
        self.samplers: dict[int, Handle] = {}
        if params.mtp:
            self._keep_hidden()
        self._hidden = False

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Context n_ctx={self.n_ctx} n_seq_max={self.n_seq_max} {self.model.path.name}{state}>"

    @property
    def memory(self) -> Memory | None:
        """The KV cache, or None for models without one (BERT)."""
        # made anew each time: one kept here would make a cycle, and a dropped context would wait for the collector
        if not self._memory:
            return None
        return Memory(
            self,
            self._lib,
            self._memory,
            n_seq_max=self.n_seq_max,
            shares_cells=self.kv_unified,
            rope_type=self._rope_type,
            kind=self._memory_kind,
            window=self._n_swa,
        )

    # --- computing ---

    def decode(self, batch: Batch) -> None:
        """Compute a batch; its outputs are then read with `logits` or `embeddings` (llama_decode).

        Raises:
            InvalidRequest: the batch is empty, too large, or holds a value out of range, or its positions do not
                continue their sequences.
            UnsupportedByBundle: it has embeddings, which the loaded bundle computes apart (`decode_embeddings`).
            NoKvSlot: the KV cache has no room. Nothing was computed.
            Cancelled: `abort` was called.
            BackendFailure: the backend failed.
        """
        with self.exclusive():
            pointer = self.pointer
            _need_batch(batch)
            hidden = batch.width if isinstance(batch, HiddenBatch) else 0
            if hidden != (self.model.n_embd_out if self.params.mtp else 0) or (hidden and batch.embedded):
                raise InvalidRequest(
                    "a context made with mtp=True decodes a HiddenBatch of the model's n_embd_out, others a Batch"
                )
            if batch.embedded:
                self._check_embedded(batch)
            if not self._memory:
                self._check(batch, self.n_ubatch, "n_ubatch")
            else:
                if not self._decodes:
                    raise UnsupportedModel(f"{self.model.path.name} is an encoder: call encode()")
                if self._two_part and not self._encoded:
                    raise InvalidRequest("this model has an encoder: call encode() before decode()")
                if self._causal:
                    self._check(batch, self.n_batch, "n_batch")
                else:
                    self._check(batch, min(self.n_batch, self.n_ubatch), "n_ubatch, for attention that is not causal")
            self._count_outputs(batch)
            self._compute(self._decoder(batch), pointer, batch)
            if hidden:
                self._hidden = bool(batch.output[0])

    def decode_sound(self, batch: Batch) -> None:
        """Compute a batch of which the caller knows that it is sound, holding `exclusive()`: `decode` without checks.

        Raises:
            NoKvSlot, Cancelled, BackendFailure: as `decode`.
        """
        self._compute(self._decoder(batch), self.pointer, batch)

    def _decoder(self, batch: Batch) -> Callable[[Any, Any], int]:
        """The call that computes a batch: llama_decode, or llama_process where it has embeddings too."""
        if not batch.embedded:
            decode: Callable[[Any, Any], int] = self._lib.llama_decode
            return decode
        lib = self._lib
        extended = extended_batch(self._ffi, lib, self.pointer, batch)
        return lambda context, _: lib.llama_process(context, lib.LLAMA_PROCESS_TYPE_DECODE, extended)

    def _check_embedded(self, batch: Batch) -> None:
        if not self.mixes_embeddings:
            self.model.library.profile.require("llama_process.mixed")
            raise UnsupportedModel(f"{self.model.path.name} computes embeddings apart: see decode_embeddings")
        for rows in batch.embedded:
            self._check_width(rows.embeddings.shape[1])

    def _check_width(self, width: int) -> None:
        wanted = self.model.n_embd_inp
        if width != wanted:
            raise InvalidRequest(
                f"embeddings of {width} numbers do not fit {self.model.path.name}, which takes {wanted}"
            )

    def decode_embeddings(self, batch: EmbeddingBatch, *, causal: bool = True) -> None:
        """Compute embeddings in place of tokens (llama_decode): pieces of images or of sounds, without outputs.

        Args:
            causal: False lets all of them attend to each other; they must be one micro-batch then.

        Raises:
            InvalidRequest: too many, of another width than the model takes, or of another kind of positions.
            NoKvSlot, Cancelled, BackendFailure: as `decode`.
        """
        if not isinstance(batch, EmbeddingBatch):
            raise InvalidRequest(f"an EmbeddingBatch is wanted, not {type(batch).__name__}")
        with self.exclusive():
            pointer = self.pointer
            most = self.n_batch if causal else min(self.n_batch, self.n_ubatch)
            if batch.n_tokens > most:
                raise InvalidRequest(
                    f"a piece of an image has {batch.n_tokens} embeddings, more than {most} at once "
                    f"({'n_batch' if causal else 'n_ubatch'}): make the Llama with a larger one"
                )
            if self.params.mtp:
                raise InvalidRequest("a context made with mtp=True decodes a HiddenBatch only")
            self._check_width(batch.width)
            if batch.sections != (4 if self.model.moves_positions else 1):
                raise InvalidRequest(f"embeddings at {batch.sections} positions each do not fit {self.model.path.name}")
            for end in (batch.seq_ids.min(), batch.seq_ids.max()):
                integer("a sequence id", int(end), 0, self.n_seq_max - 1)
            turn = causal != self._causal
            if turn:
                self._lib.llama_set_causal_attn(pointer, causal)
            try:
                self._compute(self._lib.llama_decode, pointer, batch)
            finally:
                if turn:
                    self._lib.llama_set_causal_attn(pointer, self._causal)
            self._n_outputs = 0

    def encode(self, batch: Batch) -> None:
        """Run the encoder over a batch (llama_encode).

        Raises:
            UnsupportedModel: the model has no encoder.
            InvalidRequest: as for `decode`; the batch must fit n_ubatch.
        """
        with self.exclusive():
            pointer = self.pointer
            if self._memory and not self.model.has_encoder:
                raise UnsupportedModel(f"{self.model.path.name} has no encoder: use decode()")
            _need_batch(batch)
            self._check(batch, min(self.n_batch, self.n_ubatch), "n_ubatch")
            self._compute(self._lib.llama_encode, pointer, batch)
            self._encoded = True

    def _check(self, batch: Batch, most: int, limit: str) -> None:
        if integer("batch.n_tokens", batch.n_tokens, 0, batch.capacity) > most:
            raise InvalidRequest(f"the batch holds {batch.n_tokens} tokens, more than {most} ({limit}): send parts")
        batch.check(self.n_vocab, self.n_seq_max)
        known = self.model.n_positions
        if known is not None and int(batch.pos[: batch.n_tokens].max()) >= known:
            raise InvalidRequest(f"{self.model.path.name} has {known} positions: a text of it can be no longer")

    def _count_outputs(self, batch: Batch) -> None:
        most = self.params.n_outputs_max
        if most:
            outputs = batch.n_tokens if self._embeddings else int(np.count_nonzero(batch.output[: batch.n_tokens]))
            if outputs > most:
                raise InvalidRequest(f"the batch asks for {outputs} outputs, more than n_outputs_max ({most})")

    def _compute(self, call: Any, pointer: Any, batch: Batch | EmbeddingBatch) -> None:
        """The C call itself, for a batch already checked."""
        with listen() as heard:
            code = call(pointer, batch.native())
            self._back()
        self._n_outputs = batch.n_tokens
        if code:
            if code == 2:
                self._abort_flag[0] = b"\0"
            check_decode(code, heard)

    def abort(self) -> None:
        """Stop the computation that is running in another thread: it raises Cancelled. CPU backend only."""
        self._abort_flag[0] = b"!"

    def synchronize(self) -> None:
        """Wait until the backend has computed everything (llama_synchronize); reading results does so too."""
        with self.exclusive():
            self._lib.llama_synchronize(self.pointer)

    def detach_sampler(self, seq_id: int) -> None:
        """Sample a sequence on the CPU again (llama_set_sampler with no chain); see `SamplerChain.attach`."""
        seq = integer("a sequence id", seq_id, 0, self.n_seq_max - 1)
        self.model.library.profile.require("llama_set_sampler")
        with self.exclusive():
            self._lib.llama_set_sampler(self.pointer, seq, self._ffi.NULL)
            self.samplers.pop(seq, None)

    # --- settings that may change ---

    @property
    def n_threads(self) -> int:
        """Threads for single tokens."""
        with self.exclusive():
            return int(self._lib.llama_n_threads(self.pointer))

    @property
    def n_threads_batch(self) -> int:
        """Threads for prompts."""
        with self.exclusive():
            return int(self._lib.llama_n_threads_batch(self.pointer))

    def set_threads(self, n_threads: int, n_threads_batch: int | None = None) -> None:
        """Change the CPU threads (llama_set_n_threads)."""
        with self.exclusive():
            one = integer("n_threads", n_threads, 1, 512)
            many = one if n_threads_batch is None else integer("n_threads_batch", n_threads_batch, 1, 512)
            self._lib.llama_set_n_threads(self.pointer, one, many)

    def set_causal(self, causal: bool) -> None:
        """Switch between causal attention and attention in both directions (llama_set_causal_attn)."""
        with self.exclusive():
            self._lib.llama_set_causal_attn(self.pointer, flag("causal", causal))
            self._causal = causal

    def set_embeddings(self, embeddings: bool) -> None:
        """Switch the output of embeddings on or off (llama_set_embeddings)."""
        with self.exclusive():
            self._lib.llama_set_embeddings(self.pointer, flag("embeddings", embeddings))
            self._embeddings = embeddings

    def keep_hidden(self) -> None:
        """Keep the hidden state of each token that is decoded from now on (llama_set_embeddings_nextn), for `hidden`.

        Raises:
            UnsupportedByBundle, UnsupportedModel, InvalidRequest: the model has no layers that draft from it, or they
                were not loaded.
        """
        with self.exclusive():
            check_mtp(self.model)
            if not self.params.mtp:
                self._keep_hidden()

    def _keep_hidden(self) -> None:
        getattr(self._lib, KEEP_HIDDEN)(self.pointer, True, self.params.mtp)
        self._hidden = True

    def perf(self) -> ContextPerf:
        """Timings since the start or `reset_perf` (llama_perf_context)."""
        with self.exclusive():
            data = self._lib.llama_perf_context(self.pointer)
        return ContextPerf(data.t_load_ms, data.t_p_eval_ms, data.t_eval_ms, data.n_p_eval, data.n_eval, data.n_reused)

    def reset_perf(self) -> None:
        """Set the counters of `perf` to zero."""
        with self.exclusive():
            self._lib.llama_perf_context_reset(self.pointer)


def _need_batch(batch: object) -> None:
    if not isinstance(batch, Batch):
        raise InvalidRequest(f"a Batch is wanted, not {type(batch).__name__}")
