"""Random requests over shared beginnings against one Llama, each answer compared with a cold run in another one.

Requests come one by one, several at once, several of one prompt, cancelled in the middle, shifted, not cached, with a
LoRA adapter or without; between them the cache is cleared, saved and loaded, and the Llama is made anew. A wrong reuse
shows as other log probabilities of the first token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llcuda_ffi import Llama, lora

from .tiny_model import TinyFile

# other batch shapes and cell orders of dense F32 models differ by less; 297 tokens in micro-batches of 64 and of 512,
# with nothing reused, by 0.09
TOLERANCE = 0.12


@dataclass
class Tally:
    """What a run did.

    Attributes:
        requests: how many were compared; `wrong` describes those that differed.
        reused: those of them that computed only a part of their prompt.
        prompt_tokens, cached_tokens: of all that may reuse something, the first of each beginning included.
    """

    requests: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Prompt tokens that were not computed."""
        return self.cached_tokens / max(1, self.prompt_tokens)


def tiny_adapter(model: TinyFile, path: Path) -> Path:
    """A LoRA adapter of rank 4 on the last matrix of a tiny model's first layer."""
    name = next(f"blk.0.{part}.weight" for part in ("ffn_down", "ssm_out") if f"blk.0.{part}.weight" in model.tensors)
    rows, columns = model.tensors[name][0]
    rng = np.random.default_rng(1)
    kind = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 40.0}
    file = TinyFile({"general.architecture": model.metadata["general.architecture"], **kind})
    file.add(f"{name}.lora_a", (rows, 4), rng)
    file.add(f"{name}.lora_b", (4, columns), rng)
    file.write(path)
    return path


class RandomReuse:
    """A run over one model: `warm` is tried, `cold` is the oracle."""

    def __init__(
        self, path: Path, seed: int, *, adapter: Path | None = None, tolerance: float = TOLERANCE, **settings: Any
    ) -> None:
        """`adapter`: one that a third of the requests have."""
        self._tolerance = tolerance
        self.rng = random.Random(seed)
        common: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "n_ubatch": 64, "kv_type": "f32"}
        self._path, self._settings, self._adapter = path, {**common, "n_parallel": 3, **settings}, adapter
        self.warm, self._warm_adapter = self._open()
        kept = {k: v for k, v in settings.items() if k == "context_params"}
        self.cold = Llama(path, **{**common, "n_parallel": 1, "prefix_cache": False, **kept})
        self._cold_adapter = lora.load(self.cold, adapter) if adapter else None
        memory = self.warm.context.memory
        self.shift = memory is not None and memory.can_shift
        self.tally = Tally()
        self._answers: dict[tuple[int, ...], dict[int, float]] = {}
        self._adapted = False  # whether the requests of this step have the adapter
        self.stems = [self._tokens(self.rng.randint(60, 220)) for _ in range(3)]
        self.talks = [list(stem) for stem in self.stems]

    def _open(self) -> tuple[Llama, Any]:
        llm = Llama(self._path, **self._settings)
        return llm, lora.load(llm, self._adapter) if self._adapter else None

    @property
    def _more(self) -> dict[str, Any]:
        """What the requests of this step have besides their prompts."""
        adapted = {"lora": {self._warm_adapter: 1.0}} if self._adapted else {}
        return {"temperature": 0, "ignore_eos": True, **adapted}

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
        known = (self._adapted, *prompt)
        if known not in self._answers:
            adapted = {self._cold_adapter: 1.0} if self._adapted else None
            first = self.cold.generate(prompt, max_tokens=1, temperature=0, logprobs=8, lora=adapted).logprobs[0]
            self._answers[known] = dict(first.top)
        return self._answers[known]

    def _compare(self, what: str, prompt: list[int], result: Any) -> None:
        expected, got = self._expected(prompt), dict(result.logprobs[0].top)
        shared = expected.keys() & got.keys()
        far = max((abs(expected[t] - got[t]) for t in shared), default=9.0) if len(shared) > 4 else 9.0
        self.tally.requests += 1
        self.tally.reused += result.usage.cached_tokens > 0
        self.tally.worst = max(self.tally.worst, far)
        if "prefix_cache" not in what:
            self.tally.prompt_tokens += result.usage.prompt_tokens
            self.tally.cached_tokens += result.usage.cached_tokens
        if far > self._tolerance:
            self.tally.wrong.append(f"{what}: {far:.3f} off, {result.usage}")

    def one(self, **extra: Any) -> None:
        """A request alone, sometimes with an answer of some length."""
        prompt = self._prompt()
        n = self.rng.choice((1, 2, 12))
        result = self.warm.generate(prompt, max_tokens=n, logprobs=8, **self._more, **extra)
        self._compare(f"one {extra}", prompt, result)
        if self.rng.random() < 0.5:
            i = min(range(3), key=lambda i: self.talks[i] is not prompt)
            self.talks[i] = prompt + result.token_ids

    def many(self) -> None:
        """Several at once, more than there are slots."""
        prompts = [self._prompt() for _ in range(self.rng.randint(2, 5))]
        results = self.warm.generate(prompts, max_tokens=self.rng.randint(1, 6), logprobs=8, **self._more)
        for prompt, result in zip(prompts, results, strict=True):
            self._compare("many", prompt, result)

    def group(self) -> None:
        """Several completions of one prompt."""
        prompt = self._prompt()
        for result in self.warm.generate(prompt, max_tokens=2, n=2, logprobs=8, **self._more):
            self._compare("n", prompt, result)

    def cancel(self) -> None:
        """A stream that is left early."""
        stream = self.warm.stream(self._prompt(), max_tokens=40, **self._more)
        for _ in range(self.rng.randint(0, 3)):
            next(stream, None)
        stream.close()

    def shifted(self) -> None:
        """An answer longer than the context."""
        prompt = self._prompt()
        keep = self.rng.choice((0, 4, 40))
        self.warm.generate(prompt, max_tokens=540 - len(prompt), overflow="shift", keep=keep, **self._more)

    def restart(self) -> None:
        """Close the Llama and make it anew: what is on the disk is still there."""
        self.warm.close()
        self.warm, self._warm_adapter = self._open()

    def run(self, n: int, folder: Path) -> Tally:
        """`n` steps."""
        self.one()
        for step in range(n):
            way = self.rng.random()
            if self._adapter:
                self._adapted = self.rng.random() < 0.33
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
            elif way < 0.99 or not self._settings.get("disk_cache"):
                self.warm.clear_cache()
            else:
                self.restart()
        return self.tally

    def close(self) -> None:
        """Free both."""
        self.warm.close()
        self.cold.close()
