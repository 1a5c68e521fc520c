"""Errors as OpenAI writes them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from ..errors import (
    BackendFailure,
    Cancelled,
    ClosedError,
    ContextOverflow,
    EngineFailure,
    InvalidRequest,
    UnsupportedByBundle,
    UnsupportedModel,
)
from .absent import why_absent

log = logging.getLogger("llcuda_ffi.server")


NO_THREADS = "thread_unsupported_request"


class Refused(HTTPException):
    """A request that is refused with a status of its own."""

    def __init__(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.code = code


def stopping() -> Refused:
    """For a request that the end of the server cuts off."""
    return Refused(503, "the server stops, and the time for requests to end is over", "closing")


def status_of(error: BaseException) -> tuple[int, str | None]:
    """The HTTP status and OpenAI's code of an exception."""
    if isinstance(error, Refused):
        return error.status_code, error.code
    if isinstance(error, HTTPException):
        return error.status_code, {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    if isinstance(error, ContextOverflow):
        return 400, "context_length_exceeded"
    if isinstance(error, InvalidRequest):
        return 400, "invalid_value"
    if isinstance(error, (UnsupportedByBundle, UnsupportedModel)):
        return 400, "unsupported"
    if isinstance(error, (ClosedError, Cancelled)):
        return 503, "closing"
    if isinstance(error, EngineFailure):
        return 503, "engine_failed"
    return 500, "internal_error"


def error_dict(error: BaseException) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of an exception; what is no refusal of ours goes to the log with its traceback."""
    status, code = status_of(error)
    message = str(error.detail) if isinstance(error, HTTPException) else str(error) or type(error).__name__
    if status == 500:
        log.error("a request failed", exc_info=error)
    kind = {401: "authentication_error", 503: "service_unavailable"}.get(status)
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic_error(error: BaseException, request_id: str | None) -> tuple[int, dict[str, Any]]:
    """The same as Anthropic writes it."""
    status, found = error_dict(error)
    kind = _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
    message = found["error"]["message"]
    if isinstance(error, ContextOverflow):  # by which Claude Code knows it
        message = f"prompt is too long: {message}"
    inner = {"type": kind, "message": message}
    if found["error"]["code"] == NO_THREADS:  # by which Anthropic's SDK knows to send whole conversations
        inner["details"] = {"error_code": NO_THREADS, "unsupported": []}
    return status, {"type": "error", "error": inner, "request_id": request_id}


_ANTHROPIC = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}


def left_to_another(scope: Scope, error: Exception) -> bool:
    """Whether the engine died and whoever asked keeps the answer's journal: then it is told, not the client."""
    journal = scope.get("state", {}).get("journal")
    if journal is None or not isinstance(error, BackendFailure):
        return False
    journal.failure = error
    return True


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler."""
    left_to_another(request.scope, error)
    if type(error) is HTTPException and error.status_code in (404, 405):
        why = why_absent(request.url.path, (error.headers or {}).get("Allow"))
        error = HTTPException(error.status_code, why, error.headers)
    if "/messages" in request.url.path:
        status, content = anthropic_error(error, getattr(request.state, "request_id", None))
    else:
        status, content = error_dict(error)
    return JSONResponse(content, status, getattr(error, "headers", None))
