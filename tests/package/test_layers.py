"""The layers of docs/architecture.md: imports go down the list only, and no files or folders import in a circle.

`python -m tests.package.test_layers` prints which folder imports which.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "llcuda_ffi"

# lowest first; what stands on one line does not import its neighbours
LAYERS = [
    ["errors", "enums", "child_process", "html_view"],
    ["keywords", "regular_file"],
    ["params", "fetch", "gguf", "hardware"],
    ["sampling_settings"],
    ["sampling_params", "bundles"],
    ["native"],
    ["core"],
    ["devices"],
    ["quantization"],
    ["conversion", "tensor"],
    ["hub"],
    ["engine"],
    ["structured", "embedding", "multimodal"],
    ["chat", "embedder", "isolated"],
    ["generate_methods"],
    ["llama_settings"],
    ["llama"],
    ["async_llama", "lora", "isolated_process"],
    ["server", "integrations", "pytest_plugin", "llcuda", "compat"],
    ["pipelines"],
    ["cli", "jupyter"],
    ["__main__"],
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}


def _name(path: Path) -> str:
    parts = ["llcuda_ffi", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if "_abi_" not in path.name}


def _imports(module: str) -> set[str]:
    """The files of this package that a file imports, also inside functions and for typing only."""
    path = FILES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {name if (name := f"{base}.{alias.name}") in FILES else base for alias in node.names}
    return {name for name in found if name in FILES and name not in (module, "llcuda_ffi")}


IMPORTS = {module: _imports(module) for module in FILES if module != "llcuda_ffi"}


def _part(module: str) -> str:
    return module.split(".")[1]


def _folders() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        graph.setdefault(_part(module), set()).update(_part(name) for name in names if _part(name) != _part(module))
    return graph


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_go_down(module: str) -> None:
    """No file imports one of its own or a higher layer; every file has a layer."""
    part = _part(module)
    assert part in RANK, f"{part} has no layer: give it one here and in docs/architecture.md"
    for name in IMPORTS[module]:
        if _part(name) != part:
            assert RANK[_part(name)] < RANK[part], f"{module} imports {name}, which is not below it"


def test_no_circles() -> None:
    """No file is imported, directly or not, by one that it imports."""
    left = {module: set(names) for module, names in IMPORTS.items()}
    while free := {m for m, names in left.items() if not names & left.keys()} or left.keys() - set().union(
        *left.values()
    ):
        for module in free:
            del left[module]
    assert not left, f"on a circle, or between two: {', '.join(left)}"


if __name__ == "__main__":
    for folder, below in sorted(_folders().items(), key=lambda item: RANK[item[0]]):
        print(f"{folder:16} → {', '.join(sorted(below, key=lambda name: RANK[name]))}")
