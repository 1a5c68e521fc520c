"""Metadata as libllama sees it when a load overrides some of it (kv_overrides)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..layout import Field
from ..reader import Metadata
from ..types import NUMBERS, ValueType

Override = int | float | bool | str

_INTEGERS = frozenset(ValueType(kind) for kind, code in NUMBERS.items() if np.dtype(code).kind in "iu")


def _fitting(value: Override, field: Field | None) -> ValueType | None:
    """The type that an override takes; None where libllama ignores it: an array, or a value of another kind."""
    if isinstance(value, bool):
        kinds, new = frozenset({ValueType.BOOL}), ValueType.BOOL
    elif isinstance(value, int):
        kinds, new = _INTEGERS, ValueType.UINT32
    elif isinstance(value, float):
        kinds, new = frozenset({ValueType.FLOAT32, ValueType.FLOAT64}), ValueType.FLOAT32
    else:
        kinds, new = frozenset({ValueType.STRING}), ValueType.STRING
    if field is None:
        return new
    return field.type if field.item_type is None and field.type in kinds else None


class Overridden(Mapping[str, Any]):
    """A file's metadata with overrides on top; the same methods as Metadata."""

    def __init__(self, metadata: Metadata, overrides: Mapping[str, Override]) -> None:
        self._metadata = metadata
        self._fields: dict[str, Field] = {}
        self._values: dict[str, Any] = {}
        for key, value in overrides.items():
            kind = _fitting(value, metadata.field(key))
            if kind is None:
                continue
            self._fields[key] = Field(key, kind, None, 0, 1)
            if isinstance(value, str | bool):
                self._values[key] = value
            elif isinstance(value, int):  # C casts: what does not fit is cut off
                self._values[key] = np.array(value, np.int64).astype(NUMBERS[kind]).item()
            else:
                with np.errstate(over="ignore"):
                    self._values[key] = np.array(value).astype(NUMBERS[kind]).item()

    def __getitem__(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._metadata[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._metadata
        yield from (key for key in self._values if key not in self._metadata)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def field(self, key: str) -> Field | None:
        """The entry's type; its offset means nothing where it was overridden."""
        return self._fields.get(key) or self._metadata.field(key)

    def raw(self, key: str) -> list[bytes]:
        """The items of a string array, or a string alone, as bytes."""
        value = self._values.get(key)
        return [value.encode()] if isinstance(value, str) else self._metadata.raw(key)
