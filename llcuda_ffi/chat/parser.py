"""Takes answers apart: content, reasoning, tool calls; whole, or while they stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from ..errors import InvalidRequest
from .deltas import Delta, Output, Parsed
from .json_formats import Bare, Marked, Named, deepseek, harmony, kimi, mistral, plain_text
from .reader import Reader, Reading
from .tag_formats import Gemma, Pythonic, Tagged

Format = Callable[[Reader, Output], Reading[None]]

_QWEN = Tagged("<tool_call>", "</tool_call>", "<function=", ">", "<parameter=", ">", "", "</parameter>", "</function>")
_GLM = Tagged("", "", "<tool_call>", "\n", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>")
_MINIMAX = Tagged(
    "<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="', '">', '<parameter name="', '">', "",
    "</parameter>", "</invoke>",
)  # fmt: skip
_D = "｜DSML｜"
_SEED = Tagged(
    "<seed:tool_call>",
    "</seed:tool_call>",
    "<function=",
    ">",
    "<parameter=",
    ">",
    "",
    "</parameter>",
    "</function>",
)


def _dsml(section: str) -> Tagged:
    return Tagged(
        f"<{_D}{section}>", f"</{_D}{section}>", f'<{_D}invoke name="', '">', f'<{_D}parameter name="', '"',
        "", f"</{_D}parameter>", f"</{_D}invoke>", typed=True,
    )  # fmt: skip


# name → how calls are written; by TEMPLATE_SIGNS a template's format is known
FORMATS: dict[str, Any] = {
    "none": plain_text,
    "json": Bare(),
    "llama3": Bare("<|python_tag|>"),
    "hermes": Marked("<tool_call>", "</tool_call>"),
    "mistral": mistral,
    "deepseek": deepseek,
    "deepseek-v3.2": _dsml("function_calls"),
    "deepseek-v4": _dsml("tool_calls"),
    "harmony": harmony,
    "qwen-xml": _QWEN,
    "seed": _SEED,
    "glm": _GLM,
    "minimax": _MINIMAX,
    "gemma4": Gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": Gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    "kimi": kimi,
    "granite": Marked("<|tool_call|>"),
    "nemotron": Marked("<TOOLCALL>", "</TOOLCALL>"),
    "command-r": Marked("<|START_ACTION|>", "<|END_ACTION|>"),
    "firefunction": Marked("functools"),
    "functionary": Named("<function=", ">", "</function>"),
    "gigachat": Marked("<|function_call|>"),
    "tool-calls": Marked("<tool_calls>", "</tool_calls>"),
    "lfm2": Pythonic("<|tool_call_start|>", "<|tool_call_end|>"),
}

# markers of those formats that are plain functions
_MARKERS: dict[str, tuple[str, ...]] = {
    "mistral": ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    "deepseek": (
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    ),
    "kimi": (
        "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>", "<|tool_call_end|>",
    ),
    "harmony": (
        "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>",
    ),
}  # fmt: skip

# what in a template's text tells its format; the first that fits, all of one row must stand there
_SIGNS: list[tuple[str, tuple[str, ...]]] = [
    ("harmony", ("<|channel|>", "<|message|>", "analysis")),
    ("deepseek-v3.2", (_D, "function_calls")),
    ("deepseek-v4", (_D, "tool_calls")),
    ("deepseek", ("<｜tool▁sep｜>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("minimax", ("<minimax:tool_call>",)),
    ("seed", ("seed:tool_call",)),
    ("glm", ("<arg_key>", "<tool_call>")),
    ("qwen-xml", ("<function=", "<parameter=", "<tool_call>")),
    ("kimi", ("<|tool_call_begin|>",)),
    ("gemma4", ("<|tool_call>call:",)),
    ("functiongemma", ("<start_function_call>",)),
    ("lfm2", ("<|tool_call_start|>",)),
    ("nemotron", ("<TOOLCALL>",)),
    ("command-r", ("<|START_ACTION|>",)),
    ("granite", ("<|tool_call|>",)),
    ("firefunction", ("functools",)),
    ("json", ("]<]minimax[>[",)),
    ("gigachat", ("<|function_call|>",)),
    ("tool-calls", ("<tool_calls>",)),
    ("hermes", ("<tool_call>",)),
    ("functionary", ("<function=", "</function>")),
    ("llama3", ("<|python_tag|>",)),
    ("llama3", ("<|start_header_id|>", "ipython")),
]

# what opens and closes reasoning
_REASONING: list[tuple[str, str]] = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
]


def detect_format(template: str) -> str:
    """The name in FORMATS of how a model with this template writes calls; "json" where nothing tells."""
    for name, signs in _SIGNS:
        if all(sign in template for sign in signs):
            return name
    return "json"


def detect_reasoning(template: str) -> tuple[str, str] | None:
    """What opens and closes the reasoning of a model with this template."""
    for pair in _REASONING:
        if pair[0] in template and pair[1] in template:
            return pair
    return None


class AnswerParser:
    """Takes one answer apart.

    The result does not depend on how the text was cut: `feed` piece by piece, then `close`, gives together
    what
    `parse` gives for the whole.
    """

    def __init__(
        self,
        format: str = "none",
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        reasoning: tuple[str, str] | None = None,
        prompt: str = "",
    ) -> None:
        """
        Args:
            format: a name in FORMATS.
            tools: the tools' schemas. Where an answer in plain JSON may be a call, only their names make it
                one.
            reasoning: what opens and closes reasoning at the start of the answer.
            prompt: what the answer continues: where it ends with the opening of reasoning, the answer is in
                it.
        """
        if format not in FORMATS:
            raise InvalidRequest(f"no tool format is called {format!r:.60}: there are {', '.join(sorted(FORMATS))}")
        functions = [t["function"] for t in tools]
        names = frozenset(f["name"] for f in functions) if tools else None
        form = FORMATS[format]
        if isinstance(form, Tagged):
            form = form.reader({f["name"]: f.get("parameters") or {} for f in functions})
        self._reader = Reader()
        self._output = Output(names if isinstance(form, Bare) else None)
        opened = reasoning is not None and format != "harmony" and _opened(prompt, reasoning)
        self._run: Generator[None, None, None] | None = self._read(form, reasoning, opened, format)
        self.parsed = Parsed()
        self._advance()

    def _read(
        self, form: Format, reasoning: tuple[str, str] | None, opened: bool, format: str
    ) -> Generator[None, None, None]:
        r, o = self._reader, self._output
        if reasoning is not None and format != "harmony":
            begin, end = reasoning
            if not opened:
                r.start_record()
                yield from r.space()
                opened = yield from r.literal(begin)
                space = r.stop_record()
                if not opened:
                    o.content(space)
            if opened:
                o.part()
                yield from r.until((end,), o.reasoning)
                o.part()
        yield from form(r, o)

    def _advance(self) -> list[Delta]:
        if self._run is not None:
            try:
                next(self._run)
            except StopIteration:
                self._run = None
        deltas = self._output.take()
        for delta in deltas:
            self.parsed.add(delta)
        return deltas

    def feed(self, text: str) -> list[Delta]:
        """What is new after more text."""
        self._reader.feed(text)
        return self._advance()

    def close(self) -> list[Delta]:
        """What is left at the end of the answer."""
        self._reader.closed = True
        deltas = self._advance()
        self._output.end()
        last = self._output.take()
        for delta in last:
            self.parsed.add(delta)
        return deltas + last

    def parse(self, text: str) -> Parsed:
        """The whole answer."""
        self.feed(text)
        self.close()
        return self.parsed


def _opened(prompt: str, reasoning: tuple[str, str]) -> bool:
    begin, end = reasoning
    tail = prompt.rstrip()
    return tail.endswith(begin) and not tail.endswith(end)


def markers(format: str, reasoning: tuple[str, str] | None) -> tuple[str, ...]:
    """The texts that the parser looks for; those that are control tokens must be shown to it."""
    form = FORMATS[format]
    own = getattr(form, "markers", None) or _MARKERS.get(format, ())
    return (*own, *(reasoning or ()))
