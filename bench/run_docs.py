"""The table and the pictures of docs/ out of one result of bench/run.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- bench/run.py: begin -->", "<!-- bench/run.py: end -->"


def write(result: dict[str, Any]) -> None:
    """Replace the generated part of docs/performance.md, and draw docs/img/run.svg."""
    page = DOCS / "performance.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    if not rest:
        raise SystemExit(f"{page} has no line {BEGIN!r}")
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{after}", encoding="utf-8")
    print(f"wrote {page}")
    if draw(result, DOCS / "img" / "run.svg"):
        print(f"wrote {DOCS / 'img' / 'run.svg'}")


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


def draw(result: dict[str, Any], path: Path) -> bool:
    """A bar for each side of each section, 1 being this package; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no picture (pip install matplotlib)")
        return False
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "bench"
    from matplotlib import pyplot

    sections = {name: part for name, part in result["sections"].items() if len(_shares(part)) > 1}
    figure, axes = pyplot.subplots(1, len(sections), figsize=(3.1 * len(sections), 3.4), layout="constrained")
    for axis, (name, part) in zip(axes if len(sections) > 1 else [axes], sections.items(), strict=True):
        shares = _shares(part)
        axis.barh(list(shares), list(shares.values()), color=["#2563eb" if s == "ours" else "#9ca3af" for s in shares])
        axis.invert_yaxis()
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.axvline(1.0, color="#2563eb", linewidth=0.6)
    figure.suptitle("Speed over this package's (1 is ours; longer is faster)", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return True


def _shares(part: dict[str, Any]) -> dict[str, float]:
    return {
        side: 1 / found["ours_over_it"] if "ours_over_it" in found else 1.0
        for side, found in part["sides"].items()
        if "error" not in found and (side == "ours" or "ours_over_it" in found)
    }
