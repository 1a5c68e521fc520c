"""Reads GBNF as libllama's parser does, in one pass, and refuses what that parser would refuse or not survive.

libllama writes its complaints to stderr, and writes each repetition out as rules: what it is given must be right, and
small when written out. The limits are far above any grammar of use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..errors import InvalidRequest

MAX_DEPTH = 256
MAX_REPEAT = 2000  # libllama's own
MAX_RULES = 10_000  # as written
MAX_ITEMS = 100_000  # texts, classes, references and groups, as written
MAX_SYMBOLS = 50_000  # written out
MAX_ELEMENTS = 1 << 22  # characters and references, written out

# each matches a run of characters of one kind: nothing here can be matched in two ways
_BLANKS = re.compile(r"[ \t]+|#[^\r\n]*")
_BLANKS_AND_LINES = re.compile(r"[ \t\r\n]+|#[^\r\n]*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_NUMBER = re.compile(r"[0-9]+")
_CHAR = re.compile(r"[^\\]|\\(?:[trn\\\"\[\]-]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})", re.DOTALL)
_PLAIN = re.compile(r'[^"\\]+')
_PLAIN_IN_CLASS = re.compile(r"[^\\\]-]+")
_ESCAPES = re.compile(r"(?:\\[trn\\\"\[\]-])+")
_TOKEN_ID = re.compile(r"<\[[0-9]{1,9}\]>")
_TOKEN_TEXT = re.compile(r"<[^>]*>")


@dataclass
class Item:
    """A terminal (no rule, no group), a rule's name, or a group; repeated low to high times (None: without end).

    Attributes:
        elements: what libllama keeps for it: a literal's characters, a class's parts, else 1.
        weight: rules that it is written out as, which libllama multiplies with a repetition.
    """

    rule: str | None = None
    group: list[list[Item]] | None = None
    elements: int = 1
    low: int = 1
    high: int | None = 1
    weight: int = 1
    depth: int = 0

    @property
    def empty(self) -> bool:
        """Whether it is a terminal without characters."""
        return self.rule is None and self.group is None and self.elements == 0


@dataclass
class Grammar:
    """A grammar as read.

    Attributes:
        rules: name → alternatives, each a sequence of items.
        tokens: the texts of `<text>`, each of which must be one token of the vocabulary.
    """

    rules: dict[str, list[list[Item]]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)


def read_grammar(text: str) -> Grammar:
    """Read a grammar.

    Raises:
        InvalidRequest: it is no GBNF, uses a rule that it does not define, or is too large when written out.
    """
    return _Reader(text).read()


@dataclass
class _Open:
    """A sequence of alternatives that is being read: a rule's, or a group's."""

    alternatives: list[list[Item]]
    symbols: int  # how many there were before it


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.size = text, 0, len(text)
        self.grammar = Grammar()
        self.used: dict[str, int] = {}
        self.items = self.symbols = self.elements = 0

    def error(self, what: str, at: int | None = None) -> InvalidRequest:
        at = self.at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        found = self.text[at : at + 24] or "its end"
        return InvalidRequest(f"the grammar is not GBNF: line {line} {what}, not {found!r}")

    def read(self) -> Grammar:
        self.space(True)
        while self.at < self.size:
            self.rule()
        for name, at in self.used.items():
            if name not in self.grammar.rules:
                line = self.text.count("\n", 0, at) + 1
                raise InvalidRequest(f"the grammar uses the rule {name[:60]!r} in line {line} and does not define it")
        return self.grammar

    def peek(self) -> str:
        return self.text[self.at] if self.at < self.size else ""

    def space(self, lines: bool) -> None:
        pattern = _BLANKS_AND_LINES if lines else _BLANKS
        while match := pattern.match(self.text, self.at):
            self.at = match.end()

    def name(self) -> str:
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise self.error("should have a rule's name (letters, digits and '-')")
        self.at = match.end()
        return match[0]

    def symbol(self, name: str) -> None:
        if name not in self.used:
            self.count(symbols=1)
            self.used[name] = self.at

    def count(self, symbols: int = 0, elements: int = 0) -> None:
        self.symbols += symbols
        self.elements += elements
        if self.symbols > MAX_SYMBOLS or self.elements > MAX_ELEMENTS:
            raise InvalidRequest(
                f"the grammar is too large: written out it has more than {MAX_SYMBOLS} rules or {MAX_ELEMENTS} "
                "characters; repeat fewer times, or less"
            )

    def rule(self) -> None:
        name = self.name()
        self.symbol(name)
        self.space(False)
        if not self.text.startswith("::=", self.at):
            raise self.error("should have ::= after the rule's name")
        self.at += 3
        self.space(True)
        if len(self.grammar.rules) >= MAX_RULES and name not in self.grammar.rules:
            raise InvalidRequest(f"the grammar has more than {MAX_RULES} rules")
        self.grammar.rules[name] = self.alternatives()
        if self.at < self.size and self.peek() not in "\r\n":
            raise self.error("should end, or go on with a rule's name, a text, a class, a bracket or a repetition")
        self.space(True)

    def alternatives(self) -> list[list[Item]]:
        """The right side of a rule; groups are kept on a stack."""
        stack = [_Open([[]], self.symbols)]
        while self.at < self.size:
            char, items = self.text[self.at], stack[-1].alternatives[-1]
            if char == '"':
                items.append(self.literal())
            elif char == "[":
                items.append(self.char_class())
            elif char in "<!":
                items.append(self.token())
            elif char == ".":
                self.at += 1
                items.append(Item())
            elif char == "(":
                self.at += 1
                self.space(True)
                if len(stack) > MAX_DEPTH:
                    raise InvalidRequest(f"the grammar nests brackets more than {MAX_DEPTH} deep")
                stack.append(_Open([[]], self.symbols))
                self.count(symbols=1)
                continue
            elif char == ")" and len(stack) > 1:
                self.at += 1
                done = stack.pop()
                depth = 1 + max((item.depth for items in done.alternatives for item in items), default=0)
                weight = max(1, self.symbols - done.symbols)
                stack[-1].alternatives[-1].append(Item(group=done.alternatives, weight=weight, depth=depth))
            elif char == "|":
                self.at += 1
                self.space(True)
                stack[-1].alternatives.append([])
                continue
            elif char in "*+?{":
                self.repetition(items, nested=len(stack) > 1)
                continue
            elif _NAME.match(char):
                name = self.name()
                self.symbol(name)
                items.append(Item(rule=name))
            else:
                break
            self.count(elements=stack[-1].alternatives[-1][-1].elements)
            self.items += 1
            if self.items > MAX_ITEMS:
                raise InvalidRequest(f"the grammar has more than {MAX_ITEMS} texts, classes and references")
            self.space(len(stack) > 1)
        if len(stack) > 1:
            raise self.error("should have ')'")
        return stack[0].alternatives

    def char(self) -> None:
        match = _CHAR.match(self.text, self.at)
        if match is None:
            raise self.error(r"should have a character, or \n \r \t \\ \" \[ \] \- \xHH \uHHHH \UHHHHHHHH")
        self.at = match.end()

    def literal(self) -> Item:
        began, elements = self.at, 0
        self.at += 1
        while self.peek() != '"':
            if plain := _PLAIN.match(self.text, self.at):
                elements += plain.end() - self.at
                self.at = plain.end()
            elif escapes := _ESCAPES.match(self.text, self.at):
                elements += (escapes.end() - self.at) // 2
                self.at = escapes.end()
            elif self.at < self.size:
                self.char()
                elements += 1
            else:
                raise self.error("has a text without an end", began)
        self.at += 1
        return Item(elements=elements)

    def char_class(self) -> Item:
        began, elements = self.at, 0
        self.at += 1
        if self.peek() == "^":
            self.at += 1
        while self.peek() != "]":
            if self.at >= self.size:
                raise self.error("has a class of characters without an end", began)
            if plain := _PLAIN_IN_CLASS.match(self.text, self.at):
                elements += plain.end() - self.at
                self.at = plain.end()
            else:
                self.char()
                elements += 1
            if self.peek() == "-" and not self.text.startswith("]", self.at + 1):
                self.at += 1
                if self.at >= self.size:
                    raise self.error("has a class of characters without an end", began)
                self.char()
                elements += 1
        self.at += 1
        return Item(elements=elements)

    def token(self) -> Item:
        if self.peek() == "!":
            self.at += 1
        by_id = self.text.startswith("<[", self.at)
        match = (_TOKEN_ID if by_id else _TOKEN_TEXT).match(self.text, self.at)
        if match is None:
            raise self.error("should have a token, <[id]> or <text>")
        if not by_id:
            self.grammar.tokens.add(match[0])
        self.at = match.end()
        return Item()

    def repetition(self, items: list[Item], nested: bool) -> None:
        """One of * + ? {n} {n,} {n,m}, for the last item."""
        began = self.at
        sign = self.text[self.at]
        self.at += 1
        self.space(nested)
        high: int | None
        if sign == "{":
            low = self.number(nested)
            high = low
            if self.peek() == ",":
                self.at += 1
                self.space(nested)
                high = self.number(nested) if _NUMBER.match(self.peek()) else None
            if self.peek() != "}":
                raise self.error("should have '}'")
            self.at += 1
            self.space(nested)
        else:
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        if not items or items[-1].empty or items[-1].high == 0:
            raise self.error("should have something to repeat before it", began)
        if high is not None and high < low:
            raise self.error("repeats at least more often than at most", began)
        items[-1] = self.repeated(items[-1], low, high)

    def number(self, nested: bool) -> int:
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise self.error("should have a number")
        digits = match[0].lstrip("0")
        if len(digits) > 4 or int(digits or "0") > MAX_REPEAT:
            raise InvalidRequest(f"the grammar repeats something {digits[:20]} times, more than {MAX_REPEAT}")
        self.at = match.end()
        self.space(nested)
        return int(digits or "0")

    def repeated(self, item: Item, low: int, high: int | None) -> Item:
        times = high or low or 1
        if item.weight * times > MAX_REPEAT:
            raise InvalidRequest(
                f"the grammar repeats {times} times what is written out as {item.weight} rules, more than "
                f"{MAX_REPEAT} together"
            )
        if item.depth > MAX_DEPTH:
            raise InvalidRequest(f"the grammar nests repetitions more than {MAX_DEPTH} deep")
        optional = 1 if high is None else high - low
        before = item.elements
        self.count(symbols=optional, elements=before * max(0, low - 1) + optional * (before + 2))
        again = Item(group=[[item]]) if (item.low, item.high) != (1, 1) else item
        again.low, again.high, again.weight, again.depth = low, high, item.weight * times, item.depth + 1
        again.elements = before * low + (1 if optional else 0)
        return again
