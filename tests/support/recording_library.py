"""libllama under observation: it fails on demand, and what it makes must be freed once and in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAKERS = {
    "llama_model_load_from_file",
    "llama_model_load_from_splits",
    "llama_init_from_model",
    "llama_adapter_lora_init",
    "llama_sampler_chain_init",
    "llama_sampler_clone",
}
FREES = {"llama_model_free", "llama_free", "llama_adapter_lora_free", "llama_sampler_free"}


class Failure(Exception):
    """What a function raises on demand: as if Ctrl-C had come in the middle of a constructor."""


class RecordingLibrary:
    """Stands for `lib`; calls go through to the real library unless they are to fail, or would free twice.

    Attributes:
        null: functions that return NULL from now on.
        broken: functions that raise Failure from now on.
        live: address → the function that made it, of what nobody has freed.
        wrong: what must never happen: freed twice, or while something made from it lives.
        made: how many objects were made.
    """

    def __init__(self, ffi: Any, real: Any) -> None:
        self._ffi, self._real = ffi, real
        self.null: set[str] = set()
        self.broken: set[str] = set()
        self.live: dict[int, str] = {}
        self.parents: dict[int, int] = {}
        self.wrong: list[str] = []
        self.made = 0

    def _address(self, pointer: Any) -> int:
        return int(self._ffi.cast("uintptr_t", pointer))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._real, name)

        def recorded(*arguments: Any) -> Any:
            if name in self.broken:
                raise Failure(name)
            if name in self.null:
                return self._ffi.NULL
            if name in FREES and not self._may_free(name, arguments[0]):
                return None
            # the chain owns it from here on
            if name == "llama_sampler_chain_add" and not self.live.pop(self._address(arguments[1]), None):
                self.wrong.append("a sampler was added that nobody owns")
            result = call(*arguments)
            if name in MAKERS or name.startswith("llama_sampler_init_") or name == "llama_sampler_chain_remove":
                self._made(name, result, arguments)
            return result

        return recorded

    def _made(self, name: str, result: Any, arguments: tuple[Any, ...]) -> None:
        if result:
            self.made += 1
            self.live[self._address(result)] = name
            if name in ("llama_init_from_model", "llama_adapter_lora_init"):
                self.parents[self._address(result)] = self._address(arguments[0])

    def _may_free(self, name: str, pointer: Any) -> bool:
        address = self._address(pointer)
        if self.live.pop(address, None) is None:
            self.wrong.append(f"{name} of what is not live")
            return False
        self.parents.pop(address, None)
        children = [child for child, parent in self.parents.items() if parent == address and child in self.live]
        if children:
            self.wrong.append(f"{name} before {', '.join(self.live[child] for child in children)}")
            return False
        return True
