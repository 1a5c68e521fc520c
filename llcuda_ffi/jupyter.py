"""Helpers for notebooks (extra jupyter): streams in a cell, a chat box, comparisons, coloured tokens."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import LlcudaError, MissingExtra
from .html_view import block
from .llama import Llama

if TYPE_CHECKING:
    from .llcuda.engine import InferenceEngine

Engine = Any  # a Llama, or llcuda's InferenceEngine

T = TypeVar("T", str, "dict[float, str]", "list[tuple[int, str]]")
_COLOURS = ("#dbeafe", "#dcfce7", "#fef9c3", "#fee2e2", "#ede9fe")


def _llama(engine: Llama | InferenceEngine) -> Llama:
    return engine if isinstance(engine, Llama) else engine.llm


def _display() -> Any:
    try:
        return import_module("IPython.display")
    except ImportError:
        raise MissingExtra("the notebook helpers need IPython: pip install ipython ipywidgets") from None


def _shown(value: T) -> T:
    """The value, of a class that shows nothing as a cell's last line: what it holds was shown already."""
    kind = type("Shown", (type(value),), {"_ipython_display_": lambda self: None})
    made: T = kind(value)
    return made


def _widgets() -> Any:
    try:
        return import_module("ipywidgets")
    except ImportError:
        raise MissingExtra("this needs ipywidgets: pip install ipywidgets") from None


def stream_generate(engine: Engine, prompt: str, markdown: bool = False, **settings: Any) -> str:
    """Write an answer into the cell while it is generated; returns the text.

    Args:
        markdown: show it as Markdown instead of plain text.
        **settings: fields of SamplingParams.
    """
    display = _display()

    def show(text: str) -> Any:
        return display.Markdown(text) if markdown else display.HTML(block(text))

    handle, text = display.display(show(""), display_id=True), ""
    for chunk in _llama(engine).stream(prompt, **settings):
        if chunk.text:
            text += chunk.text
            handle.update(show(text))
    return _shown(text)


def progress_generate(engine: Engine, prompts: Sequence[str], **settings: Any) -> list[str]:
    """Answers to many prompts, computed together, under a progress bar."""
    return [done.text for done in _llama(engine).generate(list(prompts), progress=True, **settings)]


def display_metrics(engine: Engine) -> None:
    """Show the counters as a table."""
    _display().display(_llama(engine).metrics())


def compare_temperatures(
    engine: Engine, prompt: str, temperatures: Iterable[float] = (0.0, 0.4, 0.8, 1.2), **settings: Any
) -> dict[float, str]:
    """The same prompt at several temperatures, computed together and shown side by side."""
    from .sampling_params import SamplingParams

    chosen = list(temperatures)
    params = [SamplingParams(temperature=t).replace(**settings) for t in chosen]
    texts = [done.text for done in _llama(engine).generate([prompt] * len(chosen), params)]
    head = "".join(f"<th>{t:g}</th>" for t in chosen)
    cells = "".join(f'<td style="text-align:left;vertical-align:top">{block(text)}</td>' for text in texts)
    display = _display()
    display.display(display.HTML(f"<table><tr>{head}</tr><tr>{cells}</tr></table>"))
    return _shown(dict(zip(chosen, texts, strict=True)))


def visualize_tokens(engine: Engine, text: str) -> list[tuple[int, str]]:
    """Show where the tokens of a text begin and end; returns (id, what it writes)."""
    vocab = _llama(engine).vocab
    tokens = [(int(t), vocab.piece(int(t), special=True).decode("utf-8", "replace")) for t in vocab.tokenize(text)]
    spans = "".join(
        f'<span title="{token}" style="background:{_COLOURS[i % len(_COLOURS)]};color:#111;padding:1px">'
        f"{html.escape(piece).replace(' ', '&nbsp;')}</span>"
        for i, (token, piece) in enumerate(tokens)
    )
    display = _display()
    display.display(display.HTML(f'<div style="line-height:2">{spans}</div><p>{len(tokens)} tokens</p>'))
    return _shown(tokens)


class ChatWidget:
    """A conversation in a cell: a text field, a button, streamed answers. As a cell's last line it shows itself.

    Attributes:
        messages: the conversation so far.
    """

    def __init__(self, engine: Engine, system_prompt: str | None = None, **settings: Any) -> None:
        widgets = _widgets()
        self._llm, self._settings = _llama(engine), {"max_tokens": 256, **settings}
        self.messages: list[dict[str, str]] = []
        if system_prompt:
            self.messages.append({"role": "system", "content": system_prompt})
        self._log = widgets.HTML()
        self._field = widgets.Text(placeholder="Write a message", layout=widgets.Layout(width="80%"))
        self._send, self._clear = widgets.Button(description="Send"), widgets.Button(description="Clear")
        self._send.on_click(lambda _button: self._submit())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what it advises sends when the field is left, too
            self._field.on_submit(lambda _field: self._submit())
        self._clear.on_click(lambda _button: self.clear())
        self.widget = widgets.VBox([self._log, widgets.HBox([self._field, self._send, self._clear])])

    def display(self) -> None:
        """Show it in the cell, where it is not the last line."""
        _display().display(self.widget)

    def _repr_mimebundle_(self, **wanted: Any) -> Any:
        return self.widget._repr_mimebundle_(**wanted)

    def _submit(self) -> None:
        try:
            self.send(self._field.value)
        except LlcudaError as error:  # a notebook shows no traceback of a click
            self._show()
            self._log.value += f'<p style="color:#b91c1c">{html.escape(str(error))}</p>'

    def send(self, text: str, on_text: Callable[[str], object] | None = None) -> str:
        """What the button does: send a message, show the answer while it comes; returns the answer."""
        if not text.strip():
            return ""
        self._field.value, self._send.disabled = "", True
        self.messages.append({"role": "user", "content": text})
        answer = ""
        try:
            for chunk in self._llm.chat_stream(self.messages, **self._settings):
                if chunk.content:
                    answer += chunk.content
                    self._show(answer)
                    if on_text is not None:
                        on_text(chunk.content)
        except BaseException:
            self.messages.pop()
            raise
        finally:
            self._send.disabled = False
        self.messages.append({"role": "assistant", "content": answer})
        self._show()
        return answer

    def clear(self) -> None:
        """Begin again; the system prompt stays."""
        del self.messages[1 if self.messages and self.messages[0]["role"] == "system" else 0 :]
        self._show()

    def _show(self, partial: str | None = None) -> None:
        shown = [m for m in self.messages if m["role"] != "system"]
        if partial is not None:
            shown = [*shown, {"role": "assistant", "content": partial}]
        self._log.value = "".join(f"<p><b>{m['role']}</b></p>{block(m['content'])}" for m in shown)
