"""The engine loop: steps one or several schedulers, and runs commands between their steps.

Two ways to be led. By the callers: a thread that waits for a request leads, stepping for everybody, until its own
request has something; then another waiting thread takes over, and a lone caller pays no thread. Or by threads of its
own, one for each scheduler, for callers that must not block and for several contexts of one model: while one
context's tokens are chosen on the CPU, the GPU computes for another. A request stays in the context it came to.

Three ends. `close` ends every request with Cancelled. An exception of the caller that leads (Ctrl-C, or what a signal
handler raises) ends that call; the step is computed again by the next one. Any other exception that leaves a step is
a defect: the loop is dead from then on, its `failure` says why, and so does every request and every later call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import sleep
from typing import Any, Generic, TypeVar

from ..errors import Cancelled, ClosedError, ConcurrentUseError, EngineFailure, LlcudaError
from ..native.handle import generation
from .failures import interrupts, log
from .request import Request
from .scheduler import Scheduler

T = TypeVar("T")

_SLACK = 0.25  # of a replica's slots
_NET_S = 0.1  # a waiting thread looks again after this; wakes come by events
_PAUSE_S = 0.001  # before a step that found the context in use is tried again


class Command(Generic[T]):
    """Something to do between two steps of a scheduler.

    Attributes:
        done: whether it was run; then `result` has its value or raises.
        wake: set when it is done, for a thread that waits.
    """

    def __init__(self, function: Callable[[Scheduler], T]) -> None:
        self._function = function
        self._value: T | None = None
        self._error: BaseException | None = None
        self.done = False
        self.wake: threading.Event | None = None

    def run(self, scheduler: Scheduler) -> None:
        """Run it; its exceptions are kept for `result`, only those that end the calling thread go on."""
        try:
            self._value = scheduler.between_steps(self._function)
        except BaseException as error:
            self._error = error
            if interrupts(error):
                raise
        finally:
            self.done = True
            if self.wake is not None:
                self.wake.set()

    def result(self) -> T:
        """What it gave."""
        if self._error is not None:
            if interrupts(self._error):
                raise Cancelled("the thread that ran this call was interrupted: call again") from self._error
            raise self._error
        return self._value  # type: ignore[return-value]


class Replica:
    """One of the schedulers: who steps it, what is to be done between its steps, who waits."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.lead = threading.Lock()
        self.leader: int | None = None  # the thread that is inside a step
        self.commands: deque[Command[Any]] = deque()
        self.waiting: deque[threading.Event] = deque()
        self.work = threading.Event()  # for its thread: there may be something to do
        self.thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.commands and self.scheduler.idle

    def advance(self) -> bool:
        """Run the commands, then one step; to be called by the thread that leads.

        Returns:
            False where there was nothing to do.
        """
        if self.commands:
            self._run_commands()
        return self.scheduler.step()

    def _run_commands(self) -> None:
        commands = self.commands
        while commands:
            command = commands[0]
            if not command.done:
                command.run(self.scheduler)
            try:
                commands.remove(command)
            except ValueError:
                pass  # the thread that waited for it was interrupted

    def pass_on(self) -> None:
        """Wake one waiting thread, to lead."""
        try:
            self.waiting[0].set()
        except IndexError:
            pass


class EngineLoop:
    """Steps the schedulers of one Llama.

    Attributes:
        schedulers: one for each context.
        failure: the exception that ended the loop, None while it is sound.
        closed: whether it was closed.
    """

    def __init__(self, schedulers: Sequence[Scheduler]) -> None:
        """Several schedulers are led by threads from the start; one is until `start` led by its callers."""
        self._replicas = [Replica(scheduler) for scheduler in schedulers]
        self.schedulers = list(schedulers)
        self.failure: BaseException | None = None
        self.closed = self._closing = self._stopped = False
        self.threaded = False
        self._generation = generation()
        if len(schedulers) > 1:
            self.start()

    def start(self) -> None:
        """Have threads of its own lead from now on."""
        if not self.threaded:
            self.threaded = True
            for replica in self._replicas:
                replica.scheduler.tell_late()
                replica.thread = threading.Thread(
                    target=self._run, args=(replica,), name="llcuda_ffi-engine", daemon=True
                )
                replica.work.set()
                replica.thread.start()

    def check(self) -> None:
        """Refuse use after close, after a failure and after a fork.

        Raises:
            ClosedError, EngineFailure, ConcurrentUseError: accordingly.
        """
        if self._closing:
            raise ClosedError("this Llama is closed: make a new one")
        if self.failure is not None:
            raise self._dead()
        if generation() != self._generation:
            raise ConcurrentUseError(
                "this Llama was made before a fork, and native threads do not survive one: load it in the child "
                "process (multiprocessing start method 'spawn')"
            )

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do but ending what was cancelled."""
        return all(not scheduler.wanted for scheduler in self.schedulers)

    # --- requests ---

    def submit(self, *requests: Request) -> None:
        """Queue requests.

        Raises:
            as `check`.
        """
        self.check()
        for request in requests:
            request.place.replica = self._choose(request)
            self.schedulers[request.place.replica].submit(request)
        if self.threaded:
            for at in {request.place.replica for request in requests}:
                self._replicas[at].work.set()
        if self._closing or self.failure is not None:  # meanwhile: nobody would answer them
            for request in requests:
                if not request.done:
                    request.fail(self._ended())

    def _choose(self, request: Request) -> int:
        """The least busy replica; one that is little busier where most of the prompt is cached there."""
        if len(self.schedulers) == 1:
            return 0
        if request.place.group is not None:
            return request.place.group.place.replica  # n completions share their prompt
        busy = [scheduler.busy for scheduler in self.schedulers]
        near = [at for at, share in enumerate(busy) if share <= min(busy) + _SLACK]

        def rank(at: int) -> tuple[int, float]:
            shared = self.schedulers[at].prefixes.shared(request)
            return shared if 2 * shared >= len(request.prompt) else 0, -busy[at]

        return max(near, key=rank)

    def cancel(self, *requests: Request) -> None:
        """End requests as "cancelled": at once where nobody leads, else between two steps."""
        touched = set()
        for request in requests:
            if not request.done:
                self.schedulers[request.place.replica].cancel(request)
                touched.add(request.place.replica)
        for at in touched:
            replica = self._replicas[at]
            if self.threaded:
                replica.work.set()
            elif not (replica.lead.locked() or self._closing or self.failure is not None):
                if replica.scheduler.context.closed:
                    continue  # at exit: a stream that nobody closed outlives it
                try:
                    with replica.lead:
                        self._advance(replica, replica.scheduler.sweep)
                finally:
                    replica.pass_on()

    def wait(self, request: Request, ready: Callable[[], bool] | None = None) -> None:
        """Return once `ready()`, which is that the request is done by default; meanwhile lead, or wait.

        Args:
            request: its `notify` wakes this thread while another one leads.

        Raises:
            as `check`; and what interrupts this thread while it leads.
        """
        self._until(self._replicas[request.place.replica], request, ready or (lambda: request.done))

    def _until(self, replica: Replica, waiter: Request | Command[Any], ready: Callable[[], bool]) -> None:
        lead, advance = replica.lead, replica.advance
        if lead.locked() and replica.leader == threading.get_ident():
            raise ConcurrentUseError(
                "this Llama is in the middle of a step: what it calls there, such as a logits processor, cannot wait "
                "for an answer of the same Llama"
            )
        while not ready():
            self.check()
            if (self.threaded or lead.locked() or replica.waiting) and not self._sleep(replica, waiter, ready):
                return
            try:
                with lead:
                    while not ready():
                        if self._closing or self.failure is not None:
                            self.check()
                        if not self._advance(replica, advance) and replica.idle and not ready():
                            self._fail(replica, RuntimeError("a request was lost"))
            finally:
                if replica.waiting:
                    replica.pass_on()

    def _sleep(self, replica: Replica, waiter: Request | Command[Any], ready: Callable[[], bool]) -> bool:
        """Sleep until the waiter has something (False) or nobody leads (True)."""
        wake = waiter.wake
        if wake is None:
            wake = waiter.wake = threading.Event()
        try:
            replica.waiting.append(wake)
            while not ready():
                self.check()
                if not (self.threaded or replica.lead.locked()):
                    return True
                wake.wait(_NET_S)
                wake.clear()
            return False
        finally:
            try:
                replica.waiting.remove(wake)
            except ValueError:
                pass
            if not replica.lead.locked():
                replica.pass_on()

    # --- commands ---

    def call(self, function: Callable[[Scheduler], T]) -> list[T]:
        """Run `function(scheduler)` for each scheduler, between two of its steps; returns the results in order.

        Requests that were cancelled before are over by then.

        Raises:
            as `check`, and what the function raises.
        """
        self.check()
        commands = [Command(function) for _ in self._replicas]
        for replica, command in zip(self._replicas, commands, strict=True):
            replica.commands.append(command)
            replica.work.set()
        try:
            for replica, command in zip(self._replicas, commands, strict=True):
                self._until(replica, command, lambda command=command: command.done)  # type: ignore[misc]
        finally:
            for replica, command in zip(self._replicas, commands, strict=True):
                if not command.done:  # this thread was interrupted: nobody wants it any more
                    try:
                        replica.commands.remove(command)
                    except ValueError:
                        pass
        return [command.result() for command in commands]

    # --- stepping ---

    def _advance(self, replica: Replica, act: Callable[[], T]) -> T | bool:
        """Step, or do something else with a scheduler, in the thread that leads it; what it returns."""
        try:
            replica.leader = threading.get_ident()
            return act()
        except ConcurrentUseError as error:
            # another thread asks something of the context: what was begun is computed again
            log.debug("a step is computed again: %s", error)
            sleep(_PAUSE_S)
            return True
        except BaseException as error:
            if interrupts(error) and threading.current_thread() is not replica.thread:
                raise
            self._fail(replica, error)
            raise self._dead() from error
        finally:
            replica.leader = None

    def _run(self, replica: Replica) -> None:
        """What the thread of a replica does: nothing that goes wrong in it leaves anybody waiting."""
        try:
            self._serve(replica)
        except BaseException as error:
            self._note(error)
        if self.failure is not None:
            with replica.lead:
                replica.scheduler.abandon(self._dead)

    def _serve(self, replica: Replica) -> None:
        while not (self._stopped or self.failure is not None):
            replica.work.wait()
            replica.work.clear()
            with replica.lead:
                while not (self._stopped or self.failure is not None or replica.idle):
                    self._advance(replica, replica.advance)

    def _fail(self, replica: Replica, error: BaseException) -> None:
        """The loop is dead. To be called by the thread that leads."""
        self._note(error)
        replica.scheduler.abandon(self._dead)

    def _note(self, error: BaseException) -> None:
        """Keep the first exception that ended the loop, and have every thread see it."""
        if self.failure is None:
            log.error("the engine of a Llama stopped because of an unexpected exception", exc_info=error)
            self.failure = error
        for replica in self._replicas:
            replica.work.set()

    def _dead(self) -> EngineFailure:
        failure = self.failure
        error = EngineFailure(
            f"the engine of this Llama stopped because of an unexpected {type(failure).__name__}: {failure}. "
            "Make a new Llama; this is a defect of llcuda_ffi or of the machine, the log has its traceback"
        )
        error.__cause__ = failure
        return error

    def _ended(self) -> LlcudaError:
        """What ends a request that nobody computes any more."""
        if self.failure is not None:
            return self._dead()
        return Cancelled("the Llama was closed while the request was running")

    # --- the end ---

    @property
    def in_use(self) -> bool:
        """Whether a thread waits in one of its calls, or leads for one."""
        return any(replica.waiting or (not self.threaded and replica.lead.locked()) for replica in self._replicas)

    def stop(self) -> None:
        """End its threads, each after the step that is running. What is left of their work stays undone."""
        self._stopped = True
        for replica in self._replicas:
            replica.work.set()
        for replica in self._replicas:
            # not from the thread itself, where the garbage collector may call it
            if replica.thread is not None and replica.thread is not threading.current_thread():
                replica.thread.join()

    def close(self, *, wait: bool = False) -> None:
        """End every request with Cancelled, and the threads. Does nothing the second time.

        Args:
            wait: end the calls of other threads too, instead of refusing.

        Raises:
            ConcurrentUseError: another thread is in one of its calls.
        """
        if self.closed:
            return
        if generation() == self._generation:
            if self.in_use and not wait:
                raise ConcurrentUseError("this Llama is generating in another thread: close it when that is done")
            self._closing = True
            self.stop()
            for replica in self._replicas:
                with replica.lead:
                    replica.scheduler.close(self._ended)
        self.closed = self._closing = True
