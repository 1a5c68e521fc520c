"""One queue of tokenized texts, whoever asked; any thread that waits computes batches from it.

A batch holds many texts, a sequence each. There are no threads of its own between calls: a caller computes
batches, its own or another caller's, until its texts are done; for many texts it starts helpers, one for each further
context, which end with the work.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core.batch import Batch
from ..core.context import Context
from ..enums import PoolingType
from ..errors import ClosedError
from ..native.cuda_graphs import Repeats
from .waiting import Floats, Job, Tokens, Waiting


class PackingQueue:
    """Contexts over one model, and the texts that wait for them."""

    def __init__(self, contexts: Sequence[Context], *, spare: int = 0) -> None:
        """`spare`: tokens and sequences of each context that no text takes: one where repeats matter."""
        self._contexts = list(contexts)
        self._free = deque(
            (context, Batch(context.n_ubatch), Repeats(on_gpu=context.model.placement.on_gpu)) for context in contexts
        )
        self._spare = spare
        self._pending = Waiting()
        self._changed = threading.Condition()
        self._closed = False

    def compute(
        self, texts: Sequence[Tokens], batch_tokens: int, report: Callable[[int], object] | None = None
    ) -> list[Floats]:
        """The results of tokenized texts, in their order.

        Args:
            texts: at least one; none empty, none longer than a context's micro-batch.
            batch_tokens: most tokens in a batch, unless one text alone has more.
            report: called with the number of texts done by each batch.

        Raises:
            ClosedError: the queue was closed.
            DecodeError: libllama failed.
        """
        job = Job(texts, batch_tokens, report)
        helpers = []
        try:
            with self._changed:
                if self._closed:
                    raise ClosedError("the embedder is closed")
                self._pending.add(job)
                self._changed.notify_all()
            n_batches = sum(len(text) for text in texts) // batch_tokens
            for _ in range(min(n_batches, len(self._contexts) - 1)):
                helpers.append(threading.Thread(target=self._work, args=(job,), name="llcuda-embed", daemon=True))
                helpers[-1].start()
            self._work(job)
        except BaseException:
            self._forget(job)
            raise
        finally:
            for helper in helpers:
                helper.join()
        if job.error is not None:
            raise job.error
        return [result for result in job.results if result is not None]

    def _work(self, job: Job) -> None:
        """Compute batches until `job` is done."""
        while True:
            with self._changed:
                while job.left and job.error is None and not (self._free and self._pending):
                    if self._closed:
                        job.error = ClosedError("the embedder was closed while this call waited")
                        break
                    self._changed.wait()
                if not job.left or job.error is not None:
                    return
                worker = self._free.popleft()
                taken = self._pending.take(worker[0].n_ubatch - self._spare, worker[0].n_seq_max - self._spare)
            try:
                self._compute(*worker, taken)
            except BaseException as error:
                with self._changed:
                    for owner in {id(item[0]): item[0] for item in taken}.values():
                        owner.error = owner.error or error
                        self._pending.drop(owner)
                if not isinstance(error, Exception):
                    raise
            finally:
                with self._changed:
                    self._free.append(worker)
                    self._changed.notify_all()

    def _compute(self, context: Context, batch: Batch, repeats: Repeats, taken: list[tuple[Job, int]]) -> None:
        batch.clear()
        rows = [batch.extend(job.texts[i], seq_id=s, output="all") for s, (job, i) in enumerate(taken)]
        if repeats.again(batch.n_tokens, len(taken)):
            batch.extend(batch.token[:1], seq_id=len(taken), output="all")
        if context.memory is not None:
            context.memory.clear()
        (context.encode if context.model.has_encoder else context.decode)(batch)
        if context.pooling_type == PoolingType.NONE:
            found = [np.stack([context.embeddings(row) for row in range(*span)]) for span in rows]
        else:
            found = [context.sequence_embedding(s) for s in range(len(taken))]
        done: dict[int, tuple[Job, int]] = {}
        with self._changed:
            for (job, i), result in zip(taken, found, strict=True):
                job.results[i] = result
                job.left -= 1
                done[id(job)] = job, done.get(id(job), (job, 0))[1] + 1
        for job, count in done.values():
            if job.report is not None:
                job.report(count)

    def _forget(self, job: Job) -> None:
        """What was not computed yet is no longer wanted."""
        with self._changed:
            self._pending.drop(job)
            job.error = job.error or ClosedError("the call was interrupted")
            self._changed.notify_all()

    def close(self) -> None:
        """Wait for batches in the making, then free the contexts; calls that wait raise ClosedError."""
        with self._changed:
            self._closed = True
            self._pending.clear()
            self._changed.notify_all()
            while len(self._free) < len(self._contexts):
                self._changed.wait()
            self._free.clear()
            contexts, self._contexts = self._contexts, []
        for context in contexts:
            context.close()


def open_contexts(model: Any, count: int, **settings: Any) -> list[Context]:
    """`count` contexts, or none of them if one cannot be made."""
    made: list[Context] = []
    try:
        for _ in range(count):
            made.append(Context(model, **settings))
    except BaseException:
        for context in made:
            context.close()
        raise
    return made
