"""TextStream: whole characters, no byte lost, nothing of a stop string."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llcuda_ffi.engine.text import TextStream


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.binary(max_size=60), st.lists(st.integers(0, 1000), max_size=12))
def test_bytes_arrive_whole(data: bytes, cuts: list[int]) -> None:
    """However the bytes are cut into tokens, the chunks join to the text of the whole, and none ends in half a
    character."""
    stream = TextStream(())
    chunks = []
    for piece in _cut(data, cuts):
        assert not stream.push(piece)
        chunks.append(stream.take())
    chunks.append(stream.take(final=True))
    assert "".join(chunks) == data.decode("utf-8", "replace") == stream.text


@given(
    st.text("ab\u00e9\U0001f642", max_size=40),
    st.lists(st.text("ab\u00e9", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 1000), max_size=12),
)
def test_stop_strings(text: str, stops: list[str], cuts: list[int]) -> None:
    """The text ends before the first stop string that becomes complete, wherever tokens begin and end."""
    stream = TextStream(stops)
    shown = ""
    for piece in _cut(text.encode(), cuts):
        stopped = stream.push(piece)
        shown += stream.take()
        assert not any(stop in shown for stop in stops)
        if stopped:
            break
    shown += stream.take(final=True)
    first = min((text.find(s) for s in stops if s in text), default=-1)
    assert stream.stopped == (first >= 0)
    assert shown == stream.text
    if first >= 0:
        # a longer stop string that starts earlier may complete later than a shorter one inside it
        assert text.startswith(shown)
        assert len(shown) >= first
    else:
        assert shown == text


def test_partial_stop_is_held_back_and_released() -> None:
    """What may begin a stop string is shown only once it cannot be one."""
    stream = TextStream(("END",))
    stream.push(b"the E")
    assert stream.take() == "the "
    stream.push(b"N")
    assert stream.take() == ""
    stream.push(b"d")
    assert stream.take() == "ENd"
