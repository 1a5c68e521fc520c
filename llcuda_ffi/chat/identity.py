"""Ids and times of answers: random and now, or those of an answer that another process began and this one goes on
with.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import secrets
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Identity:
    """What the ids of one answer are made of, in the order in which they are asked for.

    Attributes:
        key: random; whoever has it makes the same ids.
        created: seconds since 1970.
    """

    key: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))


_ids: ContextVar[tuple[Identity, Iterator[int]] | None] = ContextVar("llcuda_ffi_identity", default=None)


@contextlib.contextmanager
def answering(identity: Identity) -> Iterator[None]:
    """Have the answer that is made inside, also by tasks and threads begun there, the ids of this identity."""
    token = _ids.set((identity, itertools.count()))
    try:
        yield
    finally:
        _ids.reset(token)


def new_id(n_bytes: int) -> str:
    """An id of so many bytes, at most 64, in hexadecimal digits."""
    found = _ids.get()
    if found is None:
        return secrets.token_hex(n_bytes)
    identity, numbers = found
    text = f"{identity.key} {next(numbers)}"
    return hashlib.blake2b(text.encode(), digest_size=n_bytes).hexdigest()


def created_now() -> int:
    """When the answer was begun, in seconds since 1970."""
    found = _ids.get()
    return int(time.time()) if found is None else found[0].created
