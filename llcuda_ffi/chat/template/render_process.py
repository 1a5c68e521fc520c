"""The process in which chat templates are rendered; started by renderer.py as a script.

A template comes with a model file, from anywhere. jinja2's sandbox keeps it from attributes it must not touch, but not
from using up memory and time, and no check inside one interpreter does: a power of two integers, or a comparison of
two nested lists, runs in C, where nothing can stop it. So it runs here, where the system limits the memory and the
parent kills what takes too long.

Messages both ways: four bytes of length (big endian), then JSON. In: {"template", "variables"}. Out:
{"text"} or {"error", "message"}, error being one of refused, syntax, failed, memory, size.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO


def serve(inbox: BinaryIO, outbox: BinaryIO, max_text: int) -> None:
    """Answer requests until the parent closes the pipe."""
    while True:
        head = inbox.read(4)
        if len(head) < 4:
            return
        answer = _answer(inbox.read(int.from_bytes(head, "big")), max_text)
        raw = json.dumps(answer).encode()
        outbox.write(len(raw).to_bytes(4, "big") + raw)
        outbox.flush()


def _answer(raw: bytes, max_text: int) -> dict[str, Any]:
    import jinja2
    from environment import Refusal, compile_template, given  # type: ignore[import-not-found]  # a script, see _main

    try:
        request = json.loads(raw)
        pieces, size = [], 0
        for piece in compile_template(request["template"]).generate(**given(request["variables"])):
            size += len(piece)
            if size > max_text:
                return {"error": "size", "message": f"it writes more than {max_text} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except Refusal as error:
        return {"error": "refused", "message": str(error)[:2000]}
    except jinja2.TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"[:2000]}
    except MemoryError:
        return {"error": "memory", "message": "it needs too much memory"}
    except Exception as error:  # whatever a template can raise is an answer to the parent
        return {"error": "failed", "message": f"{type(error).__name__}: {error}"[:2000]}


def _limit(max_memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's time limit still holds
        return
    resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _main() -> None:
    start = json.loads(sys.argv[1])
    sys.path[:] = [os.path.dirname(os.path.abspath(__file__)), *start["path"]]
    inbox, outbox = sys.stdin.buffer, sys.stdout.buffer
    import environment  # noqa: F401 - jinja2 must be in before the memory is limited

    _limit(start["max_memory"])
    outbox.write(b"ready")
    outbox.flush()
    serve(inbox, outbox, start["max_text"])


if __name__ == "__main__":
    _main()
