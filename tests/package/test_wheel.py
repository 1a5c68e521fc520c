"""The built wheel: small, whole, and working outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a compiler and without the network (its build backend is a test dependency)."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_is_small_and_whole(wheel: Path) -> None:
    """Under 1 MB, for any platform, with the data files, without tests and binaries."""
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 1_000_000
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "llcuda_ffi/py.typed",
        "llcuda_ffi/bundles/pins.toml",
        "llcuda_ffi/hub/models.toml",
        "llcuda_ffi/native/_abi_v0_5_0.py",
    ):
        assert wanted in names
    assert not [n for n in names if n.endswith((".so", ".gguf")) or n.startswith(("tests/", "bench/"))]


def test_runs_outside_the_checkout(wheel: Path, tmp_path: Path, smollm2: Path) -> None:
    """Installed into an environment of its own (dependencies from this one), the command generates."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, system_site_packages=False)
    site = next(home.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    here = next(p for p in sys.path if (Path(p) / "cffi").is_dir())
    (site / "dependencies.pth").write_text(here + "\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    code = "import llcuda_ffi, sys; print(llcuda_ffi.__file__); from llcuda_ffi.cli import main; main()"
    done = subprocess.run(
        [home / "bin" / "python", "-c", code, "generate", "-m", str(smollm2), "-n", "4", "-t", "0", "Once upon a time"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(str(site))
    assert len(lines[1]) > 5
