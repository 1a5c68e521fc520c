"""Texts to vectors."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .bundles import InstalledBundle
from .core.model import Model
from .embedding.text_model import TextModel, check_texts
from .enums import PoolingType
from .errors import InvalidRequest, UnsupportedModel
from .keywords import names_unknown
from .params import ModelParams, flag, integer

Array = npt.NDArray[Any]
_PROMPT = "llcuda_ffi.prompt."
_MANY = 5000  # with so many texts on a terminal, a progress bar is shown unless told otherwise


@names_unknown
class Embedder(TextModel):
    """A model that turns texts into vectors. Safe to use from many threads; their texts share batches.

    Attributes:
        model: the loaded model.
        dim: numbers of a vector.
        max_tokens: most tokens of a text, special ones included.
        prompts: the prompts that the model's metadata name, e.g. "query" and "document".
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model,
        *,
        device: str = "auto",
        n_gpu_layers: int | Literal["auto"] = "auto",
        pooling: str | PoolingType | None = None,
        max_tokens: int | None = None,
        batch_tokens: int | None = None,
        n_threads: int | None = None,
        n_contexts: int | None = None,
        flash_attn: bool | None = None,
        bundle: str | InstalledBundle | None = None,
        trial: bool = True,
        model_params: ModelParams | None = None,
    ) -> None:
        """Load a model for embeddings.

        Args:
            model: a path, a registry name ("all-minilm-l6-v2"), `repo:file.gguf`, or a loaded Model.
            pooling: "mean", "cls", "last" or "none"; None means as the model says (mean where it says nothing).
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
        self._asked = _pooling(pooling)
        super().__init__(
            model,
            device=device,
            n_gpu_layers=n_gpu_layers,
            max_tokens=max_tokens,
            batch_tokens=batch_tokens,
            n_threads=n_threads,
            n_contexts=n_contexts,
            flash_attn=flash_attn,
            bundle=bundle,
            trial=trial,
            model_params=model_params,
        )
        self.dim = self.model.n_embd_out
        self.prompts: Mapping[str, str] = MappingProxyType(
            {key[len(_PROMPT) :]: text for key, text in self.model.metadata.items() if key.startswith(_PROMPT)}
        )

    def _suits(self) -> None:
        self._pooling = self._asked if self._asked is not None else _model_pooling(self.model)
        if self._pooling == PoolingType.RANK:
            raise UnsupportedModel(f"{self.model.path.name} scores pairs of texts: use Reranker")
        self._queue(self._pooling)

    def __repr__(self) -> str:
        return f"<Embedder {self.model.path.name} dim={self.dim} {self._pooling.name.lower()} pooling>"

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        normalize: bool = True,
        batch_tokens: int | None = None,
        truncate: bool = False,
        prompt: str | None = None,
        dim: int | None = None,
        show_progress: bool | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> Array:
        """Vectors of texts.

        Args:
            texts: one text, or a list.
            normalize: to length 1.
            batch_tokens: most tokens computed together in this call.
            truncate: cut texts that are too long instead of raising.
            prompt: the name of one of `prompts`, or a text; put before each text.
            dim: keep the first so many numbers (models trained for it: Matryoshka), normalized again.
            show_progress: a bar on stderr; None: for many texts on a terminal.
            dtype: of the result.

        Returns:
            (dim,) for one text, (n, dim) for a list, in its order.

        Raises:
            ContextOverflow: a text is too long; the message names its index.
            InvalidRequest: an argument is of the wrong type or out of range.
            DecodeError: libllama failed.
            ClosedError: the embedder is closed.
        """
        if self._pooling == PoolingType.NONE:
            raise InvalidRequest("this embedder does not pool: use encode_tokens(), or make it with another pooling")
        kind = np.dtype(dtype)
        if kind.kind != "f":
            raise InvalidRequest(f"dtype must be a floating-point type, not {kind}")
        single = isinstance(texts, str)
        found = self._compute(
            [texts] if isinstance(texts, str) else texts, self._pooling, batch_tokens, truncate, prompt, show_progress
        )
        result = np.ascontiguousarray(self._vectors(found, normalize, dim), kind)
        return result[0] if single else result

    def encode_tokenized(
        self,
        tokens: Sequence[Sequence[int] | npt.NDArray[np.int32]],
        *,
        normalize: bool = True,
        truncate: bool = False,
        dim: int | None = None,
    ) -> tuple[Array, int]:
        """Vectors of texts that are token ids already, as `tokenize` gives them; and how many tokens were computed.

        Returns:
            float32 of shape (n, dim), and the number.

        Raises:
            as `encode`; also InvalidRequest for ids outside the vocabulary.
        """
        if self._pooling == PoolingType.NONE:
            raise InvalidRequest("this embedder does not pool: make it with another pooling")
        queue, vocab = self._queue(self._pooling), self.model.vocab
        fitting = [self._fit(vocab.ids(ids), i, flag("truncate", truncate)) for i, ids in enumerate(tokens)]
        found = queue.compute(fitting, self.batch_tokens) if fitting else []
        return self._vectors(found, normalize, dim), sum(map(len, fitting))

    def _vectors(self, found: Sequence[npt.NDArray[np.float32]], normalize: bool, dim: int | None) -> Array:
        """Rows as one array (n, dim), cut and normalized."""
        width = self.dim if dim is None else integer("dim", dim, 1, self.dim)
        flag("normalize", normalize)
        vectors: Array = np.stack(found)[:, :width] if found else np.empty((0, width), np.float32)
        if normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.where(lengths == 0, 1, lengths)
        return vectors

    def encode_tokens(
        self, texts: str | Sequence[str], *, truncate: bool = False, prompt: str | None = None
    ) -> Array | list[Array]:
        """The embedding of every token, float32 of shape (n_tokens, dim), special tokens included; not normalized.

        Raises:
            as `encode`.
        """
        if isinstance(texts, str):
            return self._compute([texts], PoolingType.NONE, None, truncate, prompt, False)[0]
        return list(self._compute(texts, PoolingType.NONE, None, truncate, prompt, False))

    async def aencode(self, texts: str | Sequence[str], **options: Any) -> Array:
        """`encode` in another thread; the options are the same."""
        return await asyncio.to_thread(lambda: self.encode(texts, **options))

    def tokenize(self, text: str, prompt: str | None = None) -> npt.NDArray[np.int32]:
        """The tokens that `encode` computes for a text, of any length."""
        return self._tokens(self._prompt(prompt) + text)

    def _compute(
        self,
        texts: Sequence[str],
        pooling: PoolingType,
        batch_tokens: int | None,
        truncate: bool,
        prompt: str | None,
        show_progress: bool | None,
    ) -> list[npt.NDArray[np.float32]]:
        queue, before = self._queue(pooling), self._prompt(prompt)
        per_pack = self._tokens_per_pack(batch_tokens)
        flag("truncate", truncate)
        tokens = [self._fit(self._tokens(before + text), i, truncate) for i, text in enumerate(check_texts(texts))]
        if not tokens:
            return []
        with _Bar(len(tokens), show_progress) as report:
            return queue.compute(tokens, per_pack, report)

    def _prompt(self, prompt: str | None) -> str:
        if prompt is None:
            return ""
        if not isinstance(prompt, str):
            raise InvalidRequest(f"prompt must be a str, not {type(prompt).__name__}")
        return self.prompts.get(prompt, prompt)


def _pooling(pooling: str | PoolingType | None) -> PoolingType | None:
    known = {"none": PoolingType.NONE, "mean": PoolingType.MEAN, "cls": PoolingType.CLS, "last": PoolingType.LAST}
    if pooling is None:
        return None
    found = known.get(pooling.lower()) if isinstance(pooling, str) else pooling
    if found is None:
        raise InvalidRequest(f"pooling must be one of {', '.join(known)}, not {pooling!r}")
    return found


def _model_pooling(model: Model) -> PoolingType:
    stated = model.metadata.get(f"{model.architecture}.pooling_type", "")
    found = PoolingType(int(stated)) if stated.isdigit() and int(stated) <= 4 else PoolingType.MEAN
    return PoolingType.MEAN if found == PoolingType.NONE else found


class _Bar:
    """A progress bar with rate and remaining time, where it is wanted."""

    def __init__(self, total: int, show: bool | None) -> None:
        wanted = show if show is not None else total >= _MANY and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        if wanted:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=" texts", file=sys.stderr)

    def __enter__(self) -> Callable[[int], object] | None:
        return None if self._bar is None else self._bar.update

    def __exit__(self, *_exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
