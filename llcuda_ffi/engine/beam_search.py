"""Beam search: the likeliest whole answers rather than the likeliest next tokens.

Every step asks for the next token of each beam; the prefix cache makes that one batch of a token for each. Give the
Llama at least as many n_parallel as there are beams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.vocab import Vocab
from ..params import INT32_MAX, flag, integer, number
from .prompts import Prompt, prompt_tokens
from .results import Completion


@dataclass(frozen=True, slots=True)
class Beam:
    """One answer.

    Attributes:
        text: without the end token.
        token_ids: an end token included.
        cumulative_logprob: the log probability of all its tokens.
        finished: whether the model ended it, not max_tokens.
    """

    text: str
    token_ids: list[int]
    cumulative_logprob: float
    finished: bool


class _Generates(Protocol):
    @property
    def vocab(self) -> Vocab: ...

    @property
    def generate(self) -> Callable[..., Any]: ...


def beam_search(
    llm: _Generates,
    prompt: Prompt,
    *,
    width: int = 4,
    max_tokens: int = 16,
    length_penalty: float = 1.0,
    ignore_eos: bool = False,
) -> list[Beam]:
    """The `width` best answers to a prompt, best first.

    Args:
        width: beams that are followed.
        length_penalty: answers are compared by their log probability over their length to this power; 0 favours short
            ones.

    Raises:
        InvalidRequest: an argument is out of range.
        as `Llama.generate` otherwise.
    """
    integer("width", width, 1, 256)
    integer("max_tokens", max_tokens, 1, INT32_MAX)
    number("length_penalty", length_penalty)
    flag("ignore_eos", ignore_eos)
    vocab = llm.vocab
    tokens = prompt_tokens(vocab, prompt)[0].tolist()
    ends = () if ignore_eos else frozenset(vocab.eog_tokens)
    open_beams: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int]]] = []
    for _ in range(max_tokens):
        steps: Sequence[Completion] = llm.generate(
            [[*tokens, *ids] for _, ids in open_beams], max_tokens=1, temperature=0.0, logprobs=2 * width
        )
        found = [
            (score + logprob, [*ids, token])
            for (score, ids), step in zip(open_beams, steps, strict=True)
            for token, logprob in step.logprobs[0].top  # type: ignore[index]
        ]
        found.sort(key=lambda beam: -beam[0])
        done += [beam for beam in found[: 2 * width] if beam[1][-1] in ends]
        open_beams = [beam for beam in found if beam[1][-1] not in ends][:width]
        if not open_beams:
            break

    def rank(beam: tuple[float, list[int]]) -> float:
        return -beam[0] / float(len(beam[1]) ** length_penalty)

    best = sorted([*done, *open_beams], key=rank)[:width]
    return [Beam(vocab.detokenize(ids), ids, score, ids[-1] in ends) for score, ids in best]
