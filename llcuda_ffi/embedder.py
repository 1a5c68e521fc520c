"""Texts to vectors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from .bundles import InstalledBundle
from .core.model import Model
from .embedding.options import EncodeOptions, encode_options
from .embedding.precision import quantize_embeddings
from .embedding.text_model import TextModel, check_texts
from .embedding.vectors import as_rows, normalized, to_tensor
from .enums import PoolingType
from .errors import InvalidRequest, UnsupportedModel
from .fetch.progress import Progress, on_screen
from .html_view import table
from .hub.registry import prompts_of
from .keywords import names_methods, names_unknown
from .params import ModelParams, flag, integer, items, mapping, shown

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

Array = npt.NDArray[Any]
Texts = str | Iterable[str]
_PROMPT = "llcuda_ffi.prompt."
_MANY = 5000  # with so many texts on a terminal, a progress bar is shown unless told otherwise


@names_methods
@names_unknown
class Embedder(TextModel):
    """A model that turns texts into vectors. Safe to use from many threads; their texts share batches.

    Attributes:
        model: the loaded model.
        dim: numbers of a vector.
        max_tokens: most tokens of a text, special ones included.
        prompts: what the model wants before a text, by purpose, e.g. "query" and "document": as its metadata say,
            or the registry for models that it knows.
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
        prompts: Mapping[str, str] | None = None,
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
            prompts: texts by name, over those that the model states.
            trial: have a file that was not seen before opened by a child process first, as Llama does.

        Raises:
            ModelNotFound, InvalidModelFile, UnsupportedModel, ModelError: the model cannot be used.
            InvalidRequest: an argument is out of range.
        """
        self._asked = _pooling(pooling)
        given = mapping("prompts", prompts)
        if not all(isinstance(text, str) for text in (*given, *given.values())):
            raise InvalidRequest("prompts must be texts by their names")
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
        stated = {key[len(_PROMPT) :]: text for key, text in self.model.metadata.items() if key.startswith(_PROMPT)}
        self.prompts: Mapping[str, str] = MappingProxyType({**prompts_of(self.model.path.name), **stated, **given})

    def _suits(self) -> None:
        self._pooling = self._asked if self._asked is not None else _model_pooling(self.model)
        if self._pooling == PoolingType.RANK:
            raise UnsupportedModel(f"{self.model.path.name} scores pairs of texts: use Reranker")
        self._queue(self._pooling)

    def __repr__(self) -> str:
        return f"<Embedder {self.model.path.name} dim={self.dim} {self._pooling.name.lower()} pooling>"

    def _repr_html_(self) -> str:
        facts = {"model": self.model.path.name, "dim": self.dim, "pooling": self._pooling.name.lower()}
        facts |= {"most tokens of a text": self.max_tokens}
        return table([*facts.items(), *((f"prompt {name!r}", repr(text)) for name, text in self.prompts.items())])

    @overload
    def encode(
        self, texts: Texts, *, convert_to_tensor: Literal[True], **options: Unpack[EncodeOptions]
    ) -> torch.Tensor: ...
    @overload
    def encode(
        self, texts: Texts, *, convert_to_tensor: Literal[False] = False, **options: Unpack[EncodeOptions]
    ) -> Array: ...
    def encode(self, texts: Texts, *, convert_to_tensor: bool = False, **options: Unpack[EncodeOptions]) -> Any:
        """Vectors of texts. Equal texts are computed once.

        Args:
            texts: one text, or any iterable of texts: a list, a Series, an array, a generator.
            convert_to_tensor: give a torch.Tensor.
            **options: see EncodeOptions.

        Returns:
            (dim,) for one text, (n, dim) for many, in their order.

        Raises:
            ContextOverflow: a text is too long; the message names its index.
            InvalidRequest: an argument is of the wrong type or out of range, or the model has no prompt of that name.
            MissingExtra: a tensor is asked for and torch is not installed.
            DecodeError: libllama failed.
            ClosedError: the embedder is closed.
        """
        if self._pooling == PoolingType.NONE:
            raise InvalidRequest("this embedder does not pool: use encode_tokens(), or make it with another pooling")
        o = encode_options(options)
        before = self._prompt(o.prompt, o.prompt_name)
        single = isinstance(texts, str)
        given = [texts] if isinstance(texts, str) else texts
        found = self._compute(given, self._pooling, o.batch_tokens, o.truncate, before, o.show_progress)
        vectors = self._vectors(found, o.normalize, o.dim)
        if o.precision == "float32":
            result = np.ascontiguousarray(vectors, o.dtype)
        else:
            result = quantize_embeddings(vectors, o.precision)
        if single:
            result = result[0]
        return to_tensor(result) if convert_to_tensor else result

    def encode_query(self, texts: Texts, *, convert_to_tensor: bool = False, **options: Unpack[EncodeOptions]) -> Any:
        """`encode` with the model's prompt for queries, where it has one ("query")."""
        return self._encode_for(texts, ("query",), convert_to_tensor, options)

    def encode_document(
        self, texts: Texts, *, convert_to_tensor: bool = False, **options: Unpack[EncodeOptions]
    ) -> Any:
        """`encode` with the model's prompt for documents, where it has one ("document", "passage" or "corpus")."""
        return self._encode_for(texts, ("document", "passage", "corpus"), convert_to_tensor, options)

    def _encode_for(self, texts: Texts, purposes: Sequence[str], tensor: bool, options: Mapping[str, Any]) -> Any:
        named = next(({"prompt_name": name} for name in purposes if name in self.prompts), {})
        found: Any = self.encode(texts, convert_to_tensor=tensor, **{**named, **options})  # type: ignore[call-overload]
        return found

    @staticmethod
    def similarity(a: Array, b: Array) -> Array:
        """The cosine of every vector of `a` with every one of `b`: (n, m) float32; rows need not be normalized.

        Raises:
            InvalidRequest: they are no vectors of numbers, or not of one width.
        """
        try:
            left, right = (normalized(np.atleast_2d(as_rows(one))) for one in (a, b))
            product: Array = left @ right.T
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"similarity() takes vectors of one width: {error}") from None
        return product

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
        flag("truncate", truncate)
        fitting = [self._fit(vocab.ids(ids), i, truncate) for i, ids in enumerate(items("tokens", tokens))]
        found = queue.compute(fitting, self.batch_tokens) if fitting else []
        return self._vectors(found, normalize, dim), sum(map(len, fitting))

    def _vectors(self, found: Sequence[npt.NDArray[np.float32]], normalize: bool, dim: int | None) -> Array:
        """Rows as one array (n, dim), cut and normalized."""
        width = self.dim if dim is None else integer("dim", dim, 1, self.dim)
        flag("normalize", normalize)
        vectors: Array = np.stack(found)[:, :width] if found else np.empty((0, width), np.float32)
        return normalized(vectors) if normalize else vectors

    def encode_tokens(
        self,
        texts: Texts,
        *,
        truncate: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> Array | list[Array]:
        """The embedding of every token, float32 of shape (n_tokens, dim), special tokens included; not normalized.

        Raises:
            as `encode`.
        """
        before = self._prompt(prompt, prompt_name)
        given = [texts] if isinstance(texts, str) else texts
        found = self._compute(given, PoolingType.NONE, None, truncate, before, False)
        return found[0] if isinstance(texts, str) else list(found)

    async def aencode(self, texts: Texts, **options: Any) -> Any:
        """`encode` in another thread; the options are the same."""
        return await asyncio.to_thread(lambda: self.encode(texts, **options))

    def tokenize(self, text: str, prompt: str | None = None, prompt_name: str | None = None) -> npt.NDArray[np.int32]:
        """The tokens that `encode` computes for a text, of any length."""
        (given,) = check_texts([text])
        with self._call():
            return self._tokens(self._prompt(prompt, prompt_name) + given)

    def _compute(
        self,
        texts: Iterable[str],
        pooling: PoolingType,
        batch_tokens: int | None,
        truncate: bool,
        before: str,
        show_progress: bool | None,
    ) -> list[npt.NDArray[np.float32]]:
        queue = self._queue(pooling)
        per_batch = self._tokens_per_batch(batch_tokens)
        flag("truncate", truncate)
        given = check_texts(texts)
        places: dict[str, int] = {}
        tokens: list[npt.NDArray[np.int32]] = []
        with self._call():
            for i, text in enumerate(given):
                if text not in places:
                    places[text] = len(tokens)
                    tokens.append(self._fit(self._tokens(before + text), i, truncate))
        if not tokens:
            return []
        show = on_screen() and len(tokens) >= _MANY if show_progress is None else show_progress
        with Progress("", len(tokens), show, unit="text") as shows:
            found = queue.compute(tokens, per_batch, shows.advance)
        return found if len(found) == len(given) else [found[places[text]] for text in given]

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        """What stands before a text."""
        if name is None:
            if prompt is not None and not isinstance(prompt, str):
                raise InvalidRequest(f"prompt must be a str, not {type(prompt).__name__}")
            return prompt or ""
        if prompt is not None:
            raise InvalidRequest("prompt is a text and prompt_name the name of one: give one of them")
        found = self.prompts.get(name) if isinstance(name, str) else None
        if found is None:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise InvalidRequest(
                f"{self.model.path.name} has no prompt {shown(name)}; it has {known}: give the text itself as "
                "prompt=, or Embedder(prompts={...})"
            )
        return found


def _pooling(pooling: str | PoolingType | None) -> PoolingType | None:
    known = {"none": PoolingType.NONE, "mean": PoolingType.MEAN, "cls": PoolingType.CLS, "last": PoolingType.LAST}
    if pooling is None:
        return None
    found = known.get(pooling.lower()) if isinstance(pooling, str) else pooling
    if not isinstance(found, PoolingType):
        raise InvalidRequest(f"pooling must be one of {', '.join(known)}, not {shown(pooling)}")
    return found


def _model_pooling(model: Model) -> PoolingType:
    stated = model.metadata.get(f"{model.architecture}.pooling_type", "")
    found = PoolingType(int(stated)) if stated.isdigit() and int(stated) <= 4 else PoolingType.MEAN
    return PoolingType.MEAN if found == PoolingType.NONE else found
