"""The life of a request in a scheduler: who has it, how it ends, and how nothing is lost.

What goes wrong for one request ends that request. An exception that leaves a step (Ctrl-C) loses nothing: the next step
forgets what the KV cache holds, has every request wait again, and computes what was lost.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.context import Context
from ..errors import LlcudaError
from .failures import failure_of
from .metrics import Metrics
from .prefix_cache import PrefixCache
from .queue import RequestQueue
from .request import Request
from .results import FinishReason
from .sampling.select import Selection
from .slot import Slot


class Lifecycle:
    """The requests of one context, from `submit` to their end.

    Attributes:
        context: has one sequence for each slot.
        slots: as many as the context has sequences.
        selection: selects their tokens.
        prefixes: what finished ones leave.
        metrics: counters.
    """

    prefixes: PrefixCache

    def __init__(self, context: Context, selection: Selection) -> None:
        assert context.memory is not None
        self.context, self.memory = context, context.memory
        self.metrics = Metrics()
        self.slots = [Slot(i) for i in range(context.n_seq_max)]
        self.selection = selection
        self._requests = RequestQueue()
        self._unfinished = False  # a step was left in the middle
        self._full = False  # a request had to make room: nobody is admitted before another one ends
        self._steps = 0
        self._told: list[Request] = []  # have a chunk that their readers are to be woken for

    # --- from any thread ---

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self._requests.submit(request)

    def cancel(self, request: Request) -> None:
        """End a request as "cancelled" in the next step."""
        self._requests.cancel(request)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not len(self._requests)

    @property
    def wanted(self) -> bool:
        """Whether there are requests that nobody cancelled."""
        return any(not request.place.cancelled for request in self._requests)

    @property
    def running(self) -> int:
        """Requests in a slot."""
        return sum(slot.request is not None and not slot.request.done for slot in self.slots)

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return max(0, len(self._requests) - self.running)

    @property
    def busy(self) -> float:
        """Requests that run or wait, for each slot."""
        return len(self._requests) / len(self.slots)

    def _tell(self) -> None:
        """Wake the readers of new chunks.

        Right before a computation: their threads want the interpreter's lock, which it leaves to them.
        """
        if self._told:
            told, self._told = self._told, []
            for request in told:
                request.notify()

    # --- ends ---

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """The end of a request."""
        try:
            request.finish(reason)
        except Exception as error:
            self._fail_request(request, failure_of(error))
            return
        self._requests.remove(request)
        self.metrics.finished(request)

    def _fail(self, slot: Slot, error: BaseException) -> None:
        request = slot.request
        if request is None:
            return
        self._release(slot, request)
        self.prefixes.forget(slot)
        self._fail_request(request, error)

    def _fail_request(self, request: Request, error: BaseException) -> None:
        request.fail(error)
        self._requests.remove(request)
        self.metrics.failed()

    def _release(self, slot: Slot, request: Request) -> None:
        self.selection.release(slot, request)
        slot.reset()
        slot.used = self._steps
        self._full = False

    def _requeue(self, slot: Slot) -> None:
        request = slot.request
        assert request is not None
        self.selection.detach(slot)
        slot.reset()
        self.prefixes.forget(slot)
        self._requests.push(request)

    def _forget_idle(self) -> None:
        for slot in self.slots:
            if slot.request is None:
                self.prefixes.forget(slot)

    # --- after an interruption, and at the end of all ---

    def _recover(self) -> None:
        """A step was interrupted: what the KV cache holds is not known. Compute it again."""
        self.memory.clear(data=False)
        self._full = False
        for slot in self.slots:
            self._leave(slot)
            slot.forget()
        self._requests.rebuild(self._resume)

    def _resume(self, request: Request) -> bool:
        """Make a request agree with its tokens again; returns whether it goes on."""
        if request.done:
            request.notify()  # its end may have been interrupted before that
            return False
        if (reason := request.output.rewind()) is not None:
            self._finish(request, reason)
            return False
        self.selection.drop(request)  # it may have drawn a token that the request never got
        return True

    def _leave(self, slot: Slot) -> None:
        """Take the request out of a slot, whatever state it is in."""
        self.selection.detach(slot)
        if slot.request is not None and slot.request.done:
            self.selection.release(slot, slot.request)
        slot.reset()

    def abandon(self, error_of: Callable[[], LlcudaError]) -> None:
        """End every request with an exception; no step may follow."""
        self._requests.collect()
        for request in self._requests:
            if not request.done:
                request.fail(error_of())
                self.metrics.failed()
            self._requests.remove(request)
        for slot in self.slots:
            self._leave(slot)

    def close(self, error_of: Callable[[], LlcudaError]) -> None:
        """End every request with an exception and free the chains."""
        self.abandon(error_of)
        self.prefixes.close()
        self.selection.close()
