"""Chat templates: rendered as transformers renders them, and harmless whatever they hold."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from llcuda_ffi.chat.template.builtin import TEMPLATES
from llcuda_ffi.chat.template.renderer import Renderer
from llcuda_ffi.chat.template.template import ChatTemplate
from llcuda_ffi.errors import InvalidRequest

from ..support.chat_conversations import CONVERSATIONS, VARIABLES, WEATHER, cases, upstream_templates
from ..support.make_chat_reference import DATA, by_transformers, digest
from ..support.upstream_sdist import upstream_sdist


def rendered(template: ChatTemplate, settings: dict[str, Any]) -> str:
    """The text; where the template refuses "!" and its words, where it fails "!"."""
    try:
        return template.render(**settings)
    except InvalidRequest as error:
        refused = "refuses this conversation: "
        return "!" + str(error).split(refused, 1)[1] if refused in str(error) else "!"


def more_is_rendered(source: str, theirs: str) -> bool:
    """Whether transformers fails at a template that changes a list of its own, which is allowed here."""
    return theirs == "!" and ".append(" in source


def test_upstream_templates_render_as_transformers_renders_them() -> None:
    """The 70 real templates by 29 conversations give the text, or the refusal, that transformers gave."""
    reference = json.loads(DATA.read_text(encoding="utf-8"))
    sources = upstream_templates(upstream_sdist())
    assert sources.keys() == reference.keys()
    for name, source in sources.items():
        template = ChatTemplate(source, VARIABLES)
        for (case, settings), expected in zip(cases(), reference[name], strict=True):
            text = rendered(template, settings)
            if more_is_rendered(source, expected):
                assert not text.startswith("!"), f"{name}, {case}"
            else:
                assert digest(source, text) == expected, f"{name}, {case}"


@pytest.mark.heavy
def test_templates_against_transformers_itself() -> None:
    """Character for character what the installed transformers renders: upstream's templates and ours."""
    pytest.importorskip("transformers")
    sources = {**upstream_templates(upstream_sdist()), **TEMPLATES, **{source: source for source in OWN}}
    for name, source in sources.items():
        template = ChatTemplate(source, VARIABLES)
        for case, settings in cases():
            text, theirs = rendered(template, settings), by_transformers(source, **settings)
            if more_is_rendered(source, theirs):
                assert not text.startswith("!"), f"{name}, {case}"
            else:
                assert text == theirs, f"{name}, {case}"


# templates of our own that lean on one feature each, with what they must write
OWN = {
    "{%- for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n{{ m.role }}{% endfor %}": "user",
    "{% for m in [1, 2, 3] %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}": "13",
    "a{% generation %}{{ messages | length }}{% endgeneration %}b": "a1b",
    "{{ {'a': '<é>', 'b': [1, none]} | tojson }}": '{"a": "<é>", "b": [1, null]}',
    "{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}": '{\n "a": 2,\n "b": 1\n}',
    "{{ {'a': 'é'} | tojson(ensure_ascii=true, separators=(',', ':')) }}": '{"a":"\\u00e9"}',
    "{% set ns = namespace(n=0) %}{% for m in [1, 5] %}{% set ns.n = ns.n + m %}{% endfor %}{{ ns.n }}": "6",
    "{{ dict(a=1, **{'b': 2}) }}{{ dict.fromkeys(['c']) }}": "{'a': 1, 'b': 2}{'c': None}",
    "{{ strftime_now('%%') }}{{ bos_token }}{{ missing is defined }}": "%<s>False",
    "{% macro f(x, y=2) %}{{ x }}-{{ y }}{% endmacro %}{{ f(1) }}\n\n  {# gone #}  \nx": "1-2\n\n  \nx",
}


@pytest.mark.parametrize("source", OWN)
def test_environment(source: str) -> None:
    """The environment is Hugging Face's: trimmed blocks, loop controls, generation, its tojson, namespace
    and dict.
    """
    assert ChatTemplate(source, VARIABLES).render([{"role": "user", "content": "x"}]) == OWN[source]


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": "{{ 'x' * 10 ** 12 }}",
    "output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "nested lists": "{% set n = namespace(l=[1]) %}{% for a in range(60) %}"
    "{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l | tojson }}",
    "concatenation": "{% set n = namespace(l='xx') %}{% for a in range(60) %}{% set n.l = n.l ~ n.l %}{% endfor %}",
    "format": "{{ '%0999999999999d' % 1 }}",
    "center": "{{ 'x' | center(10 ** 12) }}",
    "comparison": "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.getpid() }}",
    "attribute filter": "{{ (messages | attr('__class__')).__mro__ }}",
    "format string": "{{ '{0.__class__.__mro__}'.format(1).x.y }}",
    "changes messages": "{{ messages.append(1) }}",
    "underscored namespace": "{% set n = namespace(_a=1) %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "syntax": "{% if %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_ends_in_an_exception(name: str) -> None:
    """Endless loops, memory bombs and escapes end in InvalidRequest, and the next template renders."""
    template = ChatTemplate(HOSTILE[name], timeout=1.0)
    with pytest.raises(InvalidRequest, match="chat template"):
        template.render([{"role": "user", "content": "x"}])
    assert ChatTemplate("{{ 1 + 1 }}").render([{"role": "user", "content": "x"}]) == "2"


def test_refusal_carries_the_templates_words() -> None:
    """raise_exception ends in InvalidRequest with the template's own message."""
    template = ChatTemplate("{{ raise_exception('Roles must alternate! ' ~ messages[0].role) }}")
    with pytest.raises(InvalidRequest, match="refuses this conversation: Roles must alternate! user"):
        template.render([{"role": "user", "content": "x"}])


def test_renderer_survives_its_process() -> None:
    """A rendering process that was killed is replaced; closing leaves none behind."""
    renderer = Renderer()
    assert renderer.render("{{ x }}", {"x": 1}, 5) == "1"
    process = renderer._process
    assert process is not None
    process.kill()
    process.wait()
    assert renderer.render("{{ x }}", {"x": 2}, 5) == "2"
    last = renderer._process
    assert last is not None
    renderer.close()
    assert last.poll() is not None


class Interrupted(Exception):
    """What a signal's handler raises."""


def test_interrupted_render_answers_nobody_else() -> None:
    """Ctrl-C, or a handler's exception, while a template renders: the next one gets its own text."""

    def handler(*_: object) -> None:
        raise Interrupted

    renderer, slow = Renderer(), "{% for i in range(200) %}{% for j in range(300) %}{% endfor %}{% endfor %}slow"
    before = signal.signal(signal.SIGALRM, handler)
    try:
        assert renderer.render(slow, {}, 20.0) == "slow"
        interrupted = 0
        for i in range(12):
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * 2 ** (i % 6))
            try:
                renderer.render(slow, {}, 20.0)
            except Interrupted:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert renderer.render(f"mine {i}", {}, 20.0) == f"mine {i}"
        assert interrupted >= 2
    finally:
        signal.signal(signal.SIGALRM, before)
        renderer.close()


def test_rendering_process_ends_with_its_parent() -> None:
    """A program that rendered leaves quietly, and its rendering process with it."""
    program = (
        "from llcuda_ffi.chat.template.template import ChatTemplate as T\n"
        "from llcuda_ffi.chat.template.renderer import shared\n"
        "assert T('{{ 1 }}').render([{'role': 'user', 'content': 'x'}]) == '1'\n"
        "print(shared._process.pid, flush=True)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for _ in range(100):
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the rendering process outlived its parent")


@pytest.mark.parametrize("name", TEMPLATES)
def test_builtin_templates(name: str) -> None:
    """Each named template writes the system text, every message in order, and opens the answer."""
    text = ChatTemplate(name, VARIABLES).prompt(CONVERSATIONS["multi"]["messages"], add_generation_prompt=True)
    places = [text.find(part) for part in ("You are terse.", "Hello.", "Count to three.", "1 2 3", "Thanks")]
    assert -1 not in places
    if name != "mistral":  # its system text stands before the last question, as mistral's own tokenizer puts it
        assert places == sorted(places)
    assert text != ChatTemplate(name, VARIABLES).prompt(CONVERSATIONS["multi"]["messages"][:-1])


CALLS = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ ARGUMENTS }}{% endfor %}{% endfor %}"
STYLES = [
    (CALLS.replace("ARGUMENTS", "c.function.arguments | tojson"), "object"),
    (CALLS.replace("ARGUMENTS", "c.function.arguments"), "text"),
    (CALLS.replace("ARGUMENTS", "'=' + c.function.arguments"), "text"),
]


@pytest.mark.parametrize(("source", "style"), STYLES)
@pytest.mark.parametrize("arguments", ['{"a": "ü", "b": [1]}', {"a": "ü", "b": [1]}])
def test_arguments_reach_the_template_in_its_form(source: str, style: str, arguments: object) -> None:
    """OpenAI's arguments are JSON texts; templates that want mappings get mappings, and the other way
    round.
    """
    template = ChatTemplate(source)
    assert template.capabilities.argument_style == style
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    text = template.prompt([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert text.lstrip("=") == '{"a": "ü", "b": [1]}'


def test_text_parts_are_joined_for_templates_that_read_texts() -> None:
    """Content parts reach a template as one text, joined by newlines; one that reads parts only, as one part."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert ChatTemplate("{{ '>' + messages[0].content }}").prompt(parts) == ">a\nb"
    reads = ChatTemplate("{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}")
    assert reads.prompt(parts) == "[a\nb]"


def test_tools_are_noticed() -> None:
    """A template that writes tools is told from one that ignores them."""
    assert ChatTemplate("{{ tools | tojson }}").capabilities.tools
    assert not ChatTemplate("chatml").capabilities.tools
    assert "get_weather" in ChatTemplate("{{ tools | tojson }}").render(
        [{"role": "user", "content": "x"}], tools=[WEATHER]
    )


BAD = [
    ([], "empty"),
    ("hi", "must be a list"),
    ([{"content": "x"}], r"messages\[0\] has no 'role'"),
    ([{"role": "user", "content": 3}], r"messages\[0\]\['content'\] must be a text"),
    ([{"role": "user", "content": [{"text": "x"}]}], "must be a part"),
    ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "tool_calls"),
    ([{"role": "user", "content": "x", "extra": object()}], "JSON has no form"),
    (["x"], r"messages\[0\] must be a mapping"),
]


@pytest.mark.parametrize(("messages", "words"), BAD)
def test_malformed_messages_are_refused(messages: Any, words: str) -> None:
    """A conversation of a wrong shape is refused, naming the place."""
    with pytest.raises(InvalidRequest, match=words):
        ChatTemplate("chatml").render(messages)


def test_unknown_template_name() -> None:
    """A name that no built-in template has is refused with the names there are."""
    with pytest.raises(InvalidRequest, match="chatml"):
        ChatTemplate("chatlm")


def test_digest_hides_only_texts() -> None:
    """The committed reference holds refusals in words and renderings as digests, so that no upstream text
    is kept.
    """
    assert digest("", "!no") == "!no"
    assert digest("", "yes") == hashlib.sha256(b"yes").hexdigest()[:16]
