"""What the documents say was measured: the tables are those of bench/results, and the commands beside them exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from bench import pages, plots

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "bench" / "results").rglob("*.json"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = sorted((ROOT / "bench").glob("*.py"))


@pytest.mark.parametrize("name", pages.TABLES)
def test_tables_are_current(name: str) -> None:
    """Each generated table is what `python -m bench.pages` makes of the committed results."""
    assert (pages.DOCS / f"{name}.md").read_text(encoding="utf-8") == pages.page(name)


def test_picture_is_current() -> None:
    """So is docs/speed.svg."""
    assert plots.PICTURE.read_text(encoding="utf-8") == plots.picture()


def test_every_mark_is_known() -> None:
    """No page has marks that nothing fills."""
    for path in PAGES:
        marks = re.findall(r"^<!-- (.+): begin -->$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert marks == list(pages.TABLES.get(path.stem, ())), path


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_results(path: Path) -> None:
    """A result says where, when and how it was measured, and a page or a table uses it."""
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"date", "cpu"} <= set(result["machine"])
    _check(result["command"])
    assert not re.search(r"(?:^|[ =])/", result["command"]), "a path of one machine"
    users = [
        *PAGES,
        *(ROOT / "bench" / name for name in ("pages.py", "tables.py", "performance_tables.py", "gpu_tables.py")),
    ]
    assert any(re.search(rf"\b{path.stem}\b|\b{path.stem}_", user.read_text(encoding="utf-8")) for user in users)


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    """Every command of bench/ that a page or a script's description names: the file is there and has the options."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
        commands = re.findall(r"^ *(?:\w+=\S+ )*python (?:-m )?bench[^\n]*(?:\n {8}[^\n]*)*", text, re.MULTILINE)
    else:
        commands = re.findall(r"^ {4}.*bench.*$|^\$ .*bench.*$", text, re.MULTILINE)
        plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        commands += [found for found in re.findall(r"`([^`]+)`", plain) if "bench/" in found or "bench." in found]
    for command in commands:
        _check(command)


def test_files_exist() -> None:
    """Every test and every result that a page names is there."""
    for path in PAGES:
        for name in re.findall(r"\b(?:tests|bench/results)/[\w/*-]+\.\w+", path.read_text(encoding="utf-8")):
            assert list(ROOT.glob(name)), f"{path.name}: {name}"


def _check(command: str) -> None:
    """The command's file exists, and its options are among those that the file adds to its parser."""
    words = shlex.split(re.sub(r"#.*|[\[\]\\…|]", " ", command.replace("'", "")))
    for at, word in enumerate(words):
        found = re.fullmatch(r"bench[/.](\w+)(?:\.(?:py|sh))?", word)
        if found is None:
            continue
        script = ROOT / "bench" / f"{found[1]}{'.sh' if word.endswith('.sh') else '.py'}"
        assert script.is_file() or script.with_suffix("").is_dir(), command
        if script.suffix == ".py" and script.is_file():
            unknown = {name for name in words[at + 1 :] if re.match(r"--?[a-z]", name)} - _options(script)
            assert not unknown, f"{command}: {', '.join(sorted(unknown))}"


@cache
def _options(script: Path) -> frozenset[str]:
    """The options of a benchmark, with those that report.parser adds where it is used."""
    text = script.read_text(encoding="utf-8")
    found = {
        word.value
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        for word in call.args
        if isinstance(word, ast.Constant) and isinstance(word.value, str) and word.value.startswith("-")
    }
    shared = _options(ROOT / "bench" / "report.py") if "report.parser(" in text else frozenset()
    return frozenset(found | shared | {"--help"})
