"""The table of docs/performance.md out of one result of bench/run.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- bench/run.py: begin -->", "<!-- bench/run.py: end -->"


def write(result: dict[str, Any]) -> None:
    """Replace the generated part of docs/performance.md."""
    page = DOCS / "performance.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    if not rest:
        raise SystemExit(f"{page} has no line {BEGIN!r}")
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{after}", encoding="utf-8")
    print(f"wrote {page}")


def table(result: dict[str, Any]) -> str:
    """Sides as rows, sections as columns: the median, and how many times faster this package is."""
    machine, settings, sections = result["machine"], result["settings"], result["sections"]
    lines = [
        f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}, load {machine['load']} at the start, "
        f"{settings['model']}, {settings['threads']} threads, medians of {settings['rounds']} rounds in turn. "
        "In brackets: how many times faster this package is.",
        "",
        "| side | start, s | "
        + " | ".join(f"{name}, {part['unit']}" for name, part in sections.items())
        + " | peak MiB |",
        "|-|-|" + "-|" * (len(sections) + 1),
    ]
    for side, said in result["sides"].items():
        if "error" in said:
            continue
        cells = [f"**{side}**: {said['version']}", f"{said['start_s']:.1f}"]
        for part in sections.values():
            found = part["sides"].get(side, {"error": "not offered"})
            if "error" in found:
                cells.append("–")
                continue
            over = f" ({found['ours_over_it']:.2f}×)" if "ours_over_it" in found else ""
            cells.append(f"{found['median']:,.0f}{over}")
        cells.append(f"{said.get('rss_mib', 0):,.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    left_out = [f"{side} ({said['error']})" for side, said in result["sides"].items() if "error" in said]
    if left_out:
        lines += ["", "Left out: " + "; ".join(left_out) + "."]
    return "\n".join(lines)
