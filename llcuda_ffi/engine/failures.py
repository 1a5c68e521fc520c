"""What an exception inside the engine means: an interruption from outside, or the failure of a request."""

from __future__ import annotations

import logging
import signal
import threading

from ..errors import BackendFailure, ConcurrentUseError, LlcudaError

log = logging.getLogger("llcuda_ffi.engine")


def interrupts(error: BaseException) -> bool:
    """Whether an exception came from outside: Ctrl-C, or what a signal handler of the program raises.

    Such an exception may come up between any two instructions of the main thread. It belongs to the program, not to
    what was running.
    """
    return not isinstance(error, Exception) or _from_handler(error)


def _from_handler(error: BaseException) -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False  # only the main thread runs signal handlers
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def failure_of(error: Exception) -> LlcudaError:
    """What the request fails with that was worked on when `error` came up; an unexpected one is logged.

    Raises:
        what came from outside: an interruption, or that another thread is using the context.
    """
    if isinstance(error, ConcurrentUseError) or interrupts(error):
        raise error
    if isinstance(error, LlcudaError):
        return error
    log.error("a request failed because of an unexpected exception", exc_info=error)
    failure = BackendFailure(f"the request failed because of an unexpected {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
