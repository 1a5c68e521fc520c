"""Random requests over shared beginnings against one Llama, each answer compared with a cold run in another one.

Requests come one by one, several at once, several of one prompt, cancelled in the middle, shifted, not cached; between
them the cache is cleared, saved and loaded. A wrong reuse shows as other log probabilities of the first token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llcuda_ffi import Llama

TOLERANCE = 0.06  # other batch shapes and cell orders of dense F32 models differ by less


@dataclass
class Tally:
    """What a run did.

    Attributes:
        requests: how many were compared; `wrong` describes those that differed.
        prompt_tokens, cached_tokens: of all that may reuse something, the first of each beginning included.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Prompt tokens that were not computed."""
        return self.cached_tokens / max(1, self.prompt_tokens)


class RandomReuse:
    """A run over one model: `warm` is tried, `cold` is the oracle."""

    def __init__(self, path: Path, seed: int, **settings: Any) -> None:
        self.rng = random.Random(seed)
        common: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "n_ubatch": 64, "kv_type": "f32"}
        self.warm = Llama(path, **{**common, "n_parallel": 3, **settings})
        kept = {k: v for k, v in settings.items() if k == "context_params"}
        self.cold = Llama(path, **{**common, "n_parallel": 1, "prefix_cache": False, **kept})
        memory = self.warm.context.memory
        self.shift = memory is not None and memory.can_shift
        self.tally = Tally()
        self._answers: dict[tuple[int, ...], dict[int, float]] = {}
        self.stems = [self._tokens(self.rng.randint(60, 220)) for _ in range(3)]
        self.talks = [list(stem) for stem in self.stems]

    def _tokens(self, n: int) -> list[int]:
        return [self.rng.randint(3, 250) for _ in range(n)]

    def _prompt(self) -> list[int]:
        """A conversation going on, or one that leaves another somewhere."""
        i = self.rng.randrange(len(self.talks))
        talk = self.talks[i]
        way = self.rng.random()
        if way < 0.5:
            talk = talk + self._tokens(self.rng.randint(5, 40))
        elif way < 0.7:
            talk = talk[: self.rng.randint(len(self.stems[i]) // 2, len(talk))] + self._tokens(self.rng.randint(3, 30))
        elif way < 0.85:
            talk = self.stems[i] + self._tokens(self.rng.randint(3, 60))
        if len(talk) > 420:
            talk = self.stems[i] + self._tokens(20)
        self.talks[i] = talk
        return talk

    def _expected(self, prompt: list[int]) -> dict[int, float]:
        known = tuple(prompt)
        if known not in self._answers:
            first = self.cold.generate(prompt, max_tokens=1, temperature=0, logprobs=8).logprobs[0]
            self._answers[known] = dict(first.top)
        return self._answers[known]

    def _compare(self, what: str, prompt: list[int], result: Any) -> None:
        expected, got = self._expected(prompt), dict(result.logprobs[0].top)
        shared = expected.keys() & got.keys()
        far = max((abs(expected[t] - got[t]) for t in shared), default=9.0) if len(shared) > 4 else 9.0
        self.tally.requests += 1
        self.tally.worst = max(self.tally.worst, far)
        if "prefix_cache" not in what:
            self.tally.prompt_tokens += result.usage.prompt_tokens
            self.tally.cached_tokens += result.usage.cached_tokens
        if far > TOLERANCE:
            self.tally.wrong.append(f"{what}: {far:.3f} off, {result.usage}")

    def one(self, **extra: Any) -> None:
        """A request alone, sometimes with an answer of some length."""
        prompt = self._prompt()
        n = self.rng.choice((1, 2, 12))
        result = self.warm.generate(prompt, max_tokens=n, temperature=0, logprobs=8, ignore_eos=True, **extra)
        self._compare(f"one {extra}", prompt, result)
        if self.rng.random() < 0.5:
            i = min(range(3), key=lambda i: self.talks[i] is not prompt)
            self.talks[i] = prompt + result.token_ids

    def many(self) -> None:
        """Several at once, more than there are slots."""
        prompts = [self._prompt() for _ in range(self.rng.randint(2, 5))]
        results = self.warm.generate(
            prompts, max_tokens=self.rng.randint(1, 6), temperature=0, logprobs=8, ignore_eos=True
        )
        for prompt, result in zip(prompts, results, strict=True):
            self._compare("many", prompt, result)

    def group(self) -> None:
        """Several completions of one prompt."""
        prompt = self._prompt()
        for result in self.warm.generate(prompt, max_tokens=2, n=2, temperature=0, logprobs=8, ignore_eos=True):
            self._compare("n", prompt, result)

    def cancel(self) -> None:
        """A stream that is left early."""
        stream = self.warm.stream(self._prompt(), max_tokens=40, temperature=0, ignore_eos=True)
        for _ in range(self.rng.randint(0, 3)):
            next(stream, None)
        stream.close()

    def shifted(self) -> None:
        """An answer longer than the context."""
        prompt = self._prompt()
        self.warm.generate(
            prompt, max_tokens=540 - len(prompt), temperature=0, ignore_eos=True, overflow="shift",
            keep=self.rng.choice((0, 4, 40)),
        )  # fmt: skip

    def run(self, n: int, folder: Path) -> Tally:
        """`n` steps."""
        self.one()
        for step in range(n):
            way = self.rng.random()
            if way < 0.45:
                self.one()
            elif way < 0.65:
                self.many()
            elif way < 0.75:
                self.group()
            elif way < 0.82:
                self.cancel()
            elif way < 0.88:
                self.one(prefix_cache=False)
            elif way < 0.92 and self.shift:
                self.shifted()
            elif way < 0.96:
                self.warm.save_state(folder / f"{step}.state")
                self.warm.clear_cache()
                self.warm.load_state(folder / f"{step}.state")
            else:
                self.warm.clear_cache()
        return self.tally

    def close(self) -> None:
        """Free both."""
        self.warm.close()
        self.cold.close()
