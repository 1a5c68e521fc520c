"""Every table of docs/ that is made from bench/results, and docs/speed.svg: nothing in them is typed by hand.

    python -m bench.pages            # writes them
    python -m bench.pages --check    # names the pages that are not current; exit code 1 if there are any

A page holds a table between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from . import gpu_tables, performance_tables, plots, tables

DOCS = Path(__file__).resolve().parents[1] / "docs"
Table = Callable[[], list[str]]

TABLES: dict[str, dict[str, Table]] = {
    "performance": {
        "run": performance_tables.run,
        "over the C loop": performance_tables.over_c,
        "busy": performance_tables.busy,
        "vocabulary": performance_tables.vocabulary,
        "soak": performance_tables.soak,
        "structured": performance_tables.structured,
        "first minute": performance_tables.first_minute,
    },
    "build": {
        "bundles": lambda: tables.bundles("bundles"),
        "bundles, AMX": lambda: tables.bundles("bundles_xeon"),
        "bundles, llama-cpp-python": tables.bundles_peer,
    },
    "cache": {
        "llama-server": tables.llama_server,
        "second turns": tables.second_turns,
        "cost": tables.keeping,
    },
    "media": {"images": tables.images},
    "measured_embeddings": {
        "embeddings": lambda: tables.embeddings("embeddings_150"),
        "larger embeddings": lambda: tables.embeddings("embeddings_base"),
        "rows": tables.many_rows,
    },
    "gpu": {"many": gpu_tables.many, "load": gpu_tables.load},
    "measured_gpu": {"stream": gpu_tables.stream, "switches": gpu_tables.switches, "split": gpu_tables.split},
    "server": {
        "cluster": gpu_tables.cluster,
        "cluster, ends": gpu_tables.ends,
        "HTTP": tables.http,
        "HTTP, short": tables.http_short,
    },
    "llcuda": {"quantize": tables.quantized},
    "reliability": {
        "trial": tables.trial,
        "isolate": tables.isolate,
        "fuzz": tables.fuzz,
        "kills": tables.kills,
        "attacks": tables.attacks,
        "loop": tables.loop,
    },
}


def page(name: str) -> str:
    """The text of a page, with its tables as they have to be."""
    path = DOCS / f"{name}.md"
    text = path.read_text(encoding="utf-8")
    for title, table in TABLES[name].items():
        begin, end = f"<!-- {title}: begin -->", f"<!-- {title}: end -->"
        before, _, rest = text.partition(begin)
        if end not in rest:
            raise SystemExit(f"{path} has no lines {begin!r} and {end!r}")
        text = f"{before}{begin}\n" + "\n".join(table()) + f"\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true", help="write nothing")
    a = p.parse_args()
    files = {DOCS / f"{name}.md": page(name) for name in TABLES} | {plots.PICTURE: plots.picture()}
    old = [path for path, text in files.items() if path.read_text(encoding="utf-8") != text]
    for path in old:
        print(f"{path.relative_to(DOCS.parent)} {'is not current' if a.check else 'written'}")
        if not a.check:
            path.write_text(files[path], encoding="utf-8")
    raise SystemExit(bool(old and a.check))


if __name__ == "__main__":
    main()
