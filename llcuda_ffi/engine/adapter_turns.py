"""LoRA adapters of single requests: a context computes with one set of them at a time, so requests take turns.

Requests with the same adapters share batches. Where requests with others wait, the set changes every few steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.adapter import LoraAdapter, active_adapters, check_adapters, set_adapters
from ..core.context import Context
from ..errors import ClosedError, InvalidRequest
from .request import Adapters
from .slot import Slot

_TURN = 8  # steps; a change plans the compute graph anew


def adapters_of(context: Context, lora: Any) -> Adapters:
    """What `SamplingParams.lora` means for a context.

    Raises:
        InvalidRequest: no adapter, or one of another model, or a scale that is no number.
        ClosedError: an adapter was closed.
    """
    if lora is None:
        return ()
    chosen = {lora: 1.0} if isinstance(lora, LoraAdapter) else lora
    if not isinstance(chosen, dict) or not chosen:
        raise InvalidRequest(f"lora must be a LoraAdapter, or a dict of adapters and scales, not {lora!r:.80}")
    checked = check_adapters(context.model, chosen)
    for adapter in checked:
        adapter.pointer  # noqa: B018  # raises when it was closed
    return tuple(checked.items())


class AdapterTurns:
    """Whose turn it is."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._now: Adapters = ()
        self._own: dict[LoraAdapter, float] = {}  # what the context had before
        self._steps = 0

    def slots(self, slots: Sequence[Slot]) -> Sequence[Slot]:
        """The slots that take part in the next batch; the context is set for them.

        Raises:
            ClosedError, ModelError: the adapters `now` cannot be used.
        """
        if not self._now:
            for slot in slots:
                if slot.request is not None and slot.request.adapters:
                    break
            else:
                return slots  # as nearly always
        wanted = [slot.request.adapters for slot in slots if slot.request is not None]
        if self._now in wanted and any(adapter.closed for adapter, _ in self._now):
            raise ClosedError("an adapter was closed while a request used it: close it after the request")
        self._steps += 1
        if wanted and (self._now not in wanted or self._steps > _TURN):
            kinds = list(dict.fromkeys(wanted))
            at = kinds.index(self._now) + 1 if self._now in kinds else 0
            self._set(kinds[at % len(kinds)])
        elif not wanted:
            self._set(())
        return [slot for slot in slots if slot.request is None or slot.request.adapters == self._now]

    def _set(self, adapters: Adapters) -> None:
        self._steps = 0
        if adapters == self._now:
            return
        if not self._now:
            self._own = active_adapters(self._context)
        self._now = adapters
        set_adapters(self._context, dict(adapters) or {a: s for a, s in self._own.items() if not a.closed})

    @property
    def now(self) -> Adapters:
        """The set whose turn it is."""
        return self._now

    @property
    def base(self) -> Adapters:
        """The adapters that the context has for requests without their own."""
        own = self._own if self._now else active_adapters(self._context)
        return tuple((adapter, scale) for adapter, scale in own.items() if not adapter.closed)
