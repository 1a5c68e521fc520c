"""What every side of bench/run.py is: a child process that answers one question at a time.

A side's file defines a class with some of the methods of `Side` and ends with `serve(TheClass)`. It runs in a virtual
environment of its own, so this file imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from time import perf_counter
from typing import Any

# what every side samples with
TEMPERATURE, TOP_K, TOP_P = 0.8, 40, 0.95


class Side:
    """One package. What a side does not offer raises NotImplementedError; counts are of tokens."""

    def __init__(self, model: str, threads: int, extra: dict[str, str]) -> None:
        """Load a model.

        Args:
            extra: paths of other files, by name: the embedding model, the peer's source.
        """

    def version(self) -> str:
        """Its name and version."""
        raise NotImplementedError

    def prefill(self, text: str) -> int:
        """Compute a prompt and one token; returns the prompt's tokens. Nothing of an earlier prompt is reused."""
        raise NotImplementedError("not offered")

    def decode(self, text: str, n: int) -> int:
        """Make `n` tokens after a short prompt."""
        raise NotImplementedError("not offered")

    def batch(self, texts: Sequence[str], n: int) -> int:
        """Make `n` tokens for each prompt, as fast as the package can do several."""
        raise NotImplementedError("not offered")

    def again(self, text: str) -> int:
        """Compute a prompt that was computed before, and one token, with whatever the package keeps."""
        raise NotImplementedError("not offered")

    def stream(self, text: str, n: int, came: Callable[[], object]) -> None:
        """Make `n` tokens and call `came` at each; several threads do so at the same time."""
        raise NotImplementedError("not offered")

    def beside(self, texts: Sequence[str], n: int, late: str) -> dict[str, float]:
        """A prompt that comes when each of `texts`, streamed in threads, has had five of its `n` tokens.

        Returns:
            "first_ms" until the first token of `late`, "gap_ms" the longest between two tokens of one of the streams.
        """
        times: list[list[float]] = [[] for _ in texts]
        running = threading.Event()

        def follow(at: int) -> None:
            def came() -> None:
                times[at].append(perf_counter())
                if all(len(row) >= 5 for row in times):
                    running.set()

            try:
                self.stream(texts[at], n, came)
            finally:
                running.set()

        first: list[float] = []
        with ThreadPoolExecutor(len(texts)) as pool:
            streams = [pool.submit(follow, at) for at in range(len(texts))]
            running.wait()
            began = perf_counter()
            self.stream(late, 1, lambda: first.append(perf_counter() - began))
            for stream in streams:
                stream.result()
        gap = max(after - before for row in times for before, after in pairwise(row[1:]))
        return {"first_ms": first[0] * 1e3, "gap_ms": gap * 1e3}

    def rss_mib(self) -> float:
        """The most memory that it has had."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def structured(self, text: str, schema: dict[str, Any], n: int) -> int:
        """Make up to `n` tokens that follow a JSON schema; returns how many."""
        raise NotImplementedError("not offered")

    def embed(self, texts: Sequence[str]) -> int:
        """Embed texts with the model `extra["embedding"]`; returns how many."""
        raise NotImplementedError("not offered")

    def close(self) -> None:
        """End what it started."""


def serve(make: Callable[[str, int, dict[str, str]], Side]) -> None:
    """Answer lines of JSON: {"do": method, "args": […]} with {"seconds", "count", "rss_mib"} or {"error"}."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the package prints is no answer
    model, threads, extra = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])

    side: Side | None = None

    def answer(run: Callable[[], Any]) -> Any:
        began = perf_counter()
        try:
            found: dict[str, Any] = {"count": run()}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        found["seconds"] = perf_counter() - began
        found["rss_mib"] = 0.0 if side is None else side.rss_mib()
        print(json.dumps(found), file=out)
        return found

    def load() -> str:
        nonlocal side
        side = make(model, threads, extra)
        return side.version()

    if "error" in answer(load):
        return
    for line in sys.stdin:
        asked = json.loads(line)
        answer(lambda: getattr(side, asked["do"])(*asked["args"]))  # noqa: B023 - called at once
    if side is not None:
        side.close()
