"""What trials found out, kept in one small file of the cache: verdicts by key, the newest thousand."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

from ..fetch.cache import cache_root

_MOST = 1000


class Verdicts:
    """The file. A cache that cannot be read or written only means that files are tried again."""

    def __init__(self) -> None:
        self.path = cache_root() / "trials.json"

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The verdict of an earlier trial."""
        verdict = self._read().get(key)
        sound = isinstance(verdict, dict) and isinstance(verdict.get("status"), int)
        return verdict if sound else None

    def put(self, key: str, verdict: Mapping[str, Any]) -> None:
        """Keep one. Of two processes that write at once one may win: the other's file is tried again."""
        found = self._read()
        found.pop(key, None)
        found[key] = dict(verdict)
        for old in list(found)[:-_MOST]:
            del found[old]
        temporary = self.path.with_name(f".trials-{uuid.uuid4().hex[:12]}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(found), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
