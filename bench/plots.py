"""The picture of speed in docs/, drawn from the JSON that the benchmarks wrote: `python -m bench.plots`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "speed.svg"

_WIDTH, _LABEL, _BAR, _ROW = 760, 250, 400, 24
_OURS, _OTHERS = "#2563eb", "#9ca3af"

Row = tuple[str, float, str, bool]  # whose, how much, in words, whether it is ours


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _rows(values: Mapping[str, Any], names: Mapping[str, str], unit: str) -> list[Row]:
    rows = []
    for key, label in names.items():
        value = values[key]
        much = float(value["median"] if isinstance(value, dict) else value)
        rows.append((label, much, f"{much:,.0f} {unit}", label.startswith("llcuda_ffi")))
    return rows


def panels() -> list[tuple[str, list[Row]]]:
    """Title and rows of each part of the picture."""
    batch, first, texts = _result("throughput"), _result("latency_ttft")["ttft"], _result("embeddings")
    return [
        (
            f"{batch['settings']['prompts']} prompts at once, SmolLM2-135M, 2 Xeon cores (more is better)",
            _rows(
                batch["tokens_per_s"],
                {"raw": "C calls alone, batched", "generate": "llcuda_ffi", "peer": "llama-cpp-python 0.3.36"},
                "tokens/s",
            ),
        ),
        (
            "First token of a prompt of 1,010 tokens, the same machine (less is better)",
            _rows(first, {"cold_ms": "llcuda_ffi, new", "cached_ms": "llcuda_ffi, 1,000 seen before"}, "ms"),
        ),
        (
            "Embeddings, all-MiniLM-L6-v2, 2 EPYC cores with AVX2 (more is better)",
            _rows(
                texts["texts_per_s"],
                {
                    "onnxruntime, int8": "onnxruntime, int8",
                    "sentence-transformers (torch)": "sentence-transformers",
                    "ours": "llcuda_ffi, q8_0",
                    "llama-cpp-python 0.3.36, list": "llama-cpp-python 0.3.36",
                },
                "texts/s",
            ),
        ),
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


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE)
