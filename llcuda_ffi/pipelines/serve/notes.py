"""The engine's chunks behind a streamed answer, as a replica notes them at the ingress."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ...engine.results import Chunk, Completion
from ...isolated.wire import back, plain
from ...server.journal import Entry


def write_notes(entries: Sequence[Entry]) -> bytes:
    """What one piece of an answer was made of."""
    return json.dumps([_plain(*entry) for entry in entries], separators=(",", ":")).encode() if entries else b""


def read_notes(notes: Iterable[bytes]) -> list[Entry]:
    """The chunks again, of all pieces."""
    return [_back(value) for one in notes if one for value in json.loads(one)]


def _plain(prompt: int, chunk: Chunk) -> Any:
    if chunk.completion is None and chunk.logprobs is None:  # nearly all are
        return [prompt, chunk.index, chunk.text, chunk.token_ids]
    lean = None if chunk.completion is None else _lean(chunk.completion)
    return [prompt, plain(dataclasses.replace(chunk, completion=lean))]


def _back(value: Any) -> Entry:
    if len(value) == 2:
        return value[0], back(value[1])
    prompt, index, text, token_ids = value
    return prompt, Chunk(text, token_ids, index=index)


def _lean(done: Completion) -> Completion:
    """Without what a stream's events do not tell."""
    return dataclasses.replace(done, parsed=None, prompt=None, prompt_token_ids=[], prompt_logprobs=None)
