"""The scheduler: every request of a process shares one context and one batch.

`step()` computes one batch: a token for each generating slot (with the tokens drafted for it), then chunks of
prompts. It is plain and synchronous; who calls it, and from which thread, is the loop's matter (loop.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TypeVar

from ..core.adapter import LoraAdapter
from ..core.context import Context
from ..errors import Cancelled, DecodeError, LlcudaError, NoKvSlot
from .adapter_turns import AdapterTurns
from .disk_cache import DiskCache
from .encoder import Encoder
from .failures import failure_of
from .lifecycle import Lifecycle
from .media import MediaDecoder
from .plan import Planner, Row
from .prefix_cache import PrefixCache
from .request import Request
from .results import TokenLogprob
from .sampling.logprobs import log_softmax, token_logprob
from .sampling.reduced_rows import WholeRowNeeded
from .sampling.select import BackendMode, Selection
from .slot import Slot, State
from .speculative import Drafter
from .thread_control import ThreadControl

T = TypeVar("T")

_GENERATING = State.GENERATING  # an attribute of an enum class takes longer to look up


class Scheduler(Lifecycle):
    """Continuous batching over one context.

    Attributes:
        n_ctx: most tokens of one request.
        prefix_cache: whether finished requests leave their tokens for later ones.
    """

    def __init__(
        self,
        context: Context,
        *,
        n_ctx: int | None = None,
        prefix_cache: bool = True,
        drafter: Drafter | None = None,
        threads: ThreadControl | None = None,
        backend_sampling: BackendMode = False,
        host_cache_bytes: int = 0,
        checkpoint_bytes: int = 0,
        disk_cache_bytes: int = 0,
        selection: Selection | None = None,
    ) -> None:
        """`selection`: what chooses the tokens, in place of the usual."""
        super().__init__(context, selection or Selection(context, backend_sampling=backend_sampling))
        self.model, self.vocab = context.model, context.model.vocab
        self.n_ctx = min(n_ctx or context.n_ctx_seq, context.n_ctx_seq)
        self._encoder = Encoder(context) if context.model.has_encoder else None
        self.prefix_cache = prefix_cache and self._encoder is None
        self._planner = Planner(context, drafter)
        self._threads = threads
        self._computed = 0.0  # when the last batch was
        self._turns = AdapterTurns(context)
        self._media = MediaDecoder(context)
        self.prefixes = PrefixCache(
            context,
            self.slots,
            self._turns,
            host_bytes=host_cache_bytes,
            checkpoint_bytes=checkpoint_bytes,
            disk=DiskCache(context, disk_cache_bytes) if disk_cache_bytes else None,
        )

    @property
    def n_threads(self) -> int:
        """CPU threads in use."""
        return self._threads.n_threads if self._threads else self.context.params.n_threads or 0

    # --- the step ---

    def step(self) -> bool:
        """Compute one batch. Returns False when there was nothing to do."""
        self._begin()
        if self._requests.ready and not self._full:
            self._admit()
        slots = self._in_turn()
        if self._encoder is not None and (failed := self._encoder.encode(slots)):
            self._fail(*failed)
        rows = self._planner.plan(slots)
        if rows:
            self._run(rows)
        else:
            self._tell()
        seen = self._see(self._planner.prompting) if self._planner.prompting else False
        if self.prefixes.unsaved and self.idle:
            self.prefixes.write_disk()
        self._unfinished = False
        return bool(rows) or seen

    def _see(self, slots: Sequence[Slot]) -> bool:
        """Compute a micro-batch of what prompts have come to that cannot stand beside tokens (media.py); returns
        whether there was any."""
        mixes = self.context.mixes_embeddings
        waiting = [(slot, piece) for slot in slots if (piece := slot.media_piece(mixes)) is not None]
        if not waiting:
            return False
        waiting.sort(key=lambda pair: pair[0].arrival())
        try:
            counts = self._media.compute([piece for _, piece in waiting])
        except NoKvSlot as error:
            self._make_room(error)
        except LlcudaError as error:
            self._fail(waiting[0][0], error)
        else:
            for (slot, _), count in zip(waiting, counts, strict=False):
                slot.reach(slot.n_past + count)
                slot.wanted = [n for n in slot.wanted if n > slot.n_past]
        return True

    def sweep(self) -> None:
        """End what was cancelled or is too late, without computing anything."""
        self._begin()
        self._unfinished = False

    def between_steps(self, function: Callable[[Scheduler], T]) -> T:
        """Call `function(self)` where a step would begin. What it leaves in the middle is computed again."""
        self._begin()
        try:
            self._turns.rest()  # what it asks of the context, or changes, is for all requests
            result = function(self)
        except LlcudaError:
            self._unfinished = False  # refused, or failed in a way that it knows
            raise
        self._unfinished = False
        return result

    def set_adapters(self, adapters: Mapping[LoraAdapter, float]) -> dict[LoraAdapter, float]:
        """Compute with these adapters where a request has none of its own; returns those of before. Between steps.

        The requests that there are keep those of before. What idle slots kept is forgotten: nothing may continue it.
        """
        before = self._turns.change(adapters, self._requests)
        self.prefixes.clear()
        return before

    def _begin(self) -> None:
        """Recover from a step that was interrupted, take in new requests, end those that are over."""
        if self._unfinished:
            self._recover()
        self._unfinished = True
        self._requests.collect()
        for request in self._requests.overdue():
            slot = next((slot for slot in self.slots if slot.request is request), None)
            if slot is not None:
                self._end(slot, "cancelled")
            else:
                self._finish(request, "cancelled")

    def _in_turn(self) -> Sequence[Slot]:
        """The slots whose adapters are set; requests whose adapters cannot be set fail."""
        while True:
            try:
                return self._turns.slots(self.slots)
            except LlcudaError as error:
                for slot in self.slots:
                    if slot.request is not None and slot.request.adapters == self._turns.now:
                        self._fail(slot, error)

    def _admit(self) -> None:
        """Give waiting requests the free slots, by priority, then in order of arrival."""
        later = []
        free = sum(slot.request is None for slot in self.slots)
        try:
            while free and self._requests.ready:
                request = self._requests.pop()
                running = next((slot.request for slot in self.slots if slot.request is not None), None)
                if running is not None and (request.place.alone or running.place.alone):
                    later.append(request)
                    break
                if request.place.group is not None and self._prompting(request.place.group):
                    later.append(request)  # its prompt is being computed for the first of the group
                else:
                    free -= self._place(request, later)
        finally:
            for request in later:
                self._requests.push(request)

    def _place(self, request: Request, later: list[Request]) -> bool:
        """Give a request a slot; returns whether it has one. Else it failed, or must wait: it is `later` then."""
        slot = None
        try:
            tokens = request.tokens() if self._encoder is None else self._encoder.decoder_tokens(request)
            while len(tokens) > self.n_ctx and self._encoder is None:  # broken off before it was shifted
                request.progress.dropped += max(1, (len(tokens) - request.params.keep) // 2)
                tokens = request.tokens()
            reuse = self.prefix_cache and request.params.prefix_cache and not request.scoring
            placed = self.prefixes.place(request, tokens, reuse=reuse)
            if placed is None:
                later.append(request)
                return False
            slot, n_past = placed
            progress = request.progress
            progress.cached_tokens = min(progress.cached_tokens, n_past) if request.output.token_ids else n_past
            slot.request, slot.state, slot.pending_tokens, slot.n_past = request, State.PROMPT, tokens, n_past
            slot.moved = 0 if request.media is None else request.media.moved(n_past)
            slot.used = self._steps
            if request.scoring:
                request.prompt_logprobs = []  # from the start, where a step was interrupted
            request.progress.t_slot = request.progress.t_slot or perf_counter()
            self.selection.prepare(slot, request)
            return True
        except Exception as error:
            failure = failure_of(error)
            if slot is not None and slot.request is request:
                self._fail(slot, failure)
            else:
                self._fail_request(request, failure)
                self._forget_idle()  # what was brought into a slot, or not, is not known
            return False

    def _prompting(self, leader: Request) -> bool:
        return not leader.done and not leader.output.token_ids

    def _run(self, rows: list[Row]) -> None:
        if self._threads is not None:
            self._threads.begin()
        began = perf_counter()
        batch = self._planner.batch
        if self._planner.drafts:
            self.prefixes.before_drafts(slot for _, slot in rows if slot.draft)
        try:
            with self.context.exclusive():  # from the computation to the tokens nobody else has the context
                late = self.late and not self._planner.prompting  # of prompts all but the last part is waited for
                if not late:
                    self._tell()
                self._decode()
                if late:
                    self._tell()
                # what needs no logits is done before they come: a device computes meanwhile
                self.prefixes.decoded()
                self._steps += 1
                self.selection.ahead(rows, batch, self._planner.n_outputs)
                sound = self.selection.read(self._planner.n_outputs)
                self._computed = computed = perf_counter()
                if sound:
                    self.selection.sample()
        except NoKvSlot as error:
            self.prefixes.decoded()
            self._make_room(error)
            return
        except (DecodeError, Cancelled) as error:
            for _, slot in rows:
                self._fail(slot, error)
            return
        finally:
            for slot in self._planner.fillers:
                self.memory.remove(slot.index, len(slot.cached_tokens))
        if not sound:
            self._purge(rows)
            return
        self._planner.computed(self.slots)
        self.metrics.batch(batch.n_tokens - len(self._planner.fillers), computed - began)
        if self._threads is not None:
            self._threads.observe(batch.n_tokens, computed - began)
        for row, slot in rows:
            if slot.state is _GENERATING:
                slot.n_past += 1
                if slot.run:
                    slot.n_past += len(slot.run)
                    slot.run = []
                if slot.draft:
                    self._verify(row, slot)
                else:
                    self._choose(row, slot)
                continue
            if slot.scored >= 0:
                self._score(slot)
            if row < 0:
                slot.reach(slot.n_past - row)
                self.prefixes.prompted(slot)
                continue
            slot.reach(len(slot.pending_tokens))
            slot.cached_tokens = slot.pending_tokens
            slot.state = _GENERATING
            assert slot.request is not None
            if slot.request.limit:
                self._choose(row, slot)
            else:
                self._end(slot, "length")

    def _score(self, slot: Slot) -> None:
        """Read the log probabilities of the part of a prompt that was computed, from the rows that `scored` began."""
        request, first = slot.request, slot.scored
        slot.scored = -1
        assert request is not None
        entries, k = request.prompt_logprobs, request.params.prompt_logprobs
        assert entries is not None
        if not entries:
            entries.append(None)  # nothing stands before the first token
        for i in range(slot.n_past, min(slot.n_past + slot.n_scored, len(request.prompt) - 1)):
            row = log_softmax(self.context.logits_view(first + i - slot.n_past))
            entries.append(token_logprob(self.vocab, int(request.prompt[i + 1]), row, k or 0))

    def _decode(self) -> None:
        self.context.decode_sound(self._planner.batch)

    def _choose(self, row: int, slot: Slot) -> bool:
        """Choose the next token of a slot from batch row `row`; returns whether its request goes on."""
        request = slot.request
        assert request is not None
        try:
            token, logprob = slot.sampled, None
            if token < 0:
                token, logprob = self.selection.token(row, request)
            slot.sampled = -1
            if not self._accept(slot, request, token, logprob):
                return False
            return request.output.constraint is None or self._follow(slot, request)
        except WholeRowNeeded:
            request.place.whole = True
            self._requeue(slot)
            return False
        except Exception as error:
            self._fail(slot, failure_of(error))
            return False

    def _follow(self, slot: Slot, request: Request) -> bool:
        """Accept the tokens that a constraint leaves no choice for; they are computed with the next batch."""
        constraint, sampler = request.output.constraint, request.sampler
        assert constraint is not None
        assert sampler is not None
        if request.output.logprobs is not None or request.steps or request.params.overflow == "shift":
            return True  # these need each token's own row
        assert sampler.row is not None
        left = self._planner.most // len(self.slots) - 1
        while forced := constraint.forced():
            for token in forced:
                if left <= 0 or self.vocab.is_eog(token) or slot.n_past + len(slot.run) + 2 > self.n_ctx:
                    sampler.row.forcing = True  # the rest comes one by one
                    return True
                sampler.chain.accept(token)
                slot.run.append(slot.last)
                if not self._accept(slot, request, token, None):
                    return False
                left -= 1
        sampler.row.forcing = False
        return True

    def _accept(self, slot: Slot, request: Request, token: int, logprob: TokenLogprob | None) -> bool:
        """Give a request its next token; returns whether it goes on."""
        request.progress.token(self._computed)
        slot.last = token
        output = request.output
        if (reason := output.accept(token, logprob)) is not None:
            self._end(slot, reason)
            return False
        if output.streams and (self.late or output.release()):
            self._told.append(request)
        if slot.n_past >= self.n_ctx:
            return self._overflow(slot, request)
        return True

    def _verify(self, row: int, slot: Slot) -> None:
        """Accept the drafted tokens that the model would have chosen itself, and the one after them."""
        draft, slot.draft = slot.draft, []
        request = slot.request
        assert request is not None
        request.progress.drafted += len(draft)
        kept = 0
        going = self._choose(row, slot)
        while going and kept < len(draft) and slot.last == draft[kept]:
            kept += 1
            slot.n_past += 1
            request.progress.accepted += 1
            going = self._choose(row + kept, slot)
        if going and kept < len(draft) and not self.prefixes.reject(slot, request):
            self._requeue(slot)

    def _overflow(self, slot: Slot, request: Request) -> bool:
        """The sequence is full."""
        if request.params.overflow != "shift":
            self._end(slot, "length")
            return False
        keep = min(request.params.keep, slot.n_past - 2)
        discard = max(1, (slot.n_past - keep) // 2)
        request.progress.dropped += discard
        if not self.prefixes.shift(slot, keep, discard):
            self._requeue(slot)  # it is computed again, without what was dropped
            self._full = any(other.request is not None for other in self.slots)
            return False
        slot.n_past -= discard
        slot.shared = keep or -1
        return True
