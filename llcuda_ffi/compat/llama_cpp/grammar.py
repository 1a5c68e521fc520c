"""llama-cpp-python's LlamaGrammar."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LlamaGrammar:
    """What an answer must match.

    Attributes:
        settings: as SamplingParams takes it: `grammar` (GBNF) or `json_schema`.
    """

    settings: Mapping[str, Any]

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """A GBNF grammar."""
        return cls({"grammar": grammar})

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """A GBNF grammar from a file."""
        return cls.from_string(Path(file).read_text(encoding="utf-8"), verbose)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """JSON of a schema, given as JSON text."""
        return cls({"json_schema": json.loads(json_schema)})
