"""A thread pool of the CPU backend, attached to contexts (ggml_threadpool_*, llama_attach_threadpool).

Without one, libllama's CPU backend makes its threads for each graph. What a pool of one's own is for: pinning threads
to cores, another priority, or sharing threads between contexts that compute one after another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..enums import SchedPriority
from ..errors import InvalidRequest, UnsupportedByBundle
from ..native.handle import Handle
from ..native.load import load
from ..params import flag, integer, member
from .context import Context


class Threadpool(Handle):
    """Threads of the CPU backend.

    Attributes:
        n_threads: how many.
    """

    def __init__(
        self,
        n_threads: int,
        *,
        cpus: Iterable[int] = (),
        strict_cpu: bool = False,
        priority: SchedPriority = SchedPriority.NORMAL,
        poll: int = 50,
    ) -> None:
        """Start the threads.

        Args:
            cpus: the CPUs that they may run on; none means any.
            strict_cpu: pin each thread to one of `cpus`.
            priority: of the threads; above NORMAL needs rights that most users do not have.
            poll: how eagerly waiting threads spin, 0 (sleep) to 100.

        Raises:
            InvalidRequest: a value is out of range.
            UnsupportedByBundle: the CPU backend of the bundle has no thread pools.
        """
        library = load()
        ffi, lib = library.ffi, library.lib
        self.n_threads = integer("n_threads", n_threads, 1, 512)
        params = ffi.new("struct ggml_threadpool_params *", lib.ggml_threadpool_params_default(self.n_threads))
        for cpu in cpus:
            params.cpumask[integer("a CPU", cpu, 0, len(params.cpumask) - 1)] = True
        params.strict_cpu = flag("strict_cpu", strict_cpu)
        params.prio = member("priority", priority, SchedPriority).value
        params.poll = integer("poll", poll, 0, 100)
        registry = lib.ggml_backend_reg_by_name(b"CPU")
        make, free = (
            lib.ggml_backend_reg_get_proc_address(registry, name)
            for name in (b"ggml_threadpool_new", b"ggml_threadpool_free")
        )
        if not make or not free:
            raise UnsupportedByBundle(f"the CPU backend of bundle {library.bundle.name} has no thread pools")
        pointer = ffi.cast("ggml_threadpool_t (*)(struct ggml_threadpool_params *)", make)(params)
        if not pointer:
            raise InvalidRequest("the CPU backend could not start the threads: try fewer")
        self._library: Any = library
        self._own(pointer, ffi.cast("void (*)(ggml_threadpool_t)", free))

    def attach(self, context: Context) -> None:
        """Let `context` compute with these threads; closing the pool closes the contexts that use it.

        Raises:
            InvalidRequest: the context wants more threads than the pool has.
            ClosedError, ConcurrentUseError: the pool or the context is closed, or in use.
        """
        with context.exclusive(), self.shared():
            most = max(
                self._library.lib.llama_n_threads(context.pointer),
                self._library.lib.llama_n_threads_batch(context.pointer),
            )
            if most > self.n_threads:
                raise InvalidRequest(
                    f"the context computes with {most} threads, the pool has {self.n_threads}: use Context.set_threads"
                )
            mine = self.pointer
            self._outlive(context)
            self._library.lib.llama_attach_threadpool(context.pointer, mine, mine)

    def detach(self, context: Context) -> None:
        """Let `context` use threads of its own again."""
        with context.exclusive():
            self._library.lib.llama_detach_threadpool(context.pointer)
            self._let_go(context)
