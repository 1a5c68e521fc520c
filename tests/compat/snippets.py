"""What is checked of the snippets: code as the peers' users write it, run in a folder with a model file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from llcuda_ffi.errors import LlcudaError


@dataclass(frozen=True)
class Snippet:
    """Code as written, and what must hold after it.

    Attributes:
        code: imports of the peer come from its module here.
        check: an expression over the code's names.
        error: instead of a check: words of the error that names the way.
    """

    name: str
    code: str
    check: str = ""
    error: str = ""

    def run(self, **names: Any) -> dict[str, Any]:
        """The names after the code."""
        namespace: dict[str, Any] = dict(names)
        exec(compile(self.code, f"<{self.name}>", "exec"), namespace)
        return namespace

    def verify(self) -> None:
        """It runs as written and gives what it should; or the error says what to do."""
        if self.error:
            with pytest.raises(LlcudaError, match=self.error):
                self.run()
            return
        made = self.run()
        assert eval(self.check, made), {name: made[name] for name in made if name != "__builtins__"}
        close_all(made)


def close_all(namespace: dict[str, Any]) -> None:
    """Free what the code made."""
    for value in list(namespace.values()):
        if hasattr(value, "close") and not isinstance(value, type) and not hasattr(value, "__spec__"):
            value.close()


def snippet_id(snippet: Snippet) -> str:
    """For pytest's list."""
    return snippet.name
