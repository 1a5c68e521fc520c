"""The Jinja environment of chat templates: what Hugging Face transformers gives them, and nothing more.

Runs in the rendering process (see render_process.py), so it imports nothing of this package.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils
from jinja2.parser import Parser


class Refusal(jinja2.exceptions.TemplateError):
    """The template itself refused the conversation, by raise_exception."""


def compile_template(source: str) -> jinja2.Template:
    """`source` ready to render; the last 64 are kept."""
    return _compile(source)


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    return environment


_CHANGES = frozenset(("append", "pop", "extend", "insert", "remove", "reverse", "sort", "clear"))


class GivenList(list[Any]):
    """A list of the caller's: templates may change lists of their own, but not these."""


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Some templates collect in lists (`{% set _ = ids.append(x) %}`), as Python's own Jinja lets them."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return (type(obj) is list and attr in _CHANGES) or super().is_safe_attribute(obj, attr, value)


def given(value: Any) -> Any:
    """A caller's plain JSON, whose lists do not change."""
    if isinstance(value, dict):
        return {key: given(item) for key, item in value.items()}
    return GivenList(map(given, value)) if isinstance(value, list) else value


class _Generation(jinja2.ext.Extension):
    """{% generation %}…{% endgeneration %} marks the assistant's text for training; here it only writes it."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that jinja2 asks for

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


class _Dict:
    """`dict` without its attributes, which the sandbox does not guard."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` that takes no underscored names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # no named parameter, so that a template may set one called "self"
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no underscored name: {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which a prompt must not
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise Refusal(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
