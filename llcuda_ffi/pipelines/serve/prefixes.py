"""Which replica has computed the beginning of a prompt: known by the texts that were sent to it."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

_BLOCK = 128  # bytes
_MOST_KEYS = 1024

# what a prompt begins with, in the order in which templates write it
_FIELDS = ("tools", "system", "instructions", "messages", "input", "prompt", "input_prefix")


def prefix_keys(fields: Mapping[str, Any], earlier: Sequence[str] = ()) -> list[str]:
    """A key for each leading block of a request's prompt, and for the end of each message: requests that begin alike
    have the first keys in common.

    Args:
        earlier: the keys of the response that it goes on from.
    """
    keys = list(earlier)
    begin = keys[-1] if keys else str(fields.get("model"))
    digest = hashlib.blake2b(begin.encode("utf-8", "replace"), digest_size=12)
    for part in _parts(fields):
        data = part.encode("utf-8", "replace") + b"\x00"
        for start in range(0, len(data), _BLOCK):
            digest.update(data[start : start + _BLOCK])
            keys.append(digest.hexdigest())
            if len(keys) >= _MOST_KEYS:
                return keys
    return keys


def _parts(fields: Mapping[str, Any]) -> Iterator[str]:
    """The messages, tools and texts of a request."""
    for name in _FIELDS:
        value = fields.get(name)
        items = value if isinstance(value, list) and not all(type(item) is int for item in value) else [value]
        for item in items:
            if item:
                yield item if isinstance(item, str) else json.dumps(item, sort_keys=True)


class PrefixTable:
    """The replica that computed each prefix last; the oldest prefixes are forgotten."""

    def __init__(self, limit: int = 200_000) -> None:
        self._limit = limit
        self._holders: OrderedDict[str, Any] = OrderedDict()

    def find(self, keys: Sequence[str], among: Collection[Any]) -> tuple[Any, float]:
        """The replica of the longest known prefix, and what share of the prompt that is; None and 0 for none."""
        for i in range(len(keys) - 1, -1, -1):
            holder = self._holders.get(keys[i])
            if holder is not None and holder in among:
                return holder, (i + 1) / len(keys)
        return None, 0.0

    def put(self, keys: Sequence[str], holder: Any) -> None:
        """Note that `holder` computes a prompt."""
        for key in keys:
            self._holders[key] = holder
            self._holders.move_to_end(key)
        while len(self._holders) > self._limit:
            self._holders.popitem(last=False)
