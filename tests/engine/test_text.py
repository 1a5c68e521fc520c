"""TextStream: whole characters, no byte lost, nothing of a stop string."""

from __future__ import annotations

import codecs
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from llcuda_ffi.engine.text import TextStream


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.binary(max_size=60), st.lists(st.integers(0, 1000), max_size=12))
def test_bytes_arrive_whole(data: bytes, cuts: list[int]) -> None:
    """However the bytes are cut into tokens, the chunks join to the text of the whole. An unfinished character at the
    end is not shown: neither half of it nor U+FFFD."""
    stream = TextStream(())
    chunks = []
    for piece in _cut(data, cuts):
        assert not stream.push(piece)
        chunks.append(stream.take())
    chunks.append(stream.take(final=True))
    whole = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
    assert "".join(chunks) == whole == stream.text


def _expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first, of those that end together the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - len(max(found, key=len))], True
    return text, False


@settings(max_examples=400)
@given(
    st.text("ab\u00e9\U0001f642\u0301", max_size=40),
    st.lists(st.text("ab\u00e9\U0001f642\u0301", min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(0, 1000), max_size=12),
)
def test_stop_strings(text: str, stops: list[str], cuts: list[int]) -> None:
    """The text ends before the stop string that is complete first, wherever tokens begin and end, also in characters;
    what was shown before is never taken back."""
    stream = TextStream(stops)
    shown = ""
    for piece in _cut(text.encode(), cuts):
        if stream.push(piece):
            break
        shown += stream.take()
        assert stream.text.startswith(shown)
    shown += stream.take(final=True)
    assert (shown, stream.stop is not None) == _expected(text, stops)
    assert shown == stream.text


@given(st.binary(max_size=40), st.integers(0, 40), st.integers(1, 6), st.lists(st.integers(0, 1000), max_size=12))
def test_a_stop_cut_from_the_text_is_found(data: bytes, start: int, n: int, cuts: list[int]) -> None:
    """Any piece of what is shown stops there, also one with U+FFFD in it."""
    whole = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
    stop = whole[start : start + n]
    if not stop:
        return
    stream = TextStream((stop,))
    assert any(stream.push(piece) for piece in _cut(data, cuts))
    assert stream.take(final=True) == whole[: whole.index(stop)]


def test_partial_stop_is_held_back_and_released() -> None:
    """What may begin a stop string is shown only once it cannot be one."""
    stream = TextStream(("END",))
    stream.push(b"the E")
    assert stream.take() == "the "
    stream.push(b"N")
    assert stream.take() == ""
    stream.push(b"d")
    assert stream.take() == "ENd"
    stream.push(b" E")
    assert stream.take() + stream.take(final=True) == " E"


def test_long_stop_strings_cost_no_more() -> None:
    """256 stop strings of 3,200 characters that nearly match everywhere are matched in one pass over the text."""
    stops = ["ab" * 1600 + chr(0x100 + i) for i in range(256)]
    stream = TextStream(stops)
    assert not any(stream.push(b"ab") for _ in range(50))
    assert stream.text == "ab" * 50
    stream = TextStream(["a" * 3200 + "b", "a" * 3000 + "c"])
    text = "a" * 20_000 + "b"
    assert [stream.push(c.encode()) for c in text].index(True) == 20_000
    assert stream.text == "a" * (20_000 - 3200)
