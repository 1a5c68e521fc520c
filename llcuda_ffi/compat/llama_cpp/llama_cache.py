"""llama-cpp-python's caches. The engine keeps the prefixes of finished requests by itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class BaseLlamaCache:
    """What every cache is."""


@dataclass
class LlamaRAMCache(BaseLlamaCache):
    """What `set_cache` takes; and a mapping from token ids to states for who fills it.

    Attributes:
        capacity_bytes: most bytes of the states put in here. What requests computed stays in the KV cache, whose room
            `host_cache_bytes=` of llcuda_ffi.Llama enlarges.
    """

    capacity_bytes: int = 2 << 30
    _states: OrderedDict[tuple[int, ...], Any] = field(default_factory=OrderedDict, repr=False)

    @property
    def cache_size(self) -> int:
        """Bytes of the states."""
        return sum(len(state.data) for state in self._states.values())

    def __getitem__(self, key: Sequence[int]) -> Any:
        found = self._find(tuple(key))
        if found is None:
            raise KeyError("no state begins like these tokens")
        self._states.move_to_end(found)
        return self._states[found]

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._find(tuple(key)) is not None

    def __setitem__(self, key: Sequence[int], value: Any) -> None:
        self._states[tuple(key)] = value
        self._states.move_to_end(tuple(key))
        while len(self._states) > 1 and self.cache_size > self.capacity_bytes:
            self._states.popitem(last=False)

    def _find(self, key: tuple[int, ...]) -> tuple[int, ...] | None:
        """The longest tokens with a state that `key` begins with."""
        return max((one for one in self._states if key[: len(one)] == one), key=len, default=None)


LlamaCache = LlamaRAMCache


@dataclass
class LlamaDiskCache(BaseLlamaCache):
    """What `set_cache` takes; `disk_cache=` of llcuda_ffi.Llama is what outlives a process.

    Attributes:
        cache_dir, capacity_bytes: taken, and without effect.
    """

    cache_dir: str = ".cache/llama_cache"
    capacity_bytes: int = 2 << 30
