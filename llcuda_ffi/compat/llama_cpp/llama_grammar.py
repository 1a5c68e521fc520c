"""llama-cpp-python's LlamaGrammar."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InvalidRequest


class LlamaGrammar:
    """What an answer must match.

    Attributes:
        settings: as SamplingParams takes it: `grammar` (GBNF) or `json_schema`.
    """

    def __init__(self, _grammar: str | None = None, *, settings: Mapping[str, Any] | None = None) -> None:
        self.settings: Mapping[str, Any] = {"grammar": _grammar} if settings is None else settings

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """A GBNF grammar."""
        return cls(grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """A GBNF grammar from a file.

        Raises:
            InvalidRequest: it cannot be read.
        """
        try:
            return cls.from_string(Path(file).read_text(encoding="utf-8"), verbose)
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"the grammar file {file} cannot be read: {error}") from None

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """JSON of a schema, given as JSON text.

        Raises:
            InvalidRequest: it is not JSON.
        """
        try:
            return cls(settings={"json_schema": json.loads(json_schema)})
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"json_schema must be the JSON text of a schema: {error}") from None

    @property
    def grammar(self) -> str | None:
        """The GBNF; None where it is a JSON schema, which is no GBNF here."""
        found: str | None = self.settings.get("grammar")
        return found

    def reset(self) -> None:
        """Nothing to do: each request begins at the grammar's root."""


def __getattr__(name: str) -> Any:
    if name.endswith("_GBNF"):
        raise InvalidRequest(
            f"{name} is not here: any JSON is LlamaGrammar.from_json_schema('{{}}'); other grammars are yours to give"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def json_schema_to_gbnf(schema: str, prop_order: list[str] | None = None) -> str:
    """Not here: schemas are obeyed without becoming GBNF.

    Raises:
        InvalidRequest: always; it says what to write.
    """
    raise InvalidRequest("a schema becomes no GBNF here: LlamaGrammar.from_json_schema(schema), or json_schema=")
