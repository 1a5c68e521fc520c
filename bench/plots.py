"""The picture of speed in docs/, drawn from bench/results by bench/pages.py."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .measured import result_of

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "speed.svg"

_WIDTH, _LABEL, _BAR, _ROW = 760, 250, 400, 24
_OURS, _OTHERS = "#2563eb", "#9ca3af"

Row = tuple[str, float, str, bool]  # whose, how much, in words, whether it is ours


def _section(run: Mapping[str, Any], name: str) -> list[Row]:
    """The sides that offer it, the slowest first."""
    part = run["sections"][name]
    found = [(side, value["median"]) for side, value in part["sides"].items() if "median" in value]
    return [
        (
            {"ours": "llcuda_ffi", "our Embedder": "llcuda_ffi", "raw C loop": "C calls alone"}.get(side, side),
            float(much),
            f"{much:,.0f} {part['unit']}",
            side in ("ours", "our Embedder"),
        )
        for side, much in sorted(found, key=lambda row: (row[1], row[0] == "ours"))
    ]


def panels() -> list[tuple[str, list[Row]]]:
    """Title and rows of each part of the picture."""
    run, latency = result_of("run"), result_of("latency_ttft")
    machine, other = (
        f"{result['machine']['cores']} cores of {result['machine']['cpu']}".replace(" Processor", "")
        for result in (run, latency)
    )
    first = latency["ttft"]
    together = next(name for name in ("16 prompts together", "8 prompts together") if name in run["sections"])
    return [
        (f"{together}, {run['settings']['model']}, {machine} (more is better)", _section(run, together)),
        ("One stream, the same (more is better)", _section(run, "decode, one stream")),
        (
            f"First token of a prompt of 1,010 tokens, {'the same' if machine == other else other} (less is better)",
            [
                (f"llcuda_ffi, {label}", first[key]["median"], f"{first[key]['median']:,.0f} ms", True)
                for key, label in (("cold_ms", "new"), ("cached_ms", "1,000 seen before"))
            ],
        ),
        ("Embeddings, all-MiniLM-L6-v2, texts of 10 to 70 words (more is better)", _section(run, "embeddings")),
    ]


def picture() -> str:
    """The picture as SVG."""
    drawn, y = [], 14
    for title, rows in panels():
        y += 18
        drawn.append(f'<text x="16" y="{y}" font-weight="bold">{escape(title)}</text>')
        y += 10
        most = max(much for _, much, _, _ in rows)
        for whose, much, words, ours in rows:
            width = max(1, round(_BAR * much / most))
            drawn += [
                f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(whose)}</text>',
                f'<rect x="{_LABEL}" y="{y + 3}" width="{width}" height="{_ROW - 7}" rx="2" '
                f'fill="{_OURS if ours else _OTHERS}"/>',
                f'<text x="{_LABEL + width + 6}" y="{y + 15}">{escape(words)}</text>',
            ]
            y += _ROW
        y += 8
    height = y + 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    back = f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff"/>'
    return "\n".join([f'{head} font-family="sans-serif" font-size="13" fill="#111827">', back, *drawn, "</svg>", ""])
