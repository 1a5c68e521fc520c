"""Nothing is imported or loaded from the current folder, neither here nor in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import llcuda_ffi
from llcuda_ffi import bundles
from llcuda_ffi.child_process import import_path, python_command

from ..support.tiny_model import make_tiny_llama

_MODULES = ("logging", "json", "os", "numpy", "cffi", "runpy", "pathlib", "sitecustomize", "usercustomize")
_LIBRARIES = ("libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libgomp.so.1")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose modules leave a mark when they are imported, and whose libraries are none."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in _MODULES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    for name in _LIBRARIES:
        (folder / name).write_bytes(b"no library")
    return folder


def _run(code: str, folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (folder.parent / "ran").exists(), (folder.parent / "ran").read_text()
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="ELF libraries")
def test_children_and_libraries(hostile: Path, tmp_path: Path, bundle: bundles.InstalledBundle) -> None:
    """Loading, quantizing, measuring an own build and rendering a template work there, and run nothing of it."""
    model = tmp_path / "tiny.gguf"
    make_tiny_llama(model)
    code = """
        import subprocess, sys
        from llcuda_ffi import Llama
        from llcuda_ffi.bundles.own import measure
        from llcuda_ffi.child_process import python_command
        from llcuda_ffi.quantization import quantize
        from pathlib import Path
        model, target, place = sys.argv[1:]
        quantize(model, target, "Q8_0", pure=True)
        print(measure(Path(place), "it"))
        subprocess.run(python_command("llcuda_ffi.native.try_load"), check=True, stdout=subprocess.DEVNULL)
        with Llama(model, n_ctx=64) as llm:
            print(len(llm.chat([{"role": "user", "content": "Hi"}], max_tokens=4).prompt_tokens) > 0)
    """
    assert _run(code, hostile, model, tmp_path / "q8.gguf", bundle.path).split() == [bundle.profile, "True"]


def test_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is left out under every name it has; what else was on the path stays, in order."""
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "path", ["", ".", str(tmp_path), str(tmp_path / "link"), "relative", str(other), *sys.path]
    )
    assert import_path()[0] == str(other)


def test_arguments_arrive() -> None:
    """The module runs as __main__ and sees its own arguments."""
    done = subprocess.run(python_command("json.tool", "-h"), capture_output=True, text=True, timeout=60, check=True)
    assert "usage" in done.stdout


def test_the_child_has_this_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another one of its name comes first on the path, and where the folder it lies in is left out,
    which an installed package's is not: what it imports lies there too."""
    other = tmp_path / "llcuda_ffi"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('another package')")
    root = Path(llcuda_ffi.__file__).resolve().parents[1]
    monkeypatch.chdir(root)
    installed = root.name.endswith("-packages")
    rest = [p for p in sys.path if installed or Path(p).resolve() != root]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *rest])
    command = python_command("llcuda_ffi.lora.patterns")
    done = subprocess.run(
        command, input='[["q.*"], ["q_proj"]]', capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == '{"found": {"q_proj": "q.*"}}\n'
