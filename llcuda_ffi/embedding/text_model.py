"""What embedders and rerankers share: the model in its place, contexts that suit the device, and their end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..bundles import InstalledBundle
from ..core.model import Model
from ..devices.placement import Room
from ..engine.assembly import open_model
from ..enums import FlashAttnType, PoolingType
from ..errors import ClosedError, ConcurrentUseError, ContextOverflow, InvalidRequest
from ..hardware.cpu import usable_cores
from ..native.one_process import OneProcess
from ..params import ModelParams, checked, flag, integer, override, shown
from .packing import PackingQueue, open_contexts
from .wordpiece import WordPiece, needs_wordpiece

if TYPE_CHECKING:
    from typing_extensions import Self

# Attention computes a square of the batch, masked between texts, and the mask is made by the CPU;
# docs/measured_embeddings.md has the measurements.
CPU_BATCH_TOKENS = 128
GPU_BATCH_TOKENS = 512
GPU_CONTEXTS = 4
_SMALL = 2048  # contexts of more tokens have large buffers
# libllama's own limit is 256 sequences in most bundles
MOST_SEQUENCES = 256
LONGEST = 8192


class TextModel(OneProcess):
    """A model for texts that are read, not continued. Safe to use from many threads; their texts share batches.

    Attributes:
        model: the loaded model.
        max_tokens: most tokens of a text, special ones included.
        batch_tokens: tokens of a batch.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model,
        *,
        device: str = "auto",
        n_gpu_layers: int | Literal["auto"] = "auto",
        max_tokens: int | None = None,
        batch_tokens: int | None = None,
        n_threads: int | None = None,
        n_contexts: int | None = None,
        flash_attn: bool | None = None,
        bundle: str | InstalledBundle | None = None,
        trial: bool = True,
        model_params: ModelParams | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: a path, a registry name ("all-minilm-l6-v2"), `repo:file.gguf`, or a loaded Model.
            max_tokens: most tokens of a text; None means what the model was made for.
            batch_tokens: tokens computed together; None: 128 on a CPU, 512 on a GPU.
            n_threads, n_contexts: contexts that compute at once and threads of each; None means one context of one
                thread for each core; on a GPU four contexts, or one for texts of more than 2,048 tokens.
            flash_attn: None means where the backend can.
            trial: have a file that was not seen before opened by a child process first, as Llama does.

        Raises:
            ModelNotFound, InvalidModelFile, UnsupportedModel, ModelError: the model cannot be used.
            InvalidRequest: an argument is out of range.
        """
        self._owns = not isinstance(model, Model)
        if isinstance(model, Model):
            self.model = model
        else:
            if not flag("trial", trial):
                model_params = override(checked("model_params", model_params, ModelParams), {"trial": False})
            room = Room(n_cells=_SMALL, n_ubatch=_SMALL, n_contexts=GPU_CONTEXTS)
            self.model = open_model(model, device, n_gpu_layers, bundle, model_params, None, room, reading=True)
        self._lock = threading.Lock()
        self._closed = False
        self._queues: dict[PoolingType, PackingQueue] = {}
        self._wordpiece_of_its_own = self.model.metadata.get("tokenizer.ggml.model") == "bert"
        self._wordpiece: WordPiece | None = None
        try:
            self._set(max_tokens, batch_tokens, n_threads, n_contexts, flash_attn)
            self._suits()
        except BaseException:
            self.close()
            raise

    def _suits(self) -> None:
        """Raise if the model is of another kind."""

    def _set(
        self,
        max_tokens: int | None,
        batch_tokens: int | None,
        n_threads: int | None,
        n_contexts: int | None,
        flash_attn: bool | None,
    ) -> None:
        loaded = self.model
        on_gpu = loaded.placement.on_gpu
        positions = loaded.n_positions or 1 << 30
        longest = min(positions, max(1, loaded.n_ctx_train)) if loaded.n_ctx_train > 0 else positions
        if max_tokens is None:
            stated = loaded.metadata.get("llcuda_ffi.max_tokens", "")
            max_tokens = min(longest, int(stated) if stated.isdigit() and int(stated) else LONGEST)
        self.max_tokens = integer("max_tokens", max_tokens, 1, longest)
        if batch_tokens is None:
            batch_tokens = GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS
        self.batch_tokens = integer("batch_tokens", batch_tokens, 1, 1 << 17)
        # Threads of one context meet at barriers several times per layer; contexts of one thread each never wait.
        cores = usable_cores()
        if n_threads is not None:
            integer("n_threads", n_threads, 1, 512)
        if n_contexts is None:
            small = max(self.batch_tokens, self.max_tokens) <= _SMALL
            n_contexts = (GPU_CONTEXTS if small else 1) if on_gpu else max(1, cores // (n_threads or 1))
        self._n_contexts = integer("n_contexts", n_contexts, 1, 256)
        self._n_threads = n_threads or max(1, cores // self._n_contexts)
        if flash_attn is None:
            self._flash_attn = FlashAttnType.AUTO
        else:
            self._flash_attn = FlashAttnType.ENABLED if flag("flash_attn", flash_attn) else FlashAttnType.DISABLED

    def _queue(self, pooling: PoolingType) -> PackingQueue:
        """The contexts of one kind of pooling, made when they are first needed.

        Raises:
            ClosedError: it was closed.
        """
        with self._lock:
            if self._closed:
                raise ClosedError(f"this {type(self).__name__} is closed")
            queue = self._queues.get(pooling)
            if queue is None:
                queue = self._queues[pooling] = self._open_queue(pooling)
            return queue

    def _open_queue(self, pooling: PoolingType) -> PackingQueue:
        spare = int(self.model.placement.on_gpu)  # for native/cuda_graphs.py
        rows = max(self.batch_tokens, self.max_tokens) + spare
        most = min(MOST_SEQUENCES, rows, max(1, self.batch_tokens // 2) + spare)
        # libllama aborts when it pools a micro-batch that its sequences do not divide
        rows += -rows % most
        settings: dict[str, Any] = {
            "n_ctx": rows,
            "n_batch": rows,
            "n_ubatch": rows,
            "n_seq_max": most,
            "kv_unified": True,
            "n_threads": self._n_threads,
            "pooling_type": pooling,
            "flash_attn_type": self._flash_attn,
            "embeddings": True,
        }
        return PackingQueue(open_contexts(self.model, self._n_contexts, **settings), spare=spare)

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Around a call that reads texts: another thread's `close` may take the model away in the middle of it."""
        try:
            yield
        except ConcurrentUseError as error:
            if self._closed:
                raise ClosedError(f"this {type(self).__name__} was closed while the call ran") from error
            raise

    def _tokens(self, text: str, add_special: bool = True) -> npt.NDArray[np.int32]:
        """The tokens of a text, of any length."""
        if self._wordpiece_of_its_own and needs_wordpiece(text):
            if self._wordpiece is None:
                metadata = self.model.metadata
                uncased = metadata.get("tokenizer.ggml.normalizer.lowercase", "true") == "true"
                self._wordpiece = WordPiece(self.model.vocab, uncased)
            return self._wordpiece.tokenize(text, add_special)
        return self.model.vocab.tokenize(text, add_special=add_special)

    def _fit(
        self, tokens: npt.NDArray[np.int32], index: int, truncate: bool, what: str = "text"
    ) -> npt.NDArray[np.int32]:
        """Tokens that the model can take.

        Raises:
            ContextOverflow: too many, and not to be truncated.
            InvalidRequest: none at all.
        """
        n = len(tokens)
        if n > self.max_tokens:
            if not truncate:
                raise ContextOverflow(
                    f"{what} {index} has {n} tokens, and this model's maximum context length is {self.max_tokens}: "
                    "shorten it, or pass truncate=True"
                )
            # the end mark stays, as in the tokenizers of the models' own libraries
            ends = self.model.metadata.get("tokenizer.ggml.add_eos_token") == "true" or (
                self.model.metadata.get("tokenizer.ggml.model") == "bert"
            )
            kept = self.max_tokens - ends
            return np.concatenate([tokens[:kept], tokens[n - 1 :]]) if ends else tokens[:kept]
        if not n:
            raise InvalidRequest(f"{what} {index} is empty, and this model adds no tokens of its own: leave it out")
        return tokens

    def _tokens_per_batch(self, asked: int | None) -> int:
        """Batch size of one call."""
        if asked is None:
            return self.batch_tokens
        return integer("batch_tokens", asked, 1, max(self.batch_tokens, self.max_tokens))

    def close(self) -> None:
        """Free everything; calls that wait raise ClosedError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for queue in self._queues.values():
            queue.close()
        self._queues.clear()
        if self._owns:
            self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def check_texts(texts: Iterable[str]) -> list[str]:
    """A list of str, from any iterable of texts but a text itself, whose letters nobody means.

    Raises:
        InvalidRequest: something else is among them; the message names its index.
    """
    if isinstance(texts, (str, bytes)):
        given = "one text: put it in a list" if isinstance(texts, str) else "bytes: decode them"
        raise InvalidRequest(f"texts must be a list of str, not {given}")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):
        raise InvalidRequest(f"texts must be a list of str, not a {type(texts).__name__}: give one of its columns")
    try:
        found = list(texts)
    except TypeError:
        raise InvalidRequest(f"texts must be a str or a list of str, not {type(texts).__name__}") from None
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise InvalidRequest(f"text {i} must be a str, not {type(text).__name__} ({shown(text)})")
    return found
