"""llama-cpp-python's way to generate token by token, and its states."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import InvalidRequest
from .settings import GENERATE_ORDER, SAMPLE_ORDER, named


@dataclass(frozen=True)
class LlamaState:
    """What save_state gives: the KV cache of what was computed.

    Attributes:
        data: as llcuda_ffi.Llama.save_state writes it.
        input_ids: the tokens of `eval` and `generate`.
        seed: what the seeds of the next calls are made from.
    """

    data: bytes
    input_ids: tuple[int, ...]
    seed: int | None = None

    @property
    def n_tokens(self) -> int:
        """How many tokens `eval` had computed."""
        return len(self.input_ids)

    @property
    def llama_state(self) -> bytes:
        """As `data`."""
        return self.data

    @property
    def llama_state_size(self) -> int:
        """Bytes of `data`."""
        return len(self.data)


class TokenByToken:
    """eval, sample and generate of a Llama.

    Attributes:
        eval_tokens: the tokens that `eval` was given since `reset`.
    """

    if TYPE_CHECKING:
        llm: Any

        def _params(self, settings: Any, owner: str) -> Any: ...

    def __init__(self) -> None:
        self.eval_tokens: list[int] = []

    @property
    def n_tokens(self) -> int:
        """How many tokens `eval` was given since `reset`; set it to go back."""
        return len(self.eval_tokens)

    @n_tokens.setter
    def n_tokens(self, value: int) -> None:
        if not 0 <= value <= len(self.eval_tokens):
            raise InvalidRequest(f"n_tokens may go back, from 0 to {len(self.eval_tokens)}, not to {value!r:.60}")
        del self.eval_tokens[value:]

    @property
    def input_ids(self) -> npt.NDArray[np.int32]:
        """The tokens that `eval` was given since `reset`."""
        return np.array(self.eval_tokens, np.int32)

    def reset(self) -> None:
        """Start a new sequence for `eval`."""
        self.eval_tokens.clear()

    def eval(self, tokens: Sequence[int]) -> None:
        """Compute tokens after those before."""
        if len(tokens):
            self.llm.generate([*self.eval_tokens, *tokens], max_tokens=0)
            self.eval_tokens += map(int, tokens)

    def sample(self, *more: Any, **settings: Any) -> int:
        """The next token after what `eval` was given; it is not added.

        Args:
            *more: settings without their names, in llama-cpp-python's order: top_k, top_p, min_p, ….
            **settings: idx: after so many tokens of them; penalize_nl: taken, and without effect, as penalties are
                for all tokens; and those of a completion.
        """
        settings = named(more, SAMPLE_ORDER, settings, "sample")
        idx, _ = settings.pop("idx", None), settings.pop("penalize_nl", None)
        params = self._params({**settings, "max_tokens": 1}, "sample")
        tokens = self.eval_tokens if idx is None else self.eval_tokens[: idx + 1]
        if not tokens:
            raise InvalidRequest("nothing stands before the token to sample: eval(tokens) first")
        token: int = self.llm.generate(list(tokens), params).token_ids[0]
        return token

    def generate(
        self, tokens: Sequence[int], *more: Any, **settings: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens that follow, one by one, to the context's end; what is sent to the generator is added before the next.

        Args:
            *more: settings without their names, in llama-cpp-python's order: top_k, top_p, min_p, ….
            **settings: reset: start a new sequence, by default; stopping_criteria: functions (token ids, logits) that
                end it, where the logits are not told, and zero; and those of `sample`.
        """
        settings = named(more, GENERATE_ORDER, settings, "generate")
        stopping_criteria = settings.pop("stopping_criteria", None)
        if settings.pop("reset", True):
            self.reset()
        settings.pop("penalize_nl", None)
        grammar = settings.get("grammar")
        remembers = grammar is not None or settings.get("mirostat_mode")
        params: Any = self._params({**settings, "max_tokens": None}, "generate") if remembers else None
        self.eval_tokens += map(int, tokens)
        unknown = np.zeros(self.llm.vocab.n_tokens, np.float32)
        while len(self.eval_tokens) < self.llm.n_ctx:
            for token in self._follow(params) if remembers else self._samples(settings):
                if stopping_criteria is not None and stopping_criteria(self.input_ids, unknown):
                    return
                sent = yield token
                self.eval_tokens.append(token)
                if sent:
                    self.eval_tokens += sent
                    break
            else:
                if grammar is not None:  # it is complete: only the end may follow
                    end = [self.eval_tokens[-1]]
                    params = params.replace(grammar=None, json_schema=None, allowed_token_ids=end)

    def _follow(self, params: Any) -> Iterator[int]:
        """The tokens that one request brings after those so far: a grammar and mirostat know what came before."""
        for chunk in self.llm.stream(list(self.eval_tokens), params):
            yield from chunk.token_ids

    def _samples(self, settings: Any) -> Iterator[int]:
        """The tokens that `sample` chooses, each a request of its own: what is done between two of them is heard."""
        while len(self.eval_tokens) < self.llm.n_ctx:
            yield self.sample(**settings)

    @staticmethod
    def logits_to_logprobs(logits: npt.ArrayLike, axis: int = -1) -> npt.NDArray[np.float32]:
        """The logarithm of the softmax."""
        rows = np.asarray(logits, np.float32)
        rows = rows - rows.max(axis=axis, keepdims=True)
        found: npt.NDArray[np.float32] = rows - np.log(np.exp(rows).sum(axis=axis, keepdims=True))
        return found

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens both begin with."""
        return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))  # noqa: B905
