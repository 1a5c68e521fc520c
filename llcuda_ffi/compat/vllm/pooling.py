"""The methods about vectors and scores of vLLM's LLM."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...embedder import Embedder
from ...embedding.reranker import Reranker
from ...engine.prompts import Prompt, split_prompts
from ...errors import InvalidRequest, UnsupportedModel
from ...keywords import check_keywords
from .outputs import Embedding, EmbeddingRequestOutput, Score, ScoringRequestOutput
from .sampling_params import PoolingParams, check_params

# of embed, encode and score; the latter without effect
_EMBED = ("prompts", "pooling_params", "use_tqdm", "truncate_prompt_tokens")
_OF_POOLING = ("lora_request", "tokenization_kwargs", "priority")


class Pooling:
    """embed, encode and score."""

    if TYPE_CHECKING:
        model: str | os.PathLike[str]
        _numbers: Iterator[str]

        def _part(self, kind: type, make: Callable[[], Any]) -> Any: ...

    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        truncate_prompt_tokens: int | None = None,
        **others: Any,
    ) -> list[EmbeddingRequestOutput]:
        """A vector for each prompt: a text, token ids, or a dict of either.

        Raises:
            InvalidRequest: a prompt is of another kind, or to be cut to fewer tokens than the model takes.
        """
        check_keywords(others, "embed", [*_EMBED, *_OF_POOLING])
        embedder: Embedder = self._part(Embedder, lambda: Embedder(self.model))
        params = pooling_params or PoolingParams()
        check_params(params, PoolingParams)
        if params.task == "token_embed":
            raise InvalidRequest("embed gives a vector for each prompt: encode(prompts, pooling_task='token_embed')")
        on = params.normalize if params.normalize is not None else params.use_activation
        cut = _truncates(embedder, truncate_prompt_tokens or params.truncate_prompt_tokens)
        tokens = [_embedded(embedder, one) for one in split_prompts(prompts)[0]]
        vectors, _ = embedder.encode_tokenized(
            tokens, normalize=True if on is None else on, dim=params.dimensions, truncate=cut
        )
        return [
            EmbeddingRequestOutput(next(self._numbers), Embedding(vector.tolist()), ids)
            for ids, vector in zip(tokens, vectors, strict=True)
        ]

    def encode(
        self,
        prompts: Prompt | Iterable[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        pooling_task: str | None = None,
        **others: Any,
    ) -> list[EmbeddingRequestOutput]:
        """As embed; with pooling_task="token_embed" the vector of each token of texts, as `outputs.data`.

        Raises:
            InvalidRequest: another pooling_task.
        """
        params = pooling_params or PoolingParams()
        task = pooling_task or params.task or "embed"
        if task == "embed":
            return self.embed(prompts, pooling_params, **others)
        if task != "token_embed":
            raise InvalidRequest(
                f"pooling_task is 'embed' or 'token_embed' here, not {task!r:.60}; score() scores pairs"
            )
        check_keywords(others, "encode", ["pooling_task", *_EMBED, *_OF_POOLING])
        embedder: Embedder = self._part(Embedder, lambda: Embedder(self.model))
        cut = _truncates(embedder, others.get("truncate_prompt_tokens") or params.truncate_prompt_tokens)
        texts: Any = [one["prompt"] if isinstance(one, Mapping) else one for one in split_prompts(prompts)[0]]
        rows = embedder.encode_tokens(texts, truncate=cut)
        return [
            EmbeddingRequestOutput(next(self._numbers), Embedding(row.tolist()), embedder.tokenize(text).tolist())
            for text, row in zip(texts, rows, strict=True)
        ]

    def score(
        self, data_1: str | Sequence[str], data_2: str | Sequence[str], **others: Any
    ) -> list[ScoringRequestOutput]:
        """How well each text of `data_2` fits that of `data_1`: by a reranker, or the cosine of an embedding model."""
        check_keywords(others, "score", ["data_1", "data_2", "chat_template", *_EMBED[1:], *_OF_POOLING])
        right = [data_2] if isinstance(data_2, str) else list(data_2)
        left = [data_1] * len(right) if isinstance(data_1, str) else list(data_1)
        if len(left) == 1:
            left *= len(right)
        if len(left) != len(right):
            raise InvalidRequest(f"{len(left)} and {len(right)} texts cannot be paired")
        scores = self._scores(left, right)
        return [ScoringRequestOutput(next(self._numbers), Score(float(score)), []) for score in scores]

    def _scores(self, left: Sequence[str], right: Sequence[str]) -> Iterable[float]:
        try:
            ranker: Reranker = self._part(Reranker, lambda: Reranker(self.model))
        except UnsupportedModel:
            embedder: Embedder = self._part(Embedder, lambda: Embedder(self.model))
            a, b = embedder.encode(left), embedder.encode(right)
            products: Iterable[float] = np.sum(a * b, axis=1)
            return products
        return [ranker.scores(query, [document])[0] for query, document in zip(left, right, strict=True)]


def _truncates(embedder: Embedder, asked: int | None) -> bool:
    """Whether texts that are too long are cut."""
    if asked is not None and 0 <= asked < embedder.max_tokens:
        raise InvalidRequest(
            f"truncate_prompt_tokens={asked}: -1 cuts texts to the {embedder.max_tokens} tokens that the model takes"
        )
    return asked is not None


def _embedded(embedder: Embedder, prompt: Any) -> list[int]:
    """The token ids of a prompt that is embedded."""
    given = prompt
    if isinstance(prompt, Mapping):
        given = prompt.get("prompt_token_ids")
        given = prompt.get("prompt") if given is None else given
    if isinstance(given, str):
        ids: list[int] = embedder.tokenize(given).tolist()
        return ids
    return embedder.model.vocab.ids(given).tolist()  # type: ignore[no-any-return]
