"""The package's own names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llcuda_ffi


def test_all_is_exact_and_sorted() -> None:
    """`__all__` is sorted, every name in it loads, and nothing else is public."""
    assert llcuda_ffi.__all__ == sorted(llcuda_ffi.__all__, key=lambda n: (n.startswith("_"), n))
    for name in llcuda_ffi.__all__:
        assert getattr(llcuda_ffi, name) is not None
    assert set(llcuda_ffi._WHERE) == set(llcuda_ffi.__all__) - {"__version__"}


def test_version_is_the_distribution_s() -> None:
    """`__version__` is what pip installed."""
    from importlib.metadata import version

    assert version("llcuda-ffi") == llcuda_ffi.__version__


def test_import_does_nothing() -> None:
    """Importing opens no library and no socket, and imports neither numpy, cffi nor anything that downloads."""
    code = """
import sys
events = []
sys.addaudithook(lambda e, a: events.append((e, a)) if e.startswith(("socket.", "ctypes.", "subprocess.")) else None)
import pytest

import llcuda_ffi
heavy = [m for m in ("numpy", "cffi", "httpx2", "huggingface_hub", "ctypes", "asyncio") if m in sys.modules]
assert not heavy, heavy
assert not events, events
"""
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_modules_are_reached_as_attributes() -> None:
    """`import llcuda_ffi; llcuda_ffi.errors` works without another import."""
    code = "import llcuda_ffi; print(llcuda_ffi.errors.InvalidRequest.__name__, llcuda_ffi.hub.resolve.__name__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "InvalidRequest resolve\n"


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("llguidance", "from llcuda_ffi.structured.guided import guide_of; guide_of(None)"),
        ("pyarrow", "from llcuda_ffi.pipelines.rows import parquet; parquet()"),
        ("IPython", "from llcuda_ffi import jupyter; jupyter._display()"),
    ],
)
def test_missing_extras(package: str, use: str) -> None:
    """What needs a package that is not installed raises MissingExtra, which names it and is an ImportError."""
    code = f"""
import sys
sys.modules[{package!r}] = None
try:
    {use}
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("MissingExtra")
    assert "pip install" in done.stdout
