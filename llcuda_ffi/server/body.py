"""A request's body: read up to a limit in size and time, parsed strictly, its fields taken one by one."""

from __future__ import annotations

import asyncio
import difflib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from json.decoder import JSONDecoder
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any, NoReturn

from starlette.requests import Request

from ..chat.messages import plain
from ..errors import InvalidRequest
from ..params import flag, integer
from .errors import Refused

_SMALL = 16 << 10  # parsed at once; a thread would cost more
_HUGE = 512 << 10  # the C parser would hold all other threads for too long


class BodyReader:
    """Reads the bodies of a server's requests.

    Attributes:
        limit: most bytes of one.
        total: most bytes of all that are being read or parsed.
        timeout: seconds for a body to arrive.
    """

    def __init__(self, limit: int, *, timeout: float = 60.0, lenient: bool = False) -> None:
        self.limit, self.total, self.timeout, self._lenient = limit, 16 * limit, timeout, lenient
        self._held = 0
        # threads of its own: hostile bodies must not keep those that prepare chats
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="llcuda_ffi-bodies")

    async def read(self, request: Request) -> Fields:
        """The fields of a JSON object.

        Raises:
            Refused: 415 not said to be JSON, or compressed; 413 too large; 408 too slow; 503 too many large ones.
            InvalidRequest: not UTF-8, not JSON, NaN, Infinity or 1e999, nested over 64 deep, not an object.
        """
        value = await self._value(request)
        if not isinstance(value, dict):
            raise InvalidRequest("the body must be a JSON object")
        return Fields(value, self._lenient)

    async def read_list(self, request: Request) -> list[Any]:
        """A JSON list.

        Raises:
            as `read`.
        """
        value = await self._value(request)
        if not isinstance(value, list):
            raise InvalidRequest("the body must be a JSON list")
        return value

    async def _value(self, request: Request) -> Any:
        # a web page of another site may send any other type without asking; JSON it may not
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(
                415, f"send Content-Type: application/json, not {kind or 'nothing'!r:.60}", "unsupported_type"
            )
        coding = request.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            raise Refused(415, f"send the body without Content-Encoding, not {coding!r:.60}", "unsupported_encoding")
        stated = request.headers.get("content-length", "")
        if stated.isdigit() and int(stated[:18]) > self.limit:
            raise self._too_large()
        parts: list[bytes] = []
        try:
            await asyncio.wait_for(self._receive(request, parts), self.timeout)
            data = b"".join(parts)
            if len(data) <= _SMALL:
                return _parse(data)
            return await asyncio.get_running_loop().run_in_executor(self._threads, _parse, data)
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(408, f"the body did not arrive within {self.timeout:g} s", "timeout") from None
        finally:
            self._held -= sum(map(len, parts))

    async def _receive(self, request: Request, parts: list[bytes]) -> None:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > self.limit:
                raise self._too_large()
            if self._held + len(part) > self.total:
                raise Refused(503, "too many large requests at once: try again", "busy", {"Retry-After": "1"})
            self._held += len(part)
            parts.append(part)

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self.limit} bytes, the most this server takes", "body_too_large")


def _parse(data: bytes) -> Any:
    try:
        return plain(_decoder(len(data)).decode(data.decode("utf-8-sig")), "the body")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deep") from None
    except InvalidRequest:
        raise
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def _decoder(size: int) -> JSONDecoder:
    decoder = JSONDecoder(parse_constant=_no_constant, parse_float=_number)
    if size > _HUGE:  # Python's own parser lets other threads go on meanwhile
        vars(decoder)["scan_once"] = py_make_scanner(decoder)
    return decoder


def _no_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body holds {name}, which is not JSON")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # JSON could not say it in the answer
        raise InvalidRequest(f"the body holds {text:.40}, which is too large")
    return value


def whole(value: Any) -> Any:
    """A number such as 8.0 as the integer that it is; anything else as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


class Fields:
    """The fields of a body. null means absent, as OpenAI's clients send it.

    Attributes:
        lenient: what is not known is left out instead of refused.
    """

    def __init__(self, values: dict[str, Any], lenient: bool = False) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._known: set[str] = set()
        self.lenient = lenient

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def take(self, name: str, default: Any = None) -> Any:
        """A field of any type, taken out."""
        self._known.add(name)
        return self._values.pop(name, default)

    def text(self, name: str, default: str | None = None) -> str:
        """A text, taken out; without a default it must be there."""
        value = self.take(name, default)
        if not isinstance(value, str):
            what = "is missing" if value is None else f"must be a text, not {value!r:.60}"
            raise InvalidRequest(f"{name} {what}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A boolean, taken out."""
        return flag(name, self.take(name, default))

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        """An integer within [low, high], taken out; JSON has one kind of number, so 8.0 is one."""
        value = whole(self.take(name))
        return default if value is None else integer(name, value, low, high)

    def mapping(self, name: str) -> dict[str, Any]:
        """An object, taken out; empty when absent."""
        value = self.take(name, {})
        if not isinstance(value, dict):
            raise InvalidRequest(f"{name} must be an object, not {value!r:.60}")
        return value

    def items(self, name: str, most: int | None = None) -> list[Any] | None:
        """A list of at most `most` items, taken out; None when absent."""
        value = self.take(name)
        if value is not None and not isinstance(value, list):
            raise InvalidRequest(f"{name} must be a list, not {value!r:.60}")
        if value is not None and most is not None and len(value) > most:
            raise InvalidRequest(f"{name} has {len(value)} items, more than {most}")
        return value

    def objects(self, name: str, most: int | None = None) -> list[dict[str, Any]] | None:
        """A list of objects, taken out; None when absent."""
        found = self.items(name, most)
        for i, item in enumerate(found or ()):
            if not isinstance(item, dict):
                raise InvalidRequest(f"{name}[{i}] must be an object, not {item!r:.60}")
        return found

    def rest(self) -> dict[str, Any]:
        """All that was not taken."""
        rest, self._values = self._values, {}
        return rest

    def end(self) -> None:
        """Refuse what was not taken."""
        self.check(self._values)

    def check(
        self, left: dict[str, Any], known: frozenset[str] = frozenset(), instead: Mapping[str, str] | None = None
    ) -> None:
        """Refuse the first of `left`, naming the known fields that are like it; lenient, drop them.

        Args:
            instead: for names that other servers have, what to send here.

        Raises:
            InvalidRequest: there is one.
        """
        if left and not self.lenient:
            name = next(iter(left))
            near = difflib.get_close_matches(name[:60], self._known | known, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else "docs/server.md lists the fields"
            if instead is not None and name in instead:
                hint = f"send {instead[name]}"
            raise InvalidRequest(f"unknown field {name!r:.60}: {hint} (serve --lenient takes any)")
