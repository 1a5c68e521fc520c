"""The tables of docs/performance.md out of the results of bench/: nothing in them is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def write(result: dict[str, Any]) -> None:
    """Replace the generated parts of docs/performance.md."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in (("run", table(result)), ("over the C loop", over_c()), ("busy", busy())):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        if end not in rest:
            raise SystemExit(f"{PAGE} has no lines {begin!r} and {end!r}")
        text = f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")


def table(result: dict[str, Any]) -> list[str]:
    """Sides as rows, sections as columns: the median, and how many times faster this package is."""
    machine, settings, sections = result["machine"], result["settings"], result["sections"]
    lines = [
        f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}, load {machine['load']} at the start, "
        f"{settings['model']}, {settings['threads']} threads, medians of {settings['rounds']} rounds in turn. "
        "In brackets: how many times faster this package is."
        + "".join(
            f" {name}: measured again {part['date']}, {part['rounds']} rounds."
            for name, part in sections.items()
            if "date" in part
        ),
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
    return [*lines, "", "Left out: " + "; ".join(left_out) + "."] if left_out else lines


def over_c() -> list[str]:
    """What this package costs over a loop of C calls."""
    one, many, python = (result_of(name) for name in ("decode", "throughput", "python_time"))
    first, gap = result_of("latency_ttft"), result_of("latency_gap")
    step, rss = python["python_us_per_token"], one["peak_rss_mib"]
    together = f"{many['settings']['prompts']} prompts × {many['settings']['tokens']} tokens"
    rows = [
        ("`generate`, one stream of 256 tokens, over a raw loop of C calls", one["ratio"]["generate"], "decode.py"),
        ("`stream`, the same", one["ratio"]["stream"], ""),
        (f"{together}, over the raw batched loop", many["ratio"]["raw"], "throughput.py --peer FOLDER"),
        ("the same, by CPU time", many["ratio"]["raw_cpu"], ""),
        (f"the same, over {many['peer'].partition(',')[0]}'s code on our libllama", many["ratio"]["peer"], ""),
        ("time to first token, 1,000 of 1,010 cached, over cold", first["ttft"]["share"], "latency.py --only ttft"),
        (
            "longest gap of 8 streams while 1,500 tokens come, over 3 median gaps and the last micro-batch",
            gap["gap"]["of_allowed"],
            "latency.py --only gap",
        ),
        ("µs of Python a token, 32 requests, `generate`", step["generate_whole"], "throughput.py --only-python"),
        ("the same, 32 streams in one thread", step["stream_whole"], ""),
    ]
    return [
        f"{_machine(one)}, medians (range, rounds):",
        "",
        "| what | measured | how |",
        "|-|-|-|",
        *(f"| {what} | {_spread(value)} | {f'`bench/{how}`' if how else ''} |" for what, value, how in rows),
        f"| peak RSS, one sequence of 2,048: raw loop, `generate` | {rss['raw']:.0f}, {rss['generate']:.0f} MiB | |",
    ]


def busy() -> list[str]:
    """Thread counts beside no, one and two spinning processes."""
    idle, beside = result_of("latency_idle"), result_of("latency_busy")
    return [
        f"{_machine(beside)}, tokens/s:",
        "",
        "| streams, spinning processes beside | 1 thread | 2 threads | auto | auto / the better | 1 thread / itself |",
        "|-|-|-|-|-|-|",
        *(
            f"| {what} | {row['1']['median']:,.0f} | {_median(row.get('2'))} | {row['auto']['median']:,.0f} "
            f"| {_spread(row['auto_of_better'])} | {_spread(row['again_of_first'])} |"
            for what, row in (idle["busy"] | beside["busy"]).items()
        ),
    ]


def _median(found: dict[str, Any] | None) -> str:
    return f"{found['median']:,.0f}" if found else "–"


def result_of(name: str) -> dict[str, Any]:
    """What a benchmark wrote to bench/results."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}, bundle {machine['bundle']}, "
        f"{result['settings']['model']}"
    )


def _spread(found: dict[str, Any]) -> str:
    digits = 3 if found["median"] < 2 else 2
    low, high = found["min"], found["max"]
    return f"{found['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}, n={found['n']})"
