"""Where the messages of a terminal chat come from: an editor with history in a terminal, else lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from ..errors import LlcudaError
from ..fetch.cache import cache_root

Read = Callable[[], "str | None"]


def message_reader(commands: Sequence[str]) -> Read:
    """A function that gives one message at each call, None at the end.

    In a terminal: line editing, history over sessions, completion of /commands; pasted lines are one message.

    Args:
        commands: names that are completed after a slash.
    """
    return _editor(commands) if sys.stdin.isatty() and sys.stdout.isatty() else _lines


def _editor(commands: Sequence[str]) -> Read:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History = InMemoryHistory()
    try:
        folder = cache_root()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "chat_history"
        path.touch(mode=0o600)
        history = FileHistory(str(path))
    except (OSError, LlcudaError):
        pass  # a cache that cannot be written: the history lasts as long as the session
    session: PromptSession[str] = PromptSession(
        ">>> ",
        history=history,
        completer=WordCompleter([f"/{name}" for name in commands], sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        prompt_continuation="... ",
    )

    def read() -> str | None:
        try:
            return session.prompt()
        except EOFError:
            return None

    return read


def _lines() -> str | None:
    lines: list[str] = []
    block = False
    while True:
        try:
            line = input()
        except EOFError:
            return "\n".join(lines) if lines else None
        if line.strip() == '"""':
            if block:
                return "\n".join(lines)
            block = True
        elif block:
            lines.append(line)
        elif line.endswith("\\"):
            lines.append(line[:-1])
        else:
            return "\n".join([*lines, line])
