"""The file under check as the rules see it: its architecture, its hyperparameters, how to refuse it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from ...errors import InvalidModelFile, UnsupportedModel
from ..reader import GGUFReader, Metadata
from ..types import ValueType
from .overrides import Overridden, Override

INTEGERS = (ValueType.UINT32, ValueType.INT32, ValueType.BOOL)


class Subject:
    """A GGUF under check. Getters answer for the type that libllama takes: others it refuses by itself."""

    def __init__(self, reader: GGUFReader, overrides: Mapping[str, Override] | None = None) -> None:
        self.reader = reader
        self.metadata: Metadata | Overridden = reader.metadata
        if overrides:
            self.metadata = Overridden(reader.metadata, overrides)
        self.tensors = reader.tensors
        name = self.text("general.architecture") or ""
        # libllama knows no other names, and this one is put into keys and messages
        self.architecture = name if name.isascii() and name.isprintable() else ""

    def text(self, key: str) -> str | None:
        """A string, as C sees it: up to the first NUL."""
        value = self._scalar(key, ValueType.STRING)
        return None if value is None else str(value).split("\0", 1)[0]

    def key(self, name: str) -> str:
        """The full key of a hyperparameter: "block_count" → "llama.block_count"."""
        return f"{self.architecture}.{name}"

    def u32(self, name: str) -> int | None:
        """A uint32 hyperparameter, None where it is missing or of another type."""
        value = self._scalar(self.key(name), ValueType.UINT32)
        return None if value is None else int(value)

    def f32(self, name: str) -> float | None:
        """A float32 hyperparameter."""
        value = self._scalar(self.key(name), ValueType.FLOAT32)
        return None if value is None else float(value)

    def token(self, name: str) -> int | None:
        """The id under tokenizer.ggml.NAME_token_id."""
        value = self._scalar(f"tokenizer.ggml.{name}_token_id", ValueType.UINT32)
        return None if value is None else int(value)

    def flag(self, key: str) -> bool | None:
        """A bool."""
        value = self._scalar(key, ValueType.BOOL)
        return None if value is None else bool(value)

    def _scalar(self, key: str, kind: ValueType) -> Any:
        found = self.metadata.field(key)
        return self.metadata[key] if found is not None and found.type == kind else None

    def per_layer(self, name: str, layers: int) -> list[int] | None:
        """A hyperparameter for each layer, written once or as an array of that length."""
        found = self.metadata.field(self.key(name))
        if found is None:
            return None
        if found.item_type is None:
            one = self.u32(name)
            return None if one is None else [one] * layers
        value = self.metadata[self.key(name)]
        if found.item_type in INTEGERS and found.count == layers:
            return [int(x) for x in np.asarray(value).astype(np.uint32)]
        return None

    def invalid(self, message: str) -> NoReturn:
        """Refuse: parts of the file do not fit each other."""
        raise InvalidModelFile(f"{self.reader.path}: {message}")

    def unsupported(self, message: str) -> NoReturn:
        """Refuse: sound, but libllama could not run it."""
        raise UnsupportedModel(f"{self.reader.path}: {message}")
