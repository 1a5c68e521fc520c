"""What is served: a text model, an embedding model, or both, and their names."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ..async_llama import AsyncLlama
from ..embedder import Embedder
from ..errors import InvalidRequest
from ..gguf import GGUFReader
from ..hub.references import resolve
from .errors import Refused

Reference = str | os.PathLike[str]


class Served:
    """The models of a server.

    Attributes:
        llm: the text model, or None.
        embedder: the embedding model, or None.
        names: the name of each under which the API shows it.
    """

    def __init__(
        self,
        llm: AsyncLlama | None = None,
        embedder: Embedder | None = None,
        *,
        name: str | None = None,
        embedding_name: str | None = None,
    ) -> None:
        if llm is None and embedder is None:
            raise InvalidRequest("a server needs a model")
        self.llm, self.embedder, self.created = llm, embedder, int(time.time())
        self.names: dict[str, str] = {}
        if llm is not None:
            self.names["text"] = name or llm.llama.model.path.stem
        if embedder is not None:
            self.names["embedding"] = embedding_name or (name if llm is None else None) or embedder.model.path.stem

    @classmethod
    def load(
        cls,
        model: Reference,
        embedding_model: Reference | None = None,
        *,
        name: str | None = None,
        embedding_settings: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Served:
        """Load what the references name; `model` may itself be an embedding model.

        Raises:
            ModelError, BundleError, LoadError, InvalidRequest: as Llama and Embedder.
        """
        path = resolve(model)
        label = name or _label(model)
        embedding_settings = embedding_settings or {}
        if _embeds(path):
            if embedding_model is not None:
                raise InvalidRequest(f"{path.name} is an embedding model itself: give a text model, or only one model")
            return cls(None, Embedder(path, **embedding_settings), name=label)
        llm = AsyncLlama(path, **settings)
        try:
            if embedding_model is None:
                return cls(llm, name=label)
            embedder = Embedder(embedding_model, **embedding_settings)
        except BaseException:
            llm.close()
            raise
        return cls(llm, embedder, name=label, embedding_name=_label(embedding_model))

    def text(self, name: object) -> AsyncLlama:
        """The text model, if `name` means it; None means it too.

        Raises:
            Refused: 404, no such model.
            InvalidRequest: the model embeds.
        """
        self._check(name)
        if self.llm is None or (name is not None and name == self.names.get("embedding") != self.names["text"]):
            raise InvalidRequest("this is an embedding model, it generates no text: POST /v1/embeddings")
        return self.llm

    def embedding(self, name: object) -> Embedder:
        """The embedding model, if `name` means it; None means it too.

        Raises:
            Refused: 404, no such model.
            InvalidRequest: the model generates.
        """
        self._check(name)
        if self.embedder is None or (name is not None and name == self.names.get("text") != self.names["embedding"]):
            raise InvalidRequest("this model makes no embeddings: start the server with --embedding-model")
        return self.embedder

    def _check(self, name: object) -> None:
        if name is not None and name not in self.names.values():
            known = " and ".join(dict.fromkeys(self.names.values()))
            raise Refused(404, f"no model is called {name!r:.100}: there is {known}", "model_not_found")

    def close(self) -> None:
        """Free both."""
        if self.llm is not None:
            self.llm.close()
        if self.embedder is not None:
            self.embedder.close()


def _label(model: Reference) -> str:
    """A registry name as it is; of a file its name."""
    text = os.fspath(model)
    return Path(text).stem if text.endswith(".gguf") else text


def _embeds(path: Path) -> bool:
    """Whether a file says that it is made for embeddings: it pools, or looks at all of a text at once."""
    with GGUFReader(path) as reader:
        read, arch = reader.metadata.get, reader.architecture
        return read(f"{arch}.pooling_type", 0) in (1, 2, 3) or read(f"{arch}.attention.causal", True) is False
