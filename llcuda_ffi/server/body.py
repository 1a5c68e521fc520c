"""A request's body: read up to a limit, parsed strictly, its fields taken one by one."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.requests import Request

from ..chat.messages import plain
from ..errors import InvalidRequest
from ..params import flag
from .errors import Refused


async def read_body(request: Request, limit: int) -> Fields:
    """The fields of a JSON object.

    Raises:
        Refused: 415 not said to be JSON, 413 more than `limit` bytes.
        InvalidRequest: not UTF-8, not JSON, NaN or Infinity, nested over 64 deep, not an object.
    """
    # a web page of another site may send any other type without asking; JSON it may not
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"send Content-Type: application/json, not {kind or 'nothing'!r:.60}", "unsupported_type")
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated[:18]) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    try:
        value = plain(json.loads(b"".join(parts).decode(), parse_constant=_no_constant), "the body")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deep") from None
    except InvalidRequest:
        raise
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return Fields(value)


def _no_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body holds {name}, which is not JSON")


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body is larger than {limit} bytes, the most this server takes", "body_too_large")


class Fields:
    """The fields of a body. null means absent, as OpenAI's clients send it."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str, default: Any = None) -> Any:
        """A field of any type, taken out."""
        return self._values.pop(name, default)

    def text(self, name: str, default: str | None = None) -> str:
        """A text, taken out; without a default it must be there."""
        value = self._values.pop(name, default)
        if not isinstance(value, str):
            what = "is missing" if value is None else f"must be a text, not {value!r:.60}"
            raise InvalidRequest(f"{name} {what}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A boolean, taken out."""
        return flag(name, self._values.pop(name, default))

    def mapping(self, name: str) -> dict[str, Any]:
        """An object, taken out; empty when absent."""
        value = self._values.pop(name, {})
        if not isinstance(value, dict):
            raise InvalidRequest(f"{name} must be an object, not {value!r:.60}")
        return value

    def items(self, name: str) -> list[Any] | None:
        """A list, taken out; None when absent."""
        value = self._values.pop(name, None)
        if value is not None and not isinstance(value, list):
            raise InvalidRequest(f"{name} must be a list, not {value!r:.60}")
        return value

    def rest(self) -> dict[str, Any]:
        """All that was not taken."""
        rest, self._values = self._values, {}
        return rest

    def end(self) -> None:
        """Refuse what was not taken."""
        if self._values:
            raise InvalidRequest(f"unknown field {next(iter(self._values))!r:.60}: docs/server.md lists the fields")
