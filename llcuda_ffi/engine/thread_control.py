"""`n_threads="auto"`: the number of CPU threads follows what the machine can give.

ggml's threads meet at barriers where they spin: when another process takes one of their cores, all of them wait for
the thread that lost it, and two threads become several times slower than one. Two things are watched:

- the supply: cores that this process uses or that are idle. What is missing from the sum, others took. Threads beyond
  the supply are given up at once, after a pause before the first step: beside others that could take seconds.
- the time of each step, for what the supply does not show (a quota, other threads of this process): steps that become
  much slower than they were cost a thread too.

More threads are tried when the supply allows it, for a few steps; they stay only if those are faster, and are tried
less and less often while they are not.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Protocol

from ..hardware.supply import CpuSupply

_BINS = 12  # batch sizes by power of two: steps are compared with steps of their kind
_LOOK_S = 0.5  # a look reads /proc/stat, which takes most of a millisecond on large machines
_LOOK_NOW_S = 0.1  # after slow steps; the system's figures are in steps of 10 ms
_LACK = 0.4  # cores missing in one look
_LACK_TWICE = 0.3  # cores missing in two looks, one after the other
_SLOW = 1.5  # a step this much slower than usual counts against the thread count
_STRIKES = 8  # such steps cost a thread, though the supply looks well
_STRIKES_BLIND = 2  # where the supply is not known
_PAUSE_S = 0.5  # without steps for so long, what was seen before is old
_FIRST_TRIAL_S = 0.5
_LONGEST_TRIAL_S = 16.0
_TRIAL_STEPS = 4
_GAIN = 0.98
_COST = 20  # after a trial that failed, wait at least so many times its length


class Supply(Protocol):
    """Where the control asks for the cores that this process could have; see CpuSupply."""

    def available(self) -> float | None:
        """Cores since the last call (the first call: since before), or None if that is not known."""

    def restart(self) -> None:
        """Measure from now on."""


class ThreadControl:
    """Chooses the thread count of one context.

    Attributes:
        n_threads: the count now in use.
        changes: how often it was changed.
    """

    def __init__(
        self,
        most: int,
        apply: Callable[[int], None],
        clock: Callable[[], float] = monotonic,
        supply: Supply | None = None,
    ) -> None:
        self.n_threads = self._most = most
        self.changes = 0
        self._apply, self._clock = apply, clock
        self._supply: Supply = supply or CpuSupply()
        now = self._looked = clock()
        self._last_step = now - 2 * _PAUSE_S  # the first step is one after a pause
        self._taken_back = now - _LONGEST_TRIAL_S
        self._lacked = self._blind = False
        self._every = _LOOK_NOW_S  # the first look is early: the machine may be busy from the start
        # usual[t][bin]: seconds per token with t threads, a running mean
        self._usual = [[0.0] * _BINS for _ in range(most + 1)]
        self._strikes = 0
        self._backoff = _FIRST_TRIAL_S
        self._next_trial = now
        self._trial_from = 0  # while trying more threads: the count to fall back to
        self._trial_took = self._trial_expected = 0.0
        self._trial_steps = 0

    def begin(self) -> None:
        """A batch is about to be computed."""
        if self._most < 2 or (now := self._clock()) - self._last_step <= _PAUSE_S:
            return
        available = self._supply.available()
        if available is not None and self.n_threads - available >= _LACK:
            # others ran during the pause; if they run on, the first step would take seconds
            self._change(max(1, int(available + 0.1)))
            self._backoff, self._next_trial = _FIRST_TRIAL_S, now + _FIRST_TRIAL_S
        self._forget(now)
        self._every = _LOOK_NOW_S

    def observe(self, n_tokens: int, seconds: float) -> None:
        """A batch of `n_tokens` took `seconds`."""
        if self._most < 2:
            return
        now = self._last_step = self._clock()
        kind = min(n_tokens.bit_length(), _BINS - 1)
        if self._trial_from:
            self._judge(kind, n_tokens, seconds, now)
            return
        self._count(kind, seconds / n_tokens)
        if self._strikes >= (_STRIKES_BLIND if self._blind else _STRIKES) and self.n_threads > 1:
            self._give_way(self.n_threads - 1 if self.n_threads <= 4 else self.n_threads // 2, now)
            return
        if now - self._looked >= (_LOOK_NOW_S if self._strikes or self._lacked else self._every):
            self._look(now)

    def _forget(self, now: float) -> None:
        """Count and measure from here on."""
        self._supply.restart()
        self._looked, self._lacked, self._strikes = now, False, 0

    def _count(self, kind: int, per_token: float) -> None:
        usual = self._usual[self.n_threads]
        if usual[kind] == 0.0:
            usual[kind] = per_token
            return
        slow = per_token > _SLOW * usual[kind]
        self._strikes = self._strikes + 1 if slow else max(0, self._strikes - 2)
        # single stalls must not become usual quickly, a context that grows must in time
        usual[kind] += (0.02 if slow else 0.2) * (per_token - usual[kind])

    def _look(self, now: float) -> None:
        """Compare the threads in use with the cores that could be had."""
        self._looked, self._every = now, _LOOK_S
        available = self._supply.available()
        self._blind = available is None
        threads = self.n_threads
        if available is not None:
            lack = threads - available
            enough = lack < _LACK_TWICE
            if lack >= _LACK or (not enough and self._lacked):
                self._lacked = False
                if threads > 1:
                    self._give_way(max(1, int(available + 0.1)), now)
                return
            self._lacked = not enough
            if available < threads + 0.75:
                return
        if threads < self._most and now >= self._next_trial:
            more = threads + 1 if threads < 4 else threads * 2
            if available is not None:
                more = max(threads + 1, int(available + 0.25))
            self._trial_from, self._trial_steps = threads, 0
            self._trial_took = self._trial_expected = 0.0
            self._change(min(self._most, more))

    def _judge(self, kind: int, n_tokens: int, seconds: float, now: float) -> None:
        """More threads stay only when they are faster than fewer are."""
        start = self._trial_from
        self._trial_steps += 1
        usual = self._usual[start][kind]
        if usual:
            self._trial_took += seconds
            self._trial_expected += usual * n_tokens
        took, expected = self._trial_took, self._trial_expected
        if self._trial_steps < _TRIAL_STEPS and took <= 2.5 * expected:
            return
        self._trial_from = 0
        if took > _GAIN * expected:
            # long steps make trials dear: they are paid for before the next one
            self._backoff = max(min(self._backoff * 2, _LONGEST_TRIAL_S), _COST * took)
            self._change(start)
            self._forget(now)
        else:
            self._taken_back = now
            self._forget(now)
        self._next_trial = now + self._backoff

    def _give_way(self, n_threads: int, now: float) -> None:
        if now - self._taken_back < 4 * self._backoff:  # what was taken back did not last
            self._backoff = min(self._backoff * 2, _LONGEST_TRIAL_S)
        else:
            self._backoff = _FIRST_TRIAL_S
        self._change(min(n_threads, self.n_threads))
        self._next_trial = now + self._backoff
        self._forget(now)

    def _change(self, n_threads: int) -> None:
        self._strikes = 0
        if n_threads != self.n_threads:
            self.n_threads = n_threads
            self.changes += 1
            self._apply(n_threads)
