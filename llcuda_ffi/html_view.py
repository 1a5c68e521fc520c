"""Results as HTML, for the cells of a notebook (`_repr_html_`): everything that a model wrote is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any


def block(text: str) -> str:
    """A text as it is, its long lines wrapped."""
    return f'<pre style="white-space:pre-wrap">{html.escape(text)}</pre>'


def small(*facts: str) -> str:
    """A line of facts in small grey letters; empty ones are left out."""
    shown = " · ".join(html.escape(fact) for fact in facts if fact)
    return f'<div style="color:#888;font-size:85%">{shown}</div>'


def folded(title: str, text: str) -> str:
    """A text that opens on a click."""
    return f"<details><summary>{html.escape(title)}</summary>{block(text)}</details>"


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values, a row each."""
    cells = "".join(
        f'<tr><td style="text-align:left">{html.escape(name)}</td>'
        f'<td style="text-align:left">{html.escape(_short(value))}</td></tr>'
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def counted(usage: Any, tokens_per_s: float) -> tuple[str, ...]:
    """The facts of a Usage, and the rate."""
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    rate = f"{tokens_per_s:.1f} tokens/s" if tokens_per_s else ""
    return f"{usage.prompt_tokens} prompt tokens{cached}", f"{usage.completion_tokens} tokens", rate


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
