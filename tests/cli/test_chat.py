"""The terminal chat in a terminal: pasted lines, history, a context that fills up."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from llcuda_ffi import Llama
from llcuda_ffi.cli.conversation import Conversation

MAIN = "from llcuda_ffi.cli import main; main()"


def test_pasted_lines_are_one_message(smollm2: Path, tmp_path: Path) -> None:
    """Lines pasted into a real terminal (bracketed paste) are one message; /history shows it whole."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "chat", str(smollm2), "-n", "3", "-c", "256"],
        stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env={**os.environ, "TERM": "xterm", "LLCUDA_FFI_CACHE": str(tmp_path), "LLCUDA_FFI_BUNDLE": bundle_path()},
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def until(mark: bytes) -> None:
        nonlocal seen
        end = monotonic() + 100
        while mark not in seen:
            ready, _, _ = select.select([ours], [], [], max(0.0, end - monotonic()))
            assert ready, seen
            seen += os.read(ours, 65536)

    try:
        until(b">>>")
        os.write(ours, b"\x1b[200~first line\nsecond line\x1b[201~\r")
        until(b"tokens/s")
        seen = b""
        os.write(ours, b"/history\r")
        until(b"assistant:")
        assert b"first line" in seen
        assert b"second line" in seen
        assert seen.count(b"user:") == 1
        os.write(ours, b"/quit\r")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "second line" in (tmp_path / "chat_history").read_text()


def bundle_path() -> str:
    """The installed bundle, for a process with another cache."""
    from llcuda_ffi import bundles

    return str(bundles.ensure(progress=False).path)


@pytest.fixture
def small(smollm2: Path) -> Iterator[Llama]:
    """A context that is soon full."""
    with Llama(smollm2, n_ctx=160, n_parallel=1) as llm:
        yield llm


def test_a_full_context_forgets_the_oldest_turns(small: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    """A conversation longer than the context goes on: the oldest turns are left out, the system text stays."""
    conversation = Conversation(small, "Be terse.", {"max_tokens": 4, "temperature": 0.0}, {})
    for i in range(5):
        conversation.say(f"Message {i}: " + "word " * 45)
    said = capsys.readouterr()
    assert "forgotten" in said.err
    assert "error" not in said.err
    assert conversation.messages[0] == {"role": "system", "content": "Be terse."}
    users = [m["content"] for m in conversation.messages if m["role"] == "user"]
    assert users[-1].startswith("Message 4")
    assert not any(text.startswith("Message 0") for text in users)

    conversation.say("word " * 400)  # alone too long: told, and taken back
    assert "error" in capsys.readouterr().err
    assert conversation.messages[-1]["role"] == "assistant"


@pytest.mark.parametrize(
    "content", ['{"foo": 1}', "5", "[]", "{", '[{"content": "x"}]', '{"messages": 1}', "[" * 100_000]
)
def test_a_file_that_is_no_conversation(content: str, small: Llama, tmp_path: Path) -> None:
    """/load says what is wrong with it, and the conversation stays as it was."""
    (tmp_path / "talk.json").write_text(content)
    conversation = Conversation(small, "Be terse.", {}, {})
    assert conversation.command(f"/load {tmp_path / 'talk.json'}")
    assert conversation.failed
    assert conversation.messages == [{"role": "system", "content": "Be terse."}]
