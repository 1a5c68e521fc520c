"""sentence-transformers' CrossEncoder over Reranker."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...embedding.reranker import Reranker
from ...embedding.text_model import check_texts
from ...embedding.vectors import to_tensor
from ...errors import InvalidRequest
from ...keywords import check_keywords, names_methods

_OPTIONS = (
    "inputs", "sentences", "prompt_name", "prompt", "batch_size", "show_progress_bar", "activation_fn",
    "activation_fct", "apply_softmax", "convert_to_numpy", "convert_to_tensor", "device", "pool", "chunk_size",
    "num_workers",
)  # fmt: skip
_WITHOUT_EFFECT = (
    "modules", "keep_in_fp32_modules", "tokenizer_args", "config_args",
    "num_labels", "trust_remote_code", "revision", "local_files_only", "token", "model_kwargs", "tokenizer_kwargs",
    "config_kwargs", "cache_folder", "backend", "model_card_data", "automodel_args", "processor_kwargs",
)  # fmt: skip


@names_methods
class CrossEncoder:
    """Scores pairs of texts.

    Attributes:
        reranker: the llcuda_ffi.Reranker behind it.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        max_length: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        """Load a reranker: a GGUF file with a classification head, or a name.

        Raises:
            UnsupportedModel: the model has no classification head.
            UnknownSetting: a keyword that sentence-transformers does not take either.
        """
        activations = ("activation_fn", "default_activation_function")
        check_keywords(settings, "CrossEncoder", ["max_length", "device", *activations, *_WITHOUT_EFFECT])
        self._activation = next((settings[name] for name in activations if settings.get(name) is not None), None)
        self.reranker = Reranker(model_name_or_path, device=str(device or "auto"), max_tokens=max_length)

    def predict(
        self,
        inputs: Sequence[Any] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        apply_softmax: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **others: Any,
    ) -> Any:
        """The score of each (query, document): raw, or after `activation_fn`. One pair gives one score.

        Args:
            activation_fn: gets and gives a tensor where torch is imported, else an array.
            **others: sentences and activation_fct, the former names of inputs and activation_fn; device, pool,
                chunk_size and num_workers, without effect.

        Raises:
            InvalidRequest: these are no pairs of texts.
            UnknownSetting: a keyword that sentence-transformers does not take either.
        """
        check_keywords(others, "predict", _OPTIONS)
        if others.get("prompt") is not None or others.get("prompt_name") is not None:
            raise InvalidRequest("a reranker's prompt is the one of its file: put other words before the query")
        given = list(others.get("sentences", ()) if inputs is None else inputs)
        single = len(given) == 2 and all(isinstance(text, str) for text in given)
        pairs = [given] if single else given
        if not all(isinstance(pair, (tuple, list, np.ndarray)) and len(pair) == 2 for pair in pairs):
            raise InvalidRequest("predict() takes pairs of texts: (query, document), or a list of them")
        by_query: dict[str, list[int]] = {}
        for i, (query, _document) in enumerate(pairs):
            by_query.setdefault(query, []).append(i)
        scores = np.empty(len(pairs), np.float32)
        for query, places in by_query.items():
            scores[places] = self.reranker.scores(query, [pairs[i][1] for i in places], truncate=True)
        if apply_softmax:
            raise InvalidRequest("a reranker gives one score: softmax would make each of them 1")
        activation = activation_fn or others.get("activation_fct") or self._activation
        result: Any = scores
        if activation is not None:
            result = activation(to_tensor(scores) if "torch" in sys.modules else scores)
            if hasattr(result, "detach"):
                result = result.detach().cpu().numpy()
        if convert_to_tensor:
            result = to_tensor(result)
        if not convert_to_numpy and not convert_to_tensor and not single:
            result = list(result)
        return result[0] if single else result

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Documents as {"corpus_id", "score"}, and "text" where wanted; best first.

        Args:
            **options: of `predict`.
        """
        texts = check_texts(documents)
        scores = self.predict([(query, text) for text in texts], **options)
        ranked = sorted(enumerate(map(float, scores)), key=lambda one: -one[1])[:top_k]
        return [
            {"corpus_id": i, "score": score, **({"text": texts[i]} if return_documents else {})} for i, score in ranked
        ]

    def close(self) -> None:
        """Free the model."""
        self.reranker.close()
