"""How much of a run is spent inside C calls: the library is wrapped so that every call is timed.

In CPU time of the calling thread, so that what other processes take counts on neither side.

Wrap before the Llama is made: objects keep the library that they were made with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from time import thread_time
from typing import Any

from llcuda_ffi.native import load as loading


class TimedLibrary:
    """Stands in for the cffi library; `seconds` and `calls` add up over all its functions."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.seconds = 0.0
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._lib, name)
        if callable(found):
            found = self._timed(found)
        setattr(self, name, found)
        return found

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        clock = thread_time

        def timed(*args: Any) -> Any:
            began = clock()
            result = call(*args)
            self.seconds += clock() - began
            self.calls += 1
            return result

        return timed


def install() -> TimedLibrary:
    """Load libllama and put the wrapper in its place."""
    library = loading.load()
    timed = TimedLibrary(library.lib)
    loading._library = dataclasses.replace(library, lib=timed)
    return timed


def overhead(timed: TimedLibrary, calls: int = 200_000) -> tuple[float, float]:
    """What the wrapper itself adds per call, in seconds: outside what it counts as C, and inside.

    Found with a call that does nothing: timed from outside, wrapped and not.
    """

    def nothing(_: object) -> None:
        return None

    wrapped = TimedLibrary.__new__(TimedLibrary)
    wrapped.seconds, wrapped.calls = 0.0, 0
    call = TimedLibrary._timed(wrapped, nothing)
    best = [1e9, 1e9]
    inside = 1e9
    for _ in range(9):
        n = calls // 10
        wrapped.seconds = 0.0
        for i, function in enumerate((nothing, call)):
            began = thread_time()
            for _ in range(n):
                function(None)
            best[i] = min(best[i], (thread_time() - began) / n)
        inside = min(inside, wrapped.seconds / n)
    return best[1] - inside, inside
