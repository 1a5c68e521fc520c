"""The saved sequences of the host tier, found by their beginnings, against a loop over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llcuda_ffi import Context, ContextParams, Model
from llcuda_ffi.engine.host_cache import HostCache
from llcuda_ffi.engine.prefix_tree import SavedSequence, common_prefix
from llcuda_ffi.engine.reuse import MIN_COPY, Reuse, ReuseSearch
from llcuda_ffi.engine.sequences import Sequences

from ..support.tiny_architectures import TINY, lively

KEYS = ("plain", "adapted")
# few tokens and lengths, so that many begin alike
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=5)
STEPS = st.tuples(st.sampled_from(("add", "add", "add", "touch", "ask")), st.sampled_from(KEYS), TOKENS)


def saved(key: str, tokens: list[int], size: int | None = None) -> SavedSequence:
    return SavedSequence(key, np.array(tokens, np.int32), memoryview(bytes(len(tokens) if size is None else size)))


@settings(max_examples=80)
@given(st.lists(STEPS, min_size=8, max_size=40), st.integers(4, 30))
def test_found_as_by_a_loop(steps: list[tuple[str, str, list[int]]], budget: int) -> None:
    """Whatever was added, used and forgotten: what is kept, and what shares most, is what a list that is looked through
    gives; and for each sequence there is an answer that shares as much and is no longer."""
    cache, plain = HostCache(budget), list[SavedSequence]()
    for step, key, tokens in steps:
        one = saved(key, tokens)
        shares = {old: common_prefix(old.tokens, one.tokens) for old in plain if old.key == key}
        found = cache.along(key, one.tokens)
        assert all(old.key == key and shares[old] >= n > 0 for n, old in found)
        assert [n for n, _ in found] == sorted({n for n, _ in found}, reverse=True)
        assert max(shares.values(), default=0) == (found[0][0] if found else 0)
        for old, n in shares.items():
            assert not n or any(m >= n and len(other.tokens) <= len(old.tokens) for m, other in found)
        held = any(n == len(tokens) for n in shares.values())
        assert cache.holds(key, one.tokens) == held
        if step == "touch" and found:
            cache.touch(found[0][1])
            plain.append(plain.pop(plain.index(found[0][1])))
        elif step == "add":
            cache.add(one)
            if not held:
                plain = [old for old in plain if shares.get(old) != len(old.tokens)]
                plain += [one] if len(tokens) <= budget else []
                while sum(len(old.data) for old in plain) > budget:
                    plain.pop(0)
        assert list(cache) == plain
        assert cache.nbytes == sum(len(old.data) for old in plain)


@pytest.fixture(scope="module", params=["llama", "gemma3", "lfm2"])
def context(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """One of each memory whose sequences are saved: it goes back anywhere, in a window, nowhere."""
    path = tmp_path_factory.mktemp("tiny") / "model"
    lively(TINY[request.param]()).write(path)
    with Model.load(path) as model, Context(model, ContextParams(n_ctx=512, swa_full=False)) as made:
        yield made


LONG = st.lists(st.tuples(st.integers(0, 3), st.sampled_from((1, 2, 30, 64, 100))), min_size=1, max_size=5)


@settings(max_examples=60)
@given(st.lists(LONG, max_size=12), LONG, st.sets(st.integers(1, 300)), st.integers(0, 4))
def test_reused_as_by_a_loop(context: Context, sequences: list[Any], prompt: Any, known: set[int], images: int) -> None:
    """By the rules of each memory, with checkpoints and images, as many tokens are reused as the best of all saved
    sequences alone gives."""

    def tokens(parts: list[tuple[int, int]]) -> list[int]:
        return [token for token, n in parts for _ in range(n)]

    asked = np.array(tokens(prompt), np.int32)
    places = sorted(n for n in known if n < len(asked))
    # an image's tokens are computed together: nothing ends within them
    media = SimpleNamespace(cut=lambda n: n - n % (10 * images)) if images else None

    def best(host: HostCache) -> tuple[Reuse | None, int]:
        search = ReuseSearch(context, Sequences(context), [], host)
        ways, junction = search.ways(SimpleNamespace(media=media), "plain", asked, places, None, reuse=True)  # type: ignore[arg-type]
        return (ways[0] if ways else None), junction

    together, alone = HostCache(1 << 30), []
    for one in sequences:
        together.add(saved("plain", tokens(one)))
    for one in together:
        single = HostCache(1 << 30)
        single.add(one)
        alone.append(best(single))
    way, junction = best(together)
    assert junction == max((found for _, found in alone), default=0)
    assert (way.n if way else 0) == max((one.n for one, _ in alone if one), default=0)
    assert way is None or way.n >= MIN_COPY
