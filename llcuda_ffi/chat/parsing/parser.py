"""Takes answers apart: content, reasoning, tool calls; whole, or while they stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from ...errors import InvalidRequest
from .deltas import Delta, Output, Parsed
from .json_formats import Bare, Keyed, Marked, Named, deepseek, kimi, mistral, plain_text
from .message_formats import glimmer, harmony, kimi_k3, recipients, solar
from .reader import Reader, Reading
from .tag_formats import Gemma, Pythonic, Tagged, minimax_m3

Format = Callable[[Reader, Output], Reading[None]]

_QWEN = Tagged(
    "<tool_call>", "</tool_call>", "<function=", ">", "<parameter=", ">", "", "</parameter>", "</function>",
    padded=True,
)  # fmt: skip
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
_HY = ":opensource"
_HY3 = Tagged(
    f"<tool_calls{_HY}>", f"</tool_calls{_HY}>", f"<tool_call{_HY}>", f"<tool_sep{_HY}>", f"<arg_key{_HY}>",
    f"</arg_key{_HY}>", f"<arg_value{_HY}>", f"</arg_value{_HY}>", f"</tool_call{_HY}>",
)  # fmt: skip
_MINICPM = Tagged("", "", '<function name="', '">', '<param name="', '">', "", "</param>", "</function>")


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
    "minimax-m3": minimax_m3,
    "hy3": _HY3,
    "gemma4": Gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": Gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    "kimi": kimi,
    "kimi-k3": kimi_k3,
    "minicpm": _MINICPM,
    "solar": solar,
    "glimmer": glimmer,
    "apertus": Keyed("<|tools_prefix|>", "<|tools_suffix|>"),
    "granite": Marked("<|tool_call|>"),
    "nemotron": Marked("<TOOLCALL>", "</TOOLCALL>"),
    "command-r": Marked("<|START_ACTION|>", "<|END_ACTION|>"),
    "firefunction": Marked("functools"),
    "functionary": Named("<function=", ">", "</function>"),
    "functionary-v3.2": recipients,
    "gigachat": Marked("<|function_call|>"),
    "gigachat3": Marked("function call<|role_sep|>\n"),
    "tool-calls": Marked("<tool_calls>", "</tool_calls>"),
    "lfm2": Pythonic("<|tool_call_start|>", "<|tool_call_end|>"),
}

# formats that say of every part of an answer what it is, with or without tools
WHOLE = frozenset({"harmony", "glimmer", "solar", "kimi-k3", "functionary-v3.2"})

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
    "solar": (
        "<|begin|>", "<|think|>", "<|content|>", "<|tool_calls|>", "<|tool_call:begin|>", "<|tool_call:name|>",
        "<|tool_call:args|>", "<|tool_call:end|>", "<|end|>", "<|calls|>",
    ),
    "kimi-k3": ("<|open|>", "<|close|>", "<|sep|>"),
    "glimmer": ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
    "gigachat3": ("<|role_sep|>",),
    "minimax-m3": ("]<]minimax[>[", "<tool_call>", "</tool_call>"),
}  # fmt: skip

# what in a template's text tells its format; the first that fits, all of one row must stand there
_SIGNS: list[tuple[str, tuple[str, ...]]] = [
    ("harmony", ("<|channel|>", "<|message|>", "analysis")),
    ("deepseek-v3.2", (_D, "function_calls")),
    ("deepseek-v4", (_D, "tool_calls")),
    ("deepseek", ("<｜tool▁sep｜>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("minimax", ("<minimax:tool_call>",)),
    ("minimax-m3", ("]<]minimax[>[", "invoke name=")),
    ("hy3", ("<tool_sep{}>", "<arg_key{}>", f"'{_HY}'")),
    ("solar", ("<|tool_call:begin|>", "<|tool_call:args|>")),
    ("kimi-k3", ("<|open|>", "<|close|>", "<|sep|>", "open_tag('call'")),
    ("apertus", ("<|tools_prefix|>", "<|tools_suffix|>")),
    ("functionary-v3.2", (">>>all", ">>>${recipient}")),
    ("seed", ("seed:tool_call",)),
    ("glm", ("<arg_key>", "<tool_call>")),
    ("qwen-xml", ("<function=", "<parameter=", "<tool_call>")),
    ("kimi", ("<|tool_call_begin|>",)),
    ("gemma4", ("<|tool_call>call:",)),
    ("functiongemma", ("<start_function_call>",)),
    ("lfm2", ("<|tool_call_start|>",)),
    ("lfm2", ("<|tool_list_start|>",)),
    ("lfm2", ("List of tools: [", "<|im_start|>")),
    ("minicpm", ('<function name="', '<param name="')),
    ("glimmer", ("<atem:", "<|eom|>")),
    ("nemotron", ("<TOOLCALL>",)),
    ("command-r", ("<|START_ACTION|>",)),
    ("granite", ("<|tool_call|>",)),
    ("firefunction", ("functools",)),
    ("gigachat", ("<|function_call|>",)),
    ("gigachat3", ("function call", "<|role_sep|>")),
    ("tool-calls", ("<tool_calls>",)),
    ("hermes", ("<tool_call>",)),
    ("functionary", ("<function=", "</function>")),
    ("llama3", ("<|python_tag|>",)),
    ("llama3", ("<|start_header_id|>", "ipython")),
]

# what opens and closes reasoning, and what in a template's text tells it, where that is something else
_REASONING: list[tuple[str, ...]] = [
    (f"<think{_HY}>", f"</think{_HY}>", "<think{}>", f"'{_HY}'"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>", "open_tag('think'"),
    ("<mm:think>", "</mm:think>"),
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
    for begin, end, *signs in _REASONING:
        if all(sign in template for sign in signs or (begin, end)):
            return begin, end
    return None


class AnswerParser:
    """Takes one answer apart.

    The result does not depend on how the text was cut: `feed` piece by piece, then `close`, gives together what
    `parse` gives for the whole.
    """

    def __init__(
        self,
        format: str = "none",
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        reasoning: tuple[str, str] | None = None,
        prompt: str = "",
        calls_only: bool = False,
    ) -> None:
        """
        Args:
            format: a name in FORMATS.
            tools: the tools' schemas. Where an answer in plain JSON may be a call, only their names make it one.
            reasoning: what opens and closes reasoning at the start of the answer.
            prompt: what the answer continues: where it ends with the opening of reasoning, the answer is in it.
            calls_only: the answer follows a grammar of calls: it has no content.
        """
        if format not in FORMATS:
            raise InvalidRequest(f"no tool format is called {format!r:.60}: there are {', '.join(sorted(FORMATS))}")
        schemas = {t["function"]["name"]: t["function"].get("parameters") or {} for t in tools}
        form = FORMATS[format]
        self._reader = Reader()
        names = frozenset(schemas) if tools and isinstance(form, Bare) else None
        self._output = Output(names, schemas, calls_only=calls_only)
        opened = reasoning is not None and format != "harmony" and _opened(prompt, reasoning)
        self._run: Generator[None, None, None] | None = self._read(form, reasoning, opened, format)
        self._deltas: list[Delta] = []
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
                # a closing mark alone says that there is no reasoning
                none = not opened and (yield from r.literal(end))
                space = r.stop_record()
                if none:
                    o.part()
                elif not opened:
                    o.content(r.unless_cut(space))
            if opened:
                o.part()
                # Apertus calls tools in the middle of its thoughts
                calls = (form.open,) if isinstance(form, Keyed) else ()
                marker = yield from r.until((end, *calls), o.reasoning)
                if marker in calls:
                    r.back(marker)
                o.part()
        yield from form(r, o)

    def _advance(self) -> list[Delta]:
        if self._run is not None:
            try:
                next(self._run)
            except StopIteration:
                self._run = None
        deltas = self._output.take()
        self._deltas += deltas
        return deltas

    def feed(self, text: str) -> list[Delta]:
        """What is new after more text."""
        if self._run is None:
            return []
        self._reader.feed(text)
        return self._advance()

    def close(self, *, cut: bool = False) -> list[Delta]:
        """What is left at the end of the answer.

        Args:
            cut: it was not the model that ended it: the beginning of a mark or of a call at its end is no content.
        """
        self._reader.closed, self._reader.cut = True, cut
        deltas = self._advance()
        self._output.end(cut=cut)
        return deltas + self._advance()

    @property
    def parsed(self) -> Parsed:
        """The answer so far."""
        return Parsed.of(self._deltas)

    def parse(self, text: str, *, cut: bool = False) -> Parsed:
        """The whole answer; see `close` for `cut`."""
        self.feed(text)
        self.close(cut=cut)
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
