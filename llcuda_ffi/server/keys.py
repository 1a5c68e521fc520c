"""The keys of a server: who may use it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import InvalidRequest
from .errors import Refused, answer_error

# what probes and browsers ask before they have a key
PUBLIC = frozenset({"/", "/health", "/v1/health", "/livez", "/ping", "/readyz", "/page.js", "/page.css"})


class Keys:
    """Keys with names; only their hashes are kept."""

    def __init__(self, keys: Iterable[str] | Mapping[str, str]) -> None:
        """Take keys, or names with keys.

        Raises:
            InvalidRequest: one is empty.
        """
        named = keys if isinstance(keys, Mapping) else {f"key-{i}": key for i, key in enumerate(keys, 1)}
        if not all(key.strip() for key in named.values()):
            raise InvalidRequest("an API key is empty")
        self._named = {name: _hash(key.encode()) for name, key in named.items()}

    @classmethod
    def read(cls, path: Path) -> dict[str, str]:
        """A file of keys: on each line a name, white space and a key; or a key alone. # begins a comment.

        Raises:
            InvalidRequest: it cannot be read, or a name stands twice.
        """
        found: dict[str, str] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the keys of {path} cannot be read: {error}") from None
        for number, line in enumerate(lines, 1):
            words = line.split()
            if words and not words[0].startswith("#"):
                name, key = words if len(words) == 2 else (f"line-{number}", words[0])
                if len(words) > 2 or name in found:
                    raise InvalidRequest(f"{path}, line {number}: a name (each once) and a key, nothing more")
                found[name] = key
        return found

    def name_of(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The name of the key that a request gives; None where it gives none or a wrong one.

        Every key is compared, each in constant time.
        """
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else b""
        given = given or headers.get(b"x-api-key", b"") or headers.get(b"api-key", b"")
        digest, found = _hash(given), None
        for name, known in self._named.items():
            if secrets.compare_digest(digest, known):
                found = name
        return found


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class KeyCheck:
    """ASGI middleware: refuses requests without a key; what passes has its name in request.state.key."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC:
            name = self._keys.name_of(dict(scope["headers"]))
            if name is None:
                refused = Refused(
                    401, "send a key of this server: Authorization: Bearer KEY, or X-Api-Key: KEY", "invalid_api_key"
                )
                await (await answer_error(Request(scope), refused))(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = name
        await self._app(scope, receive, send)
