"""One model of a server: where it is, how it is opened, and what it is while it is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from ..async_llama import AsyncLlama
from ..chat.methods import prepare_all
from ..core.adapter import LoraAdapter
from ..embedder import Embedder
from ..embedding.reranker import Reranker
from ..engine.assembly import DEFAULT_N_CTX
from ..enums import PoolingType
from ..errors import InvalidRequest, LlcudaError, MissingExtra
from ..gguf import GGUFReader
from ..hub.references import resolve
from ..structured.guided import guide_of
from .media import modalities

Kind = Literal["text", "embedding", "rerank"]
Engine = AsyncLlama | Embedder | Reranker
Reference = str | os.PathLike[str]

KINDS: dict[Kind, type[Any]] = {"text": AsyncLlama, "embedding": Embedder, "rerank": Reranker}
_WORK: dict[Kind, str] = {
    "text": "generates text",
    "embedding": "is an embedding model (POST /v1/embeddings)",
    "rerank": "is a reranker (POST /v1/rerank)",
}
_Engine = TypeVar("_Engine", bound=Engine)


@dataclass(eq=False)
class ServedModel:
    """A model and its place in the server.

    Attributes:
        name: how the API shows it.
        kind: what it does.
        reference: path, registry name or repository file.
        settings: arguments of AsyncLlama, Embedder or Reranker.
        defaults: settings of generations whose requests do not name them (fields of SamplingParams).
        template: chat template in place of its own: Jinja text, or a built-in name.
        template_variables: what the template is given where a request does not say it (enable_thinking, …).
        aliases: other names that mean it.
        adapters: LoRA adapters' names and files; a name may stand for `model` in a request.
        pinned: never freed while the server runs.
        size: bytes that it takes when loaded, estimated.
        created: when it was listed, seconds since 1970.
        engine: what answers; None while it is not loaded.
        users: requests that use the engine now.
        waiting: requests that wait until it is loaded.
        last_used: when the last of them ended, on the monotonic clock.
        reloads: it can be loaded again after it was freed.
        leaving: it is being freed to make room: new requests wait until it is back.
    """

    name: str
    kind: Kind
    reference: Reference
    settings: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] = ()
    adapters: Mapping[str, Path] = field(default_factory=dict)
    pinned: bool = False
    size: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    engine: Engine | None = None
    users: int = 0
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    last_used: float = 0.0
    reloads: bool = True
    leaving: bool = False
    loras: dict[str, LoraAdapter] = field(default_factory=dict)
    lora_scales: dict[str, float] = field(default_factory=dict)

    @classmethod
    def find(
        cls,
        reference: Reference,
        *,
        name: str | None = None,
        settings: Mapping[Kind, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> ServedModel:
        """A model from what its file says; it is not loaded, but fetched where the reference is not a file here.

        Args:
            settings: arguments for each kind of model.
            **options: further attributes.

        Raises:
            ModelError: there is no such model, or its file is broken.
        """
        path = resolve(reference)
        with GGUFReader(path) as reader:
            kind = _kind(reader)
            given = (settings or {}).get(kind, {})
            # a tenth for buffers
            size = path.stat().st_size * 11 // 10 + (_kv_bytes(reader, given) if kind == "text" else 0)
        return cls(name or _label(reference), kind, path, settings=given, size=size, **options)

    @classmethod
    def of(cls, engine: Engine, name: str | None = None) -> ServedModel:
        """A model that is loaded already; the server closes it at its end."""
        kind = next(k for k, made in KINDS.items() if isinstance(engine, made))
        path = engine.llama.model.path if isinstance(engine, AsyncLlama) else engine.model.path
        return cls(name or path.stem, kind, path, pinned=True, reloads=False, engine=engine)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that means it."""
        return (self.name, *self.aliases, *self.adapters)

    @property
    def fingerprint(self) -> str:
        """OpenAI's system_fingerprint: changes with the file and its settings."""
        text = f"{os.fspath(self.reference)} {sorted(self.settings.items(), key=str)}"
        return "fp_" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]

    @property
    def failure(self) -> BaseException | None:
        """Why its engine is dead; None while it works, or is not loaded."""
        return self.engine.failure if isinstance(self.engine, AsyncLlama) else None

    def open(self) -> None:
        """Load it. Takes seconds: call it in a thread.

        Raises:
            ModelError, BundleError, LoadError, InvalidRequest: it cannot be had or loaded.
        """
        engine: Engine = KINDS[self.kind](self.reference, **self.settings)
        try:
            if isinstance(engine, AsyncLlama):
                model = engine.llama.model
                self.loras = {name: LoraAdapter.load(model, path) for name, path in self.adapters.items()}
                # llguidance reads the vocabulary under the interpreter's lock: now, not while streams run
                with contextlib.suppress(MissingExtra):
                    guide_of(model)
                # the process that renders templates, and what this one takes: not while the first chat waits
                with contextlib.suppress(LlcudaError):
                    prepare_all(engine.llama, [{"role": "user", "content": ""}], None, {"template": self.template})
        except BaseException:
            engine.close()
            raise
        self.engine = engine

    def close(self) -> None:
        """Free it. Call it in a thread where an event loop runs."""
        engine, self.engine = self.engine, None
        self.loras = {}
        if engine is not None:
            engine.close()

    def as_kind(self, kind: Kind) -> None:
        """Refuse to do what it cannot.

        Raises:
            InvalidRequest: it is of another kind.
        """
        if self.kind != kind:
            raise InvalidRequest(f"the model {self.name!r:.100} {_WORK[self.kind]}: name another one for this request")

    def text(self) -> AsyncLlama:
        """The engine of a text model that is loaded."""
        return self._engine(AsyncLlama)

    def embedder(self) -> Embedder:
        """The engine of an embedding model that is loaded."""
        return self._engine(Embedder)

    def reranker(self) -> Reranker:
        """The engine of a reranker that is loaded."""
        return self._engine(Reranker)

    def _engine(self, kind: type[_Engine]) -> _Engine:
        if not isinstance(self.engine, kind):
            raise InvalidRequest(f"{self.name} is not loaded as {kind.__name__}")
        return cast(_Engine, self.engine)

    def to_dict(self) -> dict[str, Any]:
        """An entry of GET /v1/models."""
        out: dict[str, Any] = {"id": self.name, "object": "model", "created": self.created, "owned_by": "llcuda_ffi"}
        loaded = self.engine is not None
        out.update(kind=self.kind, loaded=loaded, aliases=list(self.aliases))
        out["status"] = {"value": "loaded" if loaded else "unloaded"}  # llama.cpp's router says it so
        if isinstance(self.engine, AsyncLlama):
            model = self.engine.llama.model
            out["max_model_len"] = self.engine.llama.n_ctx
            out["modalities"] = modalities(self.engine.llama.media)
            out["meta"] = {
                "n_vocab": len(model.vocab),
                "n_ctx_train": model.n_ctx_train,
                "n_embd": model.n_embd,
                "n_params": model.n_params,
                "size": model.size,
            }
        return out


def _label(reference: Reference) -> str:
    """A registry name as it is; of a file its name."""
    text = os.fspath(reference)
    return Path(text).stem if text.endswith(".gguf") else text


def _kind(reader: GGUFReader) -> Kind:
    """What a file is made for."""
    read, arch = reader.metadata.get, reader.architecture
    pooling = read(f"{arch}.pooling_type", 0)
    if pooling == PoolingType.RANK:
        return "rerank"
    embeds = pooling in (1, 2, 3) or read(f"{arch}.attention.causal", True) is False
    return "embedding" if embeds else "text"


def _kv_bytes(reader: GGUFReader, settings: Mapping[str, Any]) -> int:
    """About how many bytes the KV cache takes, in F16, where the header tells."""
    arch = reader.architecture

    def read(key: str, default: int) -> int:
        value = reader.metadata.get(f"{arch}.{key}", default)
        return value if isinstance(value, int) else default  # lists that differ by layer: as if all were the default

    heads = read("attention.head_count", 1) or 1
    width = read("embedding_length", 0)
    per_head = read("attention.key_length", width // heads) + read("attention.value_length", width // heads)
    per_token = 2 * read("block_count", 0) * read("attention.head_count_kv", heads) * per_head
    longest = settings.get("n_ctx") or min(DEFAULT_N_CTX, read("context_length", DEFAULT_N_CTX))
    return int(per_token * (settings.get("kv_cells") or longest * settings.get("n_parallel", 8)))
