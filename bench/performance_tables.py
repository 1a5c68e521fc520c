"""The tables of docs/performance.md, made from bench/results by bench/pages.py."""

from __future__ import annotations

from typing import Any

from .measured import result_of, rows_of, spread, where

_BUSY = {"auto_of_better": "auto / the better", "again_of_first": "1 thread / itself"}


def run() -> list[str]:
    """Sides as rows, sections as columns: the median, and how many times faster this package is."""
    result = result_of("run")
    machine, settings, sections = result["machine"], result["settings"], result["sections"]
    head = (
        f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}, load {machine['load']} at the start, "
        f"{settings['model']}, {settings['threads']} threads, medians of {settings['rounds']} rounds in turn. "
        "In brackets: how many times faster this package is."
        + "".join(
            f" {name}: measured again {part['date']}, {part['rounds']} rounds."
            for name, part in sections.items()
            if "date" in part
        )
    )
    rows = []
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
        rows.append(cells)
    columns = [f"{name}, {part['unit']}" for name, part in sections.items()]
    lines = [head, "", *rows_of(["side", "start, s", *columns, "peak MiB"], rows)]
    left_out = [f"{side} ({said['error']})" for side, said in result["sides"].items() if "error" in said]
    return [*lines, "", "Left out: " + "; ".join(left_out) + "."] if left_out else lines


def over_c() -> list[str]:
    """What this package costs over a loop of C calls."""
    one, many, python = (result_of(name) for name in ("decode", "throughput", "python_time"))
    long = result_of("decode_1000")
    first, gap = result_of("latency_ttft"), result_of("latency_gap")
    step, rss = python["python_us_per_token"], one["peak_rss_mib"]
    in_python = f"µs of Python a token, 32 requests, `generate`{_elsewhere(python, one)}"
    together = f"{many['settings']['prompts']} prompts × {many['settings']['tokens']} tokens{_elsewhere(many, one)}"
    rows = [
        ("`generate`, one stream of 256 tokens, over a raw loop of C calls", one["ratio"]["generate"], "decode.py"),
        ("`stream`, the same", one["ratio"]["stream"], ""),
        (f"`generate`, 1,000 tokens{_elsewhere(long, one)}", long["ratio"]["generate"], "decode.py --tokens 1000"),
        (f"{together}, over the raw batched loop", many["ratio"]["raw"], "throughput.py --peer FOLDER"),
        ("the same, by CPU time", many["ratio"]["raw_cpu"], ""),
        (f"the same, over {many['peer'].partition(',')[0]}'s code on our libllama", many["ratio"]["peer"], ""),
        ("time to first token, 1,000 of 1,010 cached, over cold", first["ttft"]["share"], "latency.py --only ttft"),
        (
            "longest gap of 8 streams while 1,500 tokens come, over 3 median gaps and the last micro-batch",
            gap["gap"]["of_allowed"],
            "latency.py --only gap",
        ),
        (in_python, step["generate_whole"], "throughput.py --only-python"),
        ("the same, 32 streams in one thread", step["stream_whole"], ""),
    ]
    cells = [[what, spread(value), f"`bench/{how}`" if how else ""] for what, value, how in rows]
    memory = f"{rss['raw']:.0f}, {rss['generate']:.0f} MiB"
    cells.append(["peak RSS, one sequence of 2,048: raw loop, `generate`", memory, ""])
    return [f"{where(one)}, medians (range, rounds):", "", *rows_of(["what", "measured", "how"], cells)]


def _elsewhere(result: dict[str, Any], other: dict[str, Any]) -> str:
    cpu = str(result["machine"]["cpu"])
    return f" ({cpu})" if cpu != other["machine"]["cpu"] else ""


def busy() -> list[str]:
    """Thread counts beside no, one and two spinning processes."""
    results = [result_of(name) for name in ("latency_idle", "latency_busy", "latency_busy_32")]
    rows = (
        [what, *(_median(row.get(n)) for n in ("1", "2", "auto")), *(spread(row[key]) for key in _BUSY)]
        for result in results
        for what, row in result["busy"].items()
    )
    titles = ["streams, spinning processes beside", "1 thread", "2 threads", "auto", *_BUSY.values()]
    return [f"{where(results[0])}, tokens/s:", "", *rows_of(titles, rows)]


def _median(found: dict[str, Any] | None) -> str:
    return f"{found['median']:,.0f}" if found else "–"


def vocabulary() -> list[str]:
    """Choosing from the rows of large vocabularies."""
    result = result_of("vocabulary")
    rows = (
        [f"{int(size):,}", str(n), *(f"{row[side]['median']:.0f}" for side in ("libllama", "ours"))]
        for size, counts in result["rows"].items()
        for n, row in counts.items()
    )
    titles = ["tokens in the vocabulary", "rows", "libllama, µs", "here, µs"]
    return [f"{where(result)}, medians of {result['settings']['rounds']}:", "", *rows_of(titles, rows)]


def structured() -> list[str]:
    """What a schema, and a conversation of many turns, cost."""
    result, talk = result_of("structured"), result_of("turns")
    computed = [row["computed"] for row in talk["rows"][1:]]
    rows = []
    for name, words in (("sequences_1", "one sequence"), ("sequences_16", "16 sequences")):
        ratio, sampled = (result[name][key] for key in ("ratio", "ratio_every_token_sampled"))
        rows += [
            (f"{words} with a schema, tokens/s over without", spread(ratio)),
            ("the same, with every token sampled", spread(sampled)),
        ]
    turns = (
        f"conversation of {talk['settings']['turns']} turns, each of {min(computed)} to {max(computed)} new prompt "
        "tokens: all turns, and with each prompt computed again"
    )
    rows.append((turns, f"{talk['cached']['median']:.1f} s, {talk['again']['median']:.1f} s"))
    head = f"{where(result)}; the last row {talk['machine']['date']}:"
    return [head, "", *rows_of(["what", "measured"], rows)]


def soak() -> list[str]:
    """Every feature at once."""
    result = result_of("soak_mixed")
    counts, usage = result["counts"], result["usage"]
    memory, files = ([at[key] for at in usage] for key in ("rss_mib", "fds"))
    said = f"{sum(counts.values()):,} operations of {len(counts)} kinds, {len(result['wrong'])} wrong"
    memory_said = f"memory {memory[1]:.0f} MiB after a minute and {memory[-1]:.0f} at the end"
    return [
        f"{where(result)}, load {result['machine']['load']:.0f}: {said}, {len(result['stderr'])} bytes on stderr; "
        f"{memory_said}, {min(files)} to {max(files)} file descriptors."
    ]


def first_minute() -> list[str]:
    """README's first command where nothing is there."""
    result = result_of("first_minute")
    rows = ([what, f"{seconds:.1f}"] for what, seconds in result["seconds"].items())
    return [f"{where(result)}:", "", *rows_of(["environment", "seconds"], rows)]
