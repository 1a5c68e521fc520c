"""Which replica has computed the beginning of a prompt."""

from __future__ import annotations

from typing import Any

from llcuda_ffi.pipelines.serve.prefixes import PrefixTable, prefix_keys

LONG = "a text of some length, so that it fills a few blocks; " * 20


def _chat(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"temperature": 1, "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


def test_a_next_turn_goes_on() -> None:
    """A conversation's next turn begins with the keys of the last one; another conversation, or model, with none."""
    first, second = prefix_keys(_chat(LONG)), prefix_keys(_chat(LONG, "answer", LONG))
    assert len(first) > 4
    assert second[: len(first)] == first
    short = prefix_keys(_chat("Hi"))
    assert len(short) == 1
    assert prefix_keys(_chat("Hi", "Hello!", "Who are you?"))[:1] == short
    assert not set(first) & set(prefix_keys(_chat("another" + LONG)))
    assert not set(first) & set(prefix_keys({**_chat(LONG), "model": "other"}))
    assert prefix_keys({"prompt": list(range(200))})[:2] == prefix_keys({"prompt": list(range(300))})[:2]


def test_a_response_goes_on_with_its_keys() -> None:
    """What goes on from a response begins with the keys of that one's prompt, and another input ends otherwise."""
    earlier = prefix_keys({"input": LONG})
    one, other = (prefix_keys({"input": text}, earlier) for text in ("and?", "or?"))
    assert one[: len(earlier)] == other[: len(earlier)] == earlier
    assert len(one) == len(earlier) + 1
    assert one[-1] != other[-1] != prefix_keys({"input": "or?"})[-1]


def test_the_longest_prefix_wins() -> None:
    """The holder of the longest prefix among the living replicas; the oldest prefixes are forgotten."""
    table = PrefixTable(limit=6)
    table.put(["a", "b"], 1)
    table.put(["a", "c", "d"], 2)
    assert table.find(["a", "b", "x", "y"], {1, 2}) == (1, 0.5)
    assert table.find(["a", "c", "d"], {1, 2}) == (2, 1.0)
    assert table.find(["a", "c", "d"], {1}) == (None, 0.0)
    assert table.find(["z"], {1, 2}) == (None, 0.0)
    table.put(["e", "f", "g"], 1)
    assert table.find(["b"], {1, 2}) == (None, 0.0)
