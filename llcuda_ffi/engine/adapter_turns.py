"""LoRA adapters of single requests: a context computes with one set of them at a time, so requests take turns.

Requests with the same adapters share batches. Where requests with others wait, the set changes every few steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.adapter import LoraAdapter, active_adapters, check_adapters, set_adapters
from ..core.context import Context
from ..errors import ClosedError, InvalidRequest
from ..params import shown
from .request import Adapters, Request
from .slot import Slot

_TURN = 8  # steps; a change plans the compute graph anew


def adapters_of(context: Context, lora: Any) -> Adapters | None:
    """What `SamplingParams.lora` means for a context; None for those that it has for all requests.

    Raises:
        InvalidRequest: no adapter, or one of another model, or a scale that is no number.
        ClosedError: an adapter was closed.
    """
    if lora is None:
        return None
    chosen = {lora: 1.0} if isinstance(lora, LoraAdapter) else lora
    if not isinstance(chosen, dict) or not chosen:
        raise InvalidRequest(f"lora must be a LoraAdapter, or a dict of adapters and scales, not {shown(lora)}")
    checked = check_adapters(context.model, chosen)
    for adapter in checked:
        adapter.pointer  # noqa: B018  # raises when it was closed
    return tuple(checked.items())


class AdapterTurns:
    """Whose turn it is."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._now: Adapters | None = None
        self._own: dict[LoraAdapter, float] = {}  # those for all requests, while others are set
        self._sure = True  # that `_now` is set: a change that was broken off is made again
        self._steps = 0

    def slots(self, slots: Sequence[Slot]) -> Sequence[Slot]:
        """The slots that take part in the next batch; the context is set for them.

        Raises:
            ClosedError, ModelError: the adapters `now` cannot be used.
        """
        if self._now is None and self._sure:
            for slot in slots:
                if slot.request is not None and slot.request.adapters is not None:
                    break
            else:
                return slots  # as nearly always
        wanted = [slot.request.adapters for slot in slots if slot.request is not None]
        if self._now in wanted and any(adapter.closed for adapter, _ in self._now or ()):
            raise ClosedError("an adapter was closed while a request used it: close it after the request")
        self._steps += 1
        if wanted and (self._now not in wanted or self._steps > _TURN or not self._sure):
            kinds = list(dict.fromkeys(wanted))
            at = kinds.index(self._now) + 1 if self._now in kinds else 0
            self._set(kinds[at % len(kinds)])
        elif not wanted:
            self._set(None)
        return [slot for slot in slots if slot.request is None or slot.request.adapters == self._now]

    def _set(self, adapters: Adapters | None) -> None:
        self._steps = 0
        if adapters == self._now and self._sure:
            return
        own = self.base
        self._own = dict(own)
        self._sure, self._now = False, adapters
        set_adapters(self._context, dict(own if adapters is None else adapters))
        self._sure = True

    def rest(self) -> None:
        """The context has what all requests have, until the next batch."""
        self._set(None)

    def change(self, adapters: Mapping[LoraAdapter, float], requests: Iterable[Request]) -> dict[LoraAdapter, float]:
        """Have other adapters for requests without their own; these `requests` keep what they came to. To be
        called at `rest`.

        Returns:
            those of before.

        Raises:
            InvalidRequest, ClosedError, ModelError: they cannot be used; nothing is changed.
        """
        chosen, before, came = adapters_of(self._context, dict(adapters) or None) or (), self.base, list(requests)
        for request in came:
            if request.adapters is None:
                request.adapters = before
        set_adapters(self._context, dict(chosen))
        for request in came:
            if request.adapters == chosen:
                request.adapters = None
        return dict(before)

    @property
    def now(self) -> Adapters | None:
        """The set whose turn it is."""
        return self._now

    @property
    def base(self) -> Adapters:
        """The adapters that the context has for requests without their own."""
        own = active_adapters(self._context) if self._now is None and self._sure else self._own
        return tuple((adapter, scale) for adapter, scale in own.items() if not adapter.closed)
