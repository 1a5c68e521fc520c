"""The tables of the other pages of docs/, made from bench/results by bench/pages.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .measured import result_of, rows_of, spread, where

_WEIGHTS = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS", "Q8_0", "F16")
_KINDS = {
    "deepseek2": "deepseek2 (MLA)", "gemma3": "gemma3 (window)", "lfm2": "lfm2 (hybrid)", "qwen35": "qwen35 (hybrid)",
    "lfm2-window": "lfm2-window (hybrid)",
}  # fmt: skip


def bundles(name: str) -> list[str]:
    """Prefill and decode by type of weights and bundle."""
    result = result_of(name)
    files = result["files"]
    columns = list(dict.fromkeys(row["bundle"] for one in files.values() for row in one["rows"]))
    columns.sort(key=lambda bundle: (bundle == "native", not bundle.startswith("v"), bundle))
    rows = []
    for weights in _WEIGHTS:
        one = files[weights]
        chosen = one["chosen"]["bundle"] + (", not repacked" if one["chosen"]["repack"] is False else "")
        for plain in sorted({row["repack"] is False for row in one["rows"]}):
            rates = {
                row["bundle"]: f"{row['prompt']:.0f} / {row['answer']:.0f}"
                for row in one["rows"]
                if (row["repack"] is False) == plain
            }
            ends = ["", ""] if plain else [chosen, f"{one['chosen_over_best']:.2f}"]
            rows.append([weights + (", not repacked" if plain else ""), *(rates.get(c, "") for c in columns), *ends])
    machine, one = result["machine"], next(iter(files.values()))
    return [
        f"{one['date']} UTC, {machine['cores']} cores of {machine['cpu']}, tokens/s of a prompt / an answer:",
        "",
        *rows_of(["weights", *columns, "`tune` chose", "over the best"], rows),
    ]


def bundles_peer() -> list[str]:
    """The best row of each type beside llama-cpp-python."""
    rows = []
    for weights, one in ((name, result_of("bundles")["files"][name]) for name in _WEIGHTS):
        if "peer" in one:
            cells = [weights, one["peer"]["bundle"]]
            for what in ("prompt", "answer"):
                rate = one["peer"][what]
                low, high = rate["range"]
                cells += [
                    f"{rate['ours']:.0f} : {rate['theirs']:.0f}",
                    f"{rate['ratio']:.2f} ({low:.2f} to {high:.2f})",
                ]
            rows.append(cells)
    return rows_of(["weights", "bundle", "prompt", "ratio", "answer", "ratio"], rows)


def _kinds(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(_KINDS.get(kind, kind), found) for kind, found in result["kinds"].items()]


def llama_server() -> list[str]:
    """How much of the same prompts is reused here and by llama-server."""
    result = result_of("reuse_llama_server")
    rows = []
    for kind, found in _kinds(result):
        beside, again = found["beside"], found["again"]
        shares = (f"{beside[key] / beside['prompt_tokens']:.0%}" for key in ("endless", "ours", "llama_server"))
        pairs = (f"{a} / {b}" for a, b in zip(again["ours"], again["llama_server"], strict=True))
        rows.append([kind, str(beside["prompts"]), *shares, *pairs])
    titles = ["", "prompts", "endless memory", "ours", "llama-server"]
    lengths = [str(n) for n in rows and next(iter(result["kinds"].values()))["again"]["tokens"]]
    titles += [f"{lengths[0]} again", *(f"its first {n}" for n in lengths[1:])]
    return [f"{where(result)}, llama-server {result['settings']['llama-server']}:", "", *rows_of(titles, rows)]


def second_turns() -> list[str]:
    """Time to the first token of a second turn."""
    rows = []
    for name in ("reuse_wide", "reuse_granite_hybrid", "reuse_qwen35"):
        result = result_of(name)
        machine = f"{result['machine']['cores']} cores of {result['machine']['cpu'].removesuffix(' Processor')}"
        for kind, found in _kinds(result):
            cells = [f"{found['cold_s']:.2f} s", f"{found['second_turn']:.1%}", f"{found['restart']:.1%}"]
            rows.append([kind, f"{machine}, {result['machine']['date'][:10]}", *cells])
    return rows_of(["", "on", "cold", "second turn", "after kill -9 and a restart, from disk"], rows)


def keeping() -> list[str]:
    """What keeping costs where nothing is reused."""
    result = result_of("reuse_cost")
    kinds = _kinds(result)
    for name in ("reuse_cost_700", "reuse_cost_2000"):
        real = result_of(name)
        kinds += [(f"{kind}, {real['settings']['tokens']:,} tokens", found) for kind, found in _kinds(real)]

    def share(value: Sequence[float]) -> str:
        return "none" if value == [0, 0] else f"{value[0]:.2%} ± {value[1] * 100:.2f}"

    rows = [
        [kind, f"{cost['seconds']:.2f} s", *(share(cost[key]) for key in ("around", "batches", "sum", "whole"))]
        for kind, cost in ((kind, found["cost"]["default"]) for kind, found in kinds)
    ]
    titles = ["", "a request", "around the batches", "a batch more", "together", "two whole requests"]
    return [f"{where(result)}:", "", *rows_of(titles, rows)]


def images() -> list[str]:
    """Requests with an image."""
    one, many = result_of("images_one"), result_of("images_many")
    rows = [
        ("one request with a new image, speed of libmtmd's and libllama's own calls in a loop", one["of_raw"]),
        ("16 requests with 16 new images together, against one by one", many["sixteen_new"]),
        ("the same, images encoded before", many["sixteen_known"]),
        ("first token of a second turn about an array of pixels, of the first's", one["turn_ratio"]),
        ("the same about a JPEG of 2,048 × 1,536", one["photo_ratio"]),
        ("first token of an image's answer beside four streams, images encoded before, s", many["beside_first"]),
        ("gap between the tokens of those streams, s: median", many["beside_p50"]),
        ("99th in 100", many["beside_p99"]),
    ]
    return [f"{where(one)}:", "", *rows_of(["what", "measured"], ([what, spread(value)] for what, value in rows))]


def embeddings(name: str) -> list[str]:
    """Texts a second, of this package and others."""
    result = result_of(name)
    settings = result["settings"]
    rows = []
    for what, rate in result["texts_per_s"].items():
        ratio = result["ours_to"].get(what)
        rows.append([what, f"{rate['median']:.1f}", "" if ratio is None else spread(ratio)])
    cosines = ", ".join(f"{what} {value:.4f}" for what, value in result["cosine_min"].items())
    return [
        f"{where(result)}, {settings['texts']} texts of {settings['tokens per text']} tokens:",
        "",
        *rows_of(["what", "texts/s", "ours to it"], rows),
        "",
        f"Least cosine with sentence-transformers: {cosines}.",
    ]


def trial() -> list[str]:
    """Files tried in a child."""
    result = result_of("trial")
    tiny, model = f"a model of {result['tiny_kb']:.0f} KB", f"one of {result['settings']['mb']} MB"
    words = {"first": f"first trial of a process, {tiny}", "tiny": f"later ones, {tiny}", "model": model}
    words["seen"] = "a file seen before"
    rows = ([words[key], f"{value['median']:.0f}"] for key, value in result["ms"].items())
    return [f"{where(result)}, medians of {result['ms']['first']['n']}:", "", *rows_of(["what", "ms"], rows)]


def isolate() -> list[str]:
    """The engine in this process and in a child."""
    result = result_of("isolate")
    titles = {"cpu_ms": "CPU time a token, 32 streams, ms", "first_token_ms": "first token of a lone stream, ms"}
    rows = [
        [title, *(f"{result[side][key]['median']:.3f}" for side in ("plain", "isolated"))]
        for key, title in titles.items()
    ]
    return [f"{where(result)}:", "", *rows_of(["what", "in process", "isolated"], rows)]


def fuzz() -> list[str]:
    """Mutated files, and what became of the process."""
    rows = []
    for run in result_of("fuzz")["runs"]:
        what = {"model": "models", "adapter": "LoRA adapters", "medium": "images and sounds", "projector": "projectors"}
        name = f"saved states, {run['base']}" if run["kind"] == "state" else what[run["kind"]]
        counts = run["counts"]
        ends = (str(counts.get(key, 0)) for key in ("ok", "refused", "tried", "died", "hung", "bug"))
        seeds, date = f"{run['first']:,} to {run['last']:,}", run["machine"]["date"][:10]
        rows.append([name, seeds, f"{run['bundle']}, {date}", f"{sum(counts.values()):,}", *ends])
    titles = [
        "files",
        "seeds",
        "bundle, date",
        "tried",
        "work",
        "refused",
        "ended the trial",
        "ended the process",
        "hung",
    ]
    return rows_of([*titles, "another exception"], rows)


def kills() -> list[str]:
    """What writes files, killed and without room."""
    result = result_of("kills")
    return [f"{where(result)}:", "", *kill_rows(result["operations"])]


def kill_rows(operations: dict[str, dict[str, int]]) -> list[str]:
    """How often each was killed, or had no room, and what came of it."""
    keys = ("killed", "killed too late", "full", "read-only", "went on", "broken", "failed")
    titles = ["operation", "killed while it ran", "just after", "on a full disk", "read-only", "next run went on"]
    titles += ["broken", "no exception of ours, or not gone on"]
    return rows_of(titles, ([name, *(str(found[key]) for key in keys)] for name, found in operations.items()))


def attacks() -> list[str]:
    """The server under attack."""
    result = result_of("attacks")
    return [f"{where(result)}:", "", *attack_rows(result["rows"].values())]


def attack_rows(attacks: Iterable[dict[str, Any]]) -> list[str]:
    """Answers, memory, sockets and gaps of each attack."""
    rows = []
    for row in attacks:
        answers = ", ".join(
            f"{n:,} × {what}" if what.isdigit() else f"{n:,} {what}"
            for what, n in sorted(row["answers"].items())
            if what != "hidden"
        )
        (calm, during), (least, largest) = row["gap_ms"], row["largest_gap_ms"]
        gap = f"{during / calm:.2f} ×" if calm and during else "–"
        memory, sockets = (" / ".join(f"{x:,}" for x in row[key]) for key in ("rss_mib", "sockets"))
        cells = [row["attack"], f"{row['count']:,}", answers, memory, sockets, gap, f"{least:.0f} → {largest:.0f}"]
        rows.append(cells)
    titles = ["attack", "requests", "answers", "memory (MiB)", "sockets", "gap", "largest gap (ms)"]
    return rows_of(titles, rows)


def loop() -> list[str]:
    """The longest that an event loop stands still."""
    result = result_of("latency_loop")
    rows = ([what, f"{value['median']:.0f}"] for what, value in result["loop"].items())
    return [f"{where(result)}:", "", *rows_of(["AsyncLlama is given", "longest gap of the event loop, ms"], rows)]


def many_rows() -> list[str]:
    """Many texts through the command, killed on the way."""
    result = result_of("embed_rows")
    killed = " and ".join(map(str, result["killed_after_parts"]))
    rows = f"{result['rows']:,} rows, {result['nan_rows']} of them NaN"
    compared = f"the {result['rows_checked']:,} compared differ by {result['largest_difference']:.4f} at most"
    return [
        f"{where(result)}: killed after {killed} of {result['parts']} parts; {rows}; {compared}; peak memory "
        f"{result['peak_rss_mb']} MB."
    ]


def quantized() -> list[str]:
    """What each type keeps."""
    result = result_of("quantize")
    rows = (
        [name, f"{row['mb']:.1f}", f"{row['kl']:.4f}", f"{row['same']:.1%}"] for name, row in result["types"].items()
    )
    titles = ["type", "MB", "KL divergence", "same best token"]
    return [f"{where(result)}, F16 {result['settings']['f16_mb']:.1f} MB:", "", *rows_of(titles, rows)]


def http() -> list[str]:
    """Streams in the process and over HTTP."""
    result = result_of("serving_idle")
    ((clients, found),) = result["clients"].items()
    idle = f"over HTTP, beside {result['settings']['idle']:,} idle connections"
    rows = []
    for side, words in (("in_process", "in the process"), ("http", "over HTTP"), ("http_idle", idle)):
        one = found[side]
        first = f"{one['ttft_p50_ms'] / 1e3:.1f} s, {one['ttft_p99_ms'] / 1e3:.1f} s"
        rows.append([words, f"{one['tokens_per_s']:.1f}", first, f"{one['cpu_ms_per_token']:.1f} ms"])
    more = f"HTTP takes {found['ratio']['cpu_ms_per_token'] - 1:+.1%} CPU time a token"
    titles = [f"{clients} streams", "tokens/s", "first token, P50 and P99", "CPU time a token"]
    return [f"{_serving(result)}; {more}:", "", *rows_of(titles, rows)]


def http_short() -> list[str]:
    """Short requests, by the number of compute threads: what the event loop takes."""
    results = [result_of("serving_short_1"), result_of("serving_short_2")]
    rows = []
    for result in results:
        (found,) = result["clients"].values()
        inside, outside = found["in_process"], found["http"]
        pairs = (
            f"{inside[key]:.{digits}f}, {outside[key]:.{digits}f}{unit}"
            for key, digits, unit in (
                ("tokens_per_s", 1, ""), ("cpu_ms_per_token", 1, " ms"), ("loop_ms_per_token", 2, " ms"),
            )
        )  # fmt: skip
        rows.append(
            [
                str(result["settings"]["n_threads"]),
                *pairs,
                f"{found['ratio']['loop_of_cpu']:.1%}",
                f"{outside['client_ms_per_token']:.2f} ms",
            ]
        )
    titles = ["compute threads", "tokens/s in the process, over HTTP", "CPU time a token", "of the event loop"]
    titles += ["which is more, of all", "of the clients"]
    return [f"{_serving(results[0])}:", "", *rows_of(titles, rows)]


def _serving(result: dict[str, Any]) -> str:
    settings = result["settings"]
    return f"{where(result)}, {settings['tokens']} tokens each, medians of {settings['rounds']}"
