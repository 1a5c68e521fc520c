"""sentence-transformers' SentenceTransformer over Embedder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...embedder import Embedder, Texts
from ...embedding.vectors import to_tensor
from ...errors import InvalidRequest
from ...keywords import check_keywords, names_methods
from .similarity_functions import SimilarityFunction

_WITHOUT_EFFECT = (
    "modules", "trust_remote_code", "revision", "local_files_only", "token", "model_kwargs", "tokenizer_kwargs",
    "config_kwargs", "cache_folder", "backend", "use_auth_token", "processor_kwargs", "model_card_data",
)  # fmt: skip

_OPTIONS = (
    "inputs", "sentences", "prompt_name", "prompt", "batch_size", "show_progress_bar", "output_value", "precision",
    "convert_to_numpy", "convert_to_tensor", "device", "normalize_embeddings", "truncate_dim", "pool", "chunk_size",
)  # fmt: skip


@names_methods
class SentenceTransformer:
    """Texts to vectors, as sentence-transformers has it: texts that are too long are cut.

        model = SentenceTransformer("all-MiniLM-L6-v2")
        embeddings = model.encode(["The weather is lovely today."])

    Vectors have length 1, which is what the models that are used here are trained for; normalize_embeddings=False
    leaves them as the model gives them.

    Attributes:
        embedder: the llcuda_ffi.Embedder behind it.
        default_prompt_name: the prompt that encode uses where none is named.
        truncate_dim: numbers that encode keeps of a vector; None keeps all.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        device: str | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        **settings: Any,
    ) -> None:
        """Load a model: a GGUF file, a name of the registry (with or without its owner), or owner/repo.

        Raises:
            UnknownSetting: a keyword that sentence-transformers does not take either.
            ModelNotFound: there is no such model, or its repository has no GGUF files.
        """
        check_keywords(
            settings,
            "SentenceTransformer",
            ["device", "prompts", "default_prompt_name", "truncate_dim", "similarity_fn_name", *_WITHOUT_EFFECT],
        )
        self.similarity_fn_name = settings.get("similarity_fn_name") or "cosine"
        self.embedder = Embedder(model_name_or_path, device=str(device or "auto"), prompts=prompts)
        self._longest = self.embedder.max_tokens
        self._prompts: dict[str, str] | None = None
        self.truncate_dim = truncate_dim
        self.default_prompt_name = default_prompt_name
        if default_prompt_name is not None and default_prompt_name not in self.prompts:
            self.embedder.close()
            raise InvalidRequest(
                f"there is no prompt {default_prompt_name!r:.60} for default_prompt_name: prompts has "
                f"{', '.join(map(repr, self.prompts)) or 'none'}"
            )

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts by name: the model's, or those that were set."""
        return dict(self.embedder.prompts if self._prompts is None else self._prompts)

    @prompts.setter
    def prompts(self, value: Mapping[str, str]) -> None:
        self._prompts = dict(value)

    @property
    def similarity_fn_name(self) -> str:
        """What `similarity` computes: cosine, dot, euclidean or manhattan."""
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: str) -> None:
        self._similarity: str = SimilarityFunction(value).value

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "cuda"."""
        return "cuda" if self.embedder.model.placement.on_gpu else "cpu"

    def eval(self) -> SentenceTransformer:
        """Itself: nothing is trained here."""
        return self

    def to(self, device: Any) -> SentenceTransformer:
        """Itself, where it is on that device already.

        Raises:
            InvalidRequest: it is on another: SentenceTransformer(name, device=…) chooses.
        """
        if not str(device).startswith(self.device):
            raise InvalidRequest(f"the model is on {self.device}: SentenceTransformer(name, device={str(device)!r})")
        return self

    def cpu(self) -> SentenceTransformer:
        """As to("cpu")."""
        return self.to("cpu")

    def cuda(self, device: int | None = None) -> SentenceTransformer:
        """As to("cuda")."""
        return self.to("cuda")

    @contextlib.contextmanager
    def truncate_sentence_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """While inside, `encode` keeps so many numbers."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    @property
    def max_seq_length(self) -> int:
        """Most tokens of a text; longer ones are cut."""
        return self.embedder.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.embedder.max_tokens = max(1, min(value, self._longest))

    def get_max_seq_length(self) -> int:
        """As max_seq_length."""
        return self.max_seq_length

    def get_sentence_embedding_dimension(self) -> int:
        """Numbers of a vector."""
        return self.truncate_dim or self.embedder.dim

    get_embedding_dimension = get_sentence_embedding_dimension

    def encode(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: Any = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **others: Any,
    ) -> Any:
        """Vectors of texts: an array, a list of arrays (convert_to_numpy=False), or a tensor.

        Args:
            **others: sentences, the former name of inputs.

        Raises:
            InvalidRequest: the model has no prompt of that name, or another output_value is asked for.
        """
        check_keywords(others, "encode", ["task", *_OPTIONS])
        texts = others.get("sentences") if inputs is None else inputs
        if texts is None:
            raise InvalidRequest("encode() takes a text or a list of texts")
        if prompt is None and prompt_name is None and self.default_prompt_name in self.prompts:
            prompt_name = self.default_prompt_name
        if prompt is not None:
            prompt_name = None
        elif self._prompts is not None and prompt_name in self._prompts:
            prompt, prompt_name = self._prompts[prompt_name], None
        if output_value == "token_embeddings":
            rows = self.embedder.encode_tokens(texts, truncate=True, prompt=prompt, prompt_name=prompt_name)
            if not convert_to_tensor:
                return rows
            return to_tensor(rows) if isinstance(rows, np.ndarray) else [to_tensor(row) for row in rows]
        if output_value != "sentence_embedding":
            raise InvalidRequest(f"output_value is sentence_embedding or token_embeddings, not {output_value!r:.60}")
        found = self.embedder.encode(
            texts,
            prompt=prompt,
            prompt_name=prompt_name,
            show_progress=show_progress_bar,
            precision=precision,
            normalize=normalize_embeddings,
            dim=truncate_dim or self.truncate_dim,
            truncate=True,
        )
        if convert_to_tensor:
            return to_tensor(found)
        return found if convert_to_numpy or isinstance(texts, str) else list(found)

    def encode_query(self, inputs: Texts | None = None, **options: Any) -> Any:
        """`encode` with the prompt for queries, where the model has one."""
        return self.encode(inputs, **{**self._for("query"), **options})

    def encode_document(self, inputs: Texts | None = None, **options: Any) -> Any:
        """`encode` with the prompt for documents, where the model has one."""
        return self.encode(inputs, **{**self._for("document", "passage", "corpus"), **options})

    def _for(self, *names: str) -> dict[str, str]:
        return next(({"prompt_name": name} for name in names if name in self.prompts), {})

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """How alike every vector of the one and every one of the other are, by `similarity_fn_name`."""
        return SimilarityFunction.to_similarity_fn(self._similarity)(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """How alike each vector of the one and the same of the other are, by `similarity_fn_name`."""
        return SimilarityFunction.to_similarity_pairwise_fn(self._similarity)(embeddings1, embeddings2)

    def tokenize(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        """{"input_ids": …}, special tokens included."""
        return {"input_ids": [self.embedder.tokenize(text).tolist() for text in texts]}

    def start_multi_process_pool(self, target_devices: Sequence[str] | None = None) -> dict[str, Any]:
        """Nothing to start: encode uses every core, or the GPU, from this process."""
        return {"devices": target_devices}

    def encode_multi_process(self, sentences: Texts, pool: Any = None, **options: Any) -> Any:
        """As encode."""
        return self.encode(sentences, **{k: v for k, v in options.items() if k != "chunk_size"})

    @staticmethod
    def stop_multi_process_pool(pool: Any) -> None:
        """Nothing to stop."""

    def close(self) -> None:
        """Free the model."""
        self.embedder.close()
