"""ChatEngine and ConversationManager: conversations with a memory of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..params import INT32_MAX, integer, shown
from .engine import InferenceEngine


class ChatEngine:
    """A conversation, answered with the model's own chat template.

    Attributes:
        history: the messages, without the system prompt.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        system_prompt: str | None = None,
        max_history: int = 20,
        max_tokens: int = 256,
        temperature: float = 0.7,
    ) -> None:
        """Begin a conversation.

        Args:
            max_history: most messages that are sent; the oldest are left out first.
        """
        self.engine, self.system_prompt = engine, system_prompt
        self.max_history = integer("max_history", max_history, 1, INT32_MAX)
        self.max_tokens, self.temperature = max_tokens, temperature
        self.history: list[dict[str, str]] = []

    def add_message(self, role: str, content: str) -> None:
        """Append a message."""
        if role not in ("system", "user", "assistant"):
            raise InvalidRequest(f"a role is system, user or assistant, not {shown(role)}")
        if not isinstance(content, str):
            raise InvalidRequest(f"a message is a text, not {type(content).__name__}")
        self.history.append({"role": role, "content": content})

    def add_system_message(self, content: str) -> None:
        """Set the system prompt."""
        self.system_prompt = content

    def add_user_message(self, content: str) -> None:
        """Append a message of the user."""
        self.add_message("user", content)

    def add_assistant_message(self, content: str) -> None:
        """Append a message of the model."""
        self.add_message("assistant", content)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What is sent: the system prompt, and the newest max_history messages from a user's on."""
        newest = self.history[-self.max_history :]
        while len(newest) > 1 and newest[0]["role"] == "assistant":
            newest = newest[1:]
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, *newest]

    def complete(self, message: str | None = None, **settings: Any) -> str:
        """Answer `message`, or the last message of the history; the answer joins the history.

        Args:
            **settings: of Llama.chat, over max_tokens and temperature.
        """
        return self._answer(message, settings, None)

    def complete_stream(self, callback: Callable[[str], object], message: str | None = None, **settings: Any) -> str:
        """As `complete`; `callback` gets each piece of text as soon as it is there."""
        return self._answer(message, settings, callback)

    def _answer(self, message: str | None, settings: dict[str, Any], callback: Callable[[str], object] | None) -> str:
        if message is not None:
            self.add_user_message(message)
        if not self.history:
            raise InvalidRequest("the conversation is empty: add_user_message() first, or give a message")
        chosen = {"max_tokens": self.max_tokens, "temperature": self.temperature, **settings}
        try:
            if callback is None:
                text = self.engine.llm.chat(self.messages, **chosen).text
            else:
                pieces = []
                for chunk in self.engine.llm.chat_stream(self.messages, **chosen):
                    if chunk.content:
                        pieces.append(chunk.content)
                        callback(chunk.content)
                text = "".join(pieces)
        except BaseException:
            if message is not None:
                self.history.pop()  # a question without an answer would be sent again with the next one
            raise
        self.add_assistant_message(text)
        return str(text)

    def count_tokens(self) -> int:
        """Tokens of the messages' texts, without the template's own."""
        vocab = self.engine.llm.vocab
        return sum(len(vocab.tokenize(m["content"], add_special=False)) for m in self.messages)

    def clear_history(self) -> None:
        """Forget every message but the system prompt."""
        self.history.clear()

    def save_history(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON."""
        data = {"system_prompt": self.system_prompt, "history": self.history}
        Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")

    def load_history(self, path: str | os.PathLike[str]) -> None:
        """Read what save_history wrote.

        Raises:
            InvalidRequest: the file holds no conversation.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            history = [{"role": str(m["role"]), "content": str(m["content"])} for m in data["history"]]
            self.system_prompt, self.history = data.get("system_prompt"), history
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest(f"{path} holds no saved conversation: {error}") from error


class ConversationManager:
    """Several conversations by name, on one engine."""

    def __init__(self, engine: InferenceEngine, **settings: Any) -> None:
        self.engine, self.settings = engine, settings
        self.conversations: dict[str, ChatEngine] = {}
        self.current = ""

    def create_conversation(self, name: str, **settings: Any) -> ChatEngine:
        """Begin a conversation and switch to it."""
        if name in self.conversations:
            raise InvalidRequest(f"there is a conversation {name!r} already")
        chat = self.conversations[name] = ChatEngine(self.engine, **{**self.settings, **settings})
        self.current = name
        return chat

    def switch_conversation(self, name: str) -> ChatEngine:
        """Go on with another conversation."""
        self.current = self._known(name)
        return self.conversations[name]

    def get_current(self) -> ChatEngine:
        """The conversation that is going on."""
        return self.conversations[self._known(self.current)]

    def list_conversations(self) -> list[str]:
        """Their names."""
        return list(self.conversations)

    def delete_conversation(self, name: str) -> None:
        """Forget a conversation."""
        del self.conversations[self._known(name)]
        if self.current == name:
            self.current = next(iter(self.conversations), "")

    def _known(self, name: str) -> str:
        if name not in self.conversations:
            raise InvalidRequest(
                f"there is no conversation {name!r}: there are {', '.join(self.conversations) or 'none'}"
            )
        return name
