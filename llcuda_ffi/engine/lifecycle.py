"""The life of a request in a scheduler: who has it, how it ends, and how nothing is lost.

What goes wrong for one request ends that request. An exception that leaves a step (Ctrl-C) loses nothing: the next step
forgets what the KV cache holds, has every request wait again, and computes what was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.context import Context
from ..errors import ContextOverflow, DecodeError, LlcudaError, NoKvSlot
from .failures import failure_of
from .metrics import Metrics
from .plan import Row
from .prefix_cache import PrefixCache
from .queue import RequestQueue
from .request import Request
from .results import FinishReason
from .sampling.select import Selection
from .slot import Slot, State


class Lifecycle:
    """The requests of one context, from `submit` to their end.

    Attributes:
        context: has one sequence for each slot.
        slots: as many as the context has sequences.
        selection: selects their tokens.
        prefixes: what finished ones leave.
        metrics: counters.
        prefix_cache: whether finished requests leave their tokens for later ones.
        late: whether chunks are made and told of while the next batch is computed: by a device, and for readers that
            are in other threads than the one that steps.
    """

    prefixes: PrefixCache
    prefix_cache: bool

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
        self.late = False

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

    def tell_late(self) -> None:
        """Other threads than the one that steps read from now on."""
        self.late = self.context.model.placement.on_gpu

    def _tell(self) -> None:
        """Wake the readers of new chunks, which are made here where that is `late`.

        Right before a computation, or right after a device has begun one: their threads want the interpreter's lock,
        which it leaves to them.
        """
        if self._told:
            told, self._told = self._told, []
            for request in told:
                if not self.late or request.output.release():
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

    def _end(self, slot: Slot, reason: FinishReason) -> None:
        request = slot.request
        assert request is not None
        if slot.shared:
            kept = slot.cached_tokens[: max(0, slot.shared)]
        elif slot.state is State.GENERATING:
            kept = request.tokens()[: slot.n_past]
        else:
            kept = slot.pending_tokens[: slot.n_past]
        if request.media is not None:
            kept = kept[: request.media.cut(len(kept))]
        self._finish(request, reason)
        self._release(slot, request)
        if self.prefix_cache and request.params.prefix_cache:
            self.prefixes.keep(slot, request, kept)
        else:
            self.prefixes.forget(slot)

    def _purge(self, rows: Sequence[Row]) -> None:
        """Logits are not numbers: the request that caused it fails, nothing that it left in the memory stays.

        Masked cells count as 0 × NaN = NaN, so a sequence without numbers spoils those that it shares cells with, and
        what is computed in its cells later. Who caused it is known when it runs alone.
        """
        spoiled = {slot for row, slot in rows if row >= 0 and not self.selection.finite_row(row)}
        active = [slot for slot in self.slots if slot.request is not None]
        self.prefixes.purge()
        for slot in active:
            request = slot.request
            assert request is not None
            if slot in spoiled and (len(active) == 1 or not self.context.kv_unified):
                self._fail(
                    slot,
                    DecodeError(
                        "the model's logits for this request are not numbers (NaN): its file is damaged, or values are "
                        "too large for the KV cache's type (try kv_type='f32')"
                    ),
                )
            else:
                request.place.alone = request.place.alone or slot in spoiled
                self._requeue(slot)

    def _make_room(self, error: NoKvSlot) -> None:
        """The KV cache is full: forget kept tokens; else let the newest request wait; never lose one."""
        if self.prefixes.make_room():
            return
        active = [slot for slot in self.slots if slot.request is not None]
        if len(active) == 1:
            self._fail(active[0], ContextOverflow(f"the request does not fit the KV cache: {error}"))
            return
        self._requeue(max(active, key=Slot.arrival))
        self._full = True

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
