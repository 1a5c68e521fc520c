"""The layers of docs/architecture.md: imports go down the list only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "llcuda_ffi"

# lowest first; modules on one line may import each other
LAYERS = [
    ["errors", "enums"],
    ["params", "sampling_params"],
    ["fetch", "gguf", "hardware"],
    ["bundle"],
    ["converted", "hub", "models"],
    ["native"],
    ["core"],
    ["engine"],
    ["chat", "structured"],
    ["async_llama", "embedder", "embedding", "llama", "llama_state", "runtime"],
    ["server"],
    [
        "cli",
        "integrations",
        "jupyter",
        "llcuda",
        "lora",
        "pipelines",
        "pytest_plugin",
        "quantization",
        "tensor",
    ],
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}
# not layers of their own: convert stands beside the front ends
RANK["convert"] = RANK["__main__"] = RANK["cli"]


def _top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[str]:
    """The top-level parts of this package that a module imports, also inside functions; not for typing only."""
    found = []
    here = ["llcuda_ffi", *path.relative_to(PACKAGE).with_suffix("").parts]
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.ImportFrom | ast.Import):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            package = here[: len(here) - node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "llcuda_ffi" else [base]
        found += [name.split(".")[1] for name in names if name.startswith("llcuda_ffi.")]
    return found


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py" or p.parent != PACKAGE],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_imports_go_down(path: Path) -> None:
    """No module imports one of a higher layer; every module has a layer."""
    top = _top(path)
    assert top in RANK, f"{top} has no layer: give it one here and in docs/architecture.md"
    for name in _imports(path):
        if name in RANK and name != top:
            assert RANK[name] <= RANK[top], f"{path.relative_to(PACKAGE)} imports {name}, which is above it"
