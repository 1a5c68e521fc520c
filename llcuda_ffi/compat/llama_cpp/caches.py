"""llama-cpp-python's caches. The engine keeps the prefixes of finished requests by itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LlamaRAMCache:
    """What `set_cache` takes.

    Attributes:
        capacity_bytes: taken, and without effect: the KV cache itself holds the prefixes. `host_cache_bytes=` of
            llcuda_ffi.Llama gives them more memory.
    """

    capacity_bytes: int = 2 << 30


LlamaCache = LlamaRAMCache


@dataclass
class LlamaDiskCache:
    """What `set_cache` takes; the file that `save_state` of llcuda_ffi.Llama writes is what outlives a process.

    Attributes:
        cache_dir, capacity_bytes: taken, and without effect.
    """

    cache_dir: str = ".cache/llama_cache"
    capacity_bytes: int = 2 << 30
