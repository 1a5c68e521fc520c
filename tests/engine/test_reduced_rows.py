"""Whole requests get the same tokens whether the device reduces their rows or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import Llama, SamplingParams
from llcuda_ffi.engine.sampling import reduced_rows
from llcuda_ffi.errors import DecodeError, InvalidRequest, UnsupportedByBundle

from ..support.tiny_architectures import lively
from ..support.tiny_model import make_tiny_llama, tiny_llama

SAMPLED: dict[str, Any] = {"temperature": 1.2, "top_k": 40, "top_p": 0.95, "min_p": 0.01}
# the first take the short way, the rest need whole rows
SHORT: list[dict[str, Any]] = [
    SAMPLED,
    {"temperature": 0},
    {**SAMPLED, "ignore_eos": True},
    {"temperature": 0, "ignore_eos": True, "logit_bias": dict.fromkeys(range(0, 70_000, 2_000), -4.0)},
    {**SAMPLED, "logit_bias": {5: -3.0, 99: float("-inf")}},
    {**SAMPLED, "top_k": 60, "xtc_probability": 0.5, "xtc_threshold": 0.02},
]
WHOLE: list[dict[str, Any]] = [
    {**SAMPLED, "logit_bias": {77: 8.0}},
    {**SAMPLED, "repeat_penalty": 1.3},
    {**SAMPLED, "logprobs": 2},
    {**SAMPLED, "top_k": 0},
    {**SAMPLED, "top_k": 200},
    {**SAMPLED, "prompt_logprobs": 1},
    {**SAMPLED, "grammar": "root ::= [a-z ]+"},
]
N_SLOTS = 4


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a large vocabulary."""
    made = tmp_path_factory.mktemp("reduced") / "wide.gguf"
    make_tiny_llama(made, n_vocab=70_001)
    return made


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Llama]:
    """A Llama that reduces rows."""
    try:
        made = Llama(path, n_ctx=64, n_parallel=N_SLOTS, n_threads=1, backend_sampling="rows")
    except UnsupportedByBundle as error:
        pytest.skip(str(error))
    with made:
        yield made


def _requests(kinds: list[dict[str, Any]]) -> tuple[list[str], list[SamplingParams]]:
    each = [
        SamplingParams(max_tokens=4 + i % 4, seed=i, prefix_cache=False, **kind) for i, kind in enumerate(2 * kinds)
    ]
    return [f"text {i}" + " more" * (i % 3) for i in range(len(each))], each


@pytest.fixture(scope="module")
def expected(path: Path) -> list[list[list[int]]]:
    """The tokens without reduction: of SHORT, and of all kinds."""
    with Llama(path, n_ctx=64, n_parallel=N_SLOTS, n_threads=1) as plain:
        return [[c.token_ids for c in plain.generate(*_requests(kinds))] for kinds in (SHORT, SHORT + WHOLE)]


def test_the_same_tokens(llm: Llama, expected: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can go the short way does, also beside requests that cannot."""
    taken = []
    find = reduced_rows.find_candidates

    def count(*arguments: Any) -> reduced_rows.Candidates:
        found = find(*arguments)
        taken.append(found.sound.tolist())
        return found

    monkeypatch.setattr(reduced_rows, "find_candidates", count)
    assert [c.token_ids for c in llm.generate(*_requests(SHORT))] == expected[0]
    assert all(all(sound) for sound in taken)
    assert sum(map(len, taken)) >= sum(map(len, expected[0]))
    assert [c.token_ids for c in llm.generate(*_requests(SHORT + WHOLE))] == expected[1]


def test_where_reduced_rows_do_not_tell(
    llm: Llama, expected: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole row is read from the device, or the request is computed again: the tokens stay the same."""
    find = reduced_rows.find_candidates
    calls: list[int] = []
    whole: list[int] = []
    from_whole = reduced_rows.ReducedRows._from_whole

    def doubt(layout: Any, rows: Any, needs: Any) -> reduced_rows.Candidates:
        calls.append(len(rows))
        found = find(layout, rows, needs)
        return replace(found, sound=found.sound & (len(calls) % 3 > 0))

    def note(self: reduced_rows.ReducedRows, at: int) -> int:
        whole.append(from_whole(self, at))
        return whole[-1]

    monkeypatch.setattr(reduced_rows, "find_candidates", doubt)
    monkeypatch.setattr(reduced_rows.ReducedRows, "_from_whole", note)
    assert [c.token_ids for c in llm.generate(*_requests(SHORT))] == expected[0]
    assert min(whole) == -1  # beside a prompt
    assert max(whole) >= 0


@pytest.mark.usefixtures("llm")  # skips where the bundle cannot
def test_logits_that_are_no_numbers(tmp_path: Path) -> None:
    """A request whose logits are NaN fails alone."""
    file = lively(tiny_llama(n_vocab=10_000))
    ne, kind, raw = file.tensors["token_embd.weight"]
    rows = np.frombuffer(raw, np.float32).reshape(ne[1], ne[0]).copy()
    rows[7] = np.nan
    file.tensors["token_embd.weight"] = ne, kind, rows.tobytes()
    file.write(tmp_path / "model")
    prompts = [[10, 7, 11], [10, 11, 12, 13], [20, 21]]
    wanted: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_exceptions": True}
    found = []
    for mode in (False, "rows"):
        with Llama(tmp_path / "model", n_ctx=64, n_parallel=3, n_threads=1, backend_sampling=mode) as made:  # type: ignore[arg-type]
            found.append(made.generate(prompts, **wanted))
    assert [isinstance(results[0], DecodeError) for results in found] == [True, True]
    assert [c.token_ids for c in found[0][1:]] == [c.token_ids for c in found[1][1:]]


def test_the_setting(path: Path) -> None:
    """It is checked, and goes without drafts."""
    with pytest.raises(InvalidRequest, match="backend_sampling"):
        Llama(path, backend_sampling="columns")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="draft"):
        Llama(path, backend_sampling="rows", draft="ngram")
