"""`n_threads="auto"`: the number of CPU threads follows what the machine can give.

ggml's threads meet at barriers where they spin: when another process takes one of their cores, all of them wait for
the thread that lost it, and two threads become several times slower than one. The control watches the time of each
step, gives a thread up at once when steps have become much slower than they were, and tries to take it back seldom,
and less and less often while that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

_BINS = 12  # batch sizes by power of two: steps are compared with steps of their kind
_SLOW = 1.45  # a step this much slower than the best of its kind counts against the thread count
_STRIKES = 2
_FIRST_TRIAL_S = 0.5
_LONGEST_TRIAL_S = 8.0
_TRIAL_STEPS = 3


class ThreadControl:
    """Chooses the thread count of one context.

    Attributes:
        n_threads: the count now in use.
        changes: how often it was changed.
    """

    def __init__(self, most: int, apply: Callable[[int], None], clock: Callable[[], float] = monotonic) -> None:
        self.n_threads = self._most = most
        self.changes = 0
        self._apply, self._clock = apply, clock
        # best[t][bin]: the shortest recent step with t threads, slowly forgotten
        self._best = [[0.0] * _BINS for _ in range(most + 1)]
        self._strikes = 0
        self._backoff = _FIRST_TRIAL_S
        self._next_trial = 0.0
        self._trial_from = 0  # while trying more threads: the count to fall back to
        self._trial_steps: list[float] = []

    def observe(self, n_tokens: int, seconds: float) -> None:
        """A batch of `n_tokens` took `seconds`."""
        if self._most < 2:
            return
        kind = min(n_tokens.bit_length(), _BINS - 1)
        per_token = seconds / n_tokens
        now = self.n_threads
        best = self._best[now][kind]
        if self._trial_from:
            self._judge_trial(kind, per_token)
            return
        if best == 0.0 or per_token < best:
            self._best[now][kind] = per_token
            self._strikes = 0
        else:
            self._best[now][kind] = best * 1.002  # a context that grows is slower for good: the best fades
            slow = per_token > _SLOW * best
            self._strikes = self._strikes + 1 if slow else max(0, self._strikes - 1)
        if self._strikes >= _STRIKES and now > 1:
            self._change(max(1, now - 1 if now <= 4 else now // 2))
            self._next_trial = self._clock() + self._backoff
        elif now < self._most and self._clock() >= self._next_trial:
            self._trial_from, self._trial_steps = now, []
            self._change(min(self._most, now + 1 if now < 4 else now * 2))

    def _judge_trial(self, kind: int, per_token: float) -> None:
        """More threads stay only when they are clearly faster than fewer were."""
        before = self._best[self._trial_from][kind]
        self._trial_steps.append(per_token / before if before else 1.0)
        steps = self._trial_steps
        bad = sum(ratio > 1.1 for ratio in steps)
        if bad == 0 and len(steps) < _TRIAL_STEPS:
            return
        start, self._trial_from = self._trial_from, 0
        if bad:
            self._change(start)
            self._backoff = min(self._backoff * 2, _LONGEST_TRIAL_S)
        else:
            self._best[self.n_threads][kind] = min(steps) * before if before else per_token
            self._backoff = _FIRST_TRIAL_S
        self._next_trial = self._clock() + self._backoff

    def _change(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._strikes = 0
        self.changes += 1
        self._apply(n_threads)
