"""Wheels fetched by each tool that may be there: environments without pip, without anything but uv, with nothing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import llcuda_ffi
from llcuda_ffi.errors import DownloadError
from llcuda_ffi.fetch import index
from llcuda_ffi.fetch.http import NotThere
from llcuda_ffi.fetch.index import WheelPin, fetch_wheel

from ..support.wheels import write_wheel

CONTENT = b"0123456789" * 1000

# run by the Python of another environment, which borrows the packages of this one, but for pip
FETCH = """
import os, sys
from pathlib import Path
sys.path += os.environ.pop("BORROWED").split(os.pathsep)
hide = sys.argv[2].split()
if "base" in hide:
    sys.base_prefix = "/nonexistent"
if "ensurepip" in hide:
    sys.modules["ensurepip"] = None
from llcuda_ffi.fetch import index
if "ensurepip" in hide:
    index.sysconfig.get_config_vars()["WHEEL_PKG_DIR"] = None
wheel = index.fetch_wheel(index.WheelPin("thing", "1.0", None, os.environ.get("SHA256")), Path(sys.argv[1]), False)
import zipfile
print(zipfile.ZipFile(wheel).read("thing/data").decode())
"""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip and uv can reach."""
    place = tmp_path / "wheels"
    place.mkdir()
    for name, value in (
        *(("PIP_NO_INDEX", "1"), ("PIP_CONFIG_FILE", os.devnull), ("PIP_FIND_LINKS", str(place))),
        *(("UV_NO_INDEX", "1"), ("UV_NO_CONFIG", "1"), ("UV_FIND_LINKS", str(place))),
        ("PATH", str(tmp_path)),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LLCUDA_FFI_OFFLINE", raising=False)
    write_wheel(place, "thing", "thing/data", CONTENT)
    return place


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment without pip, as uv and poetry make them."""
    place = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (place / "packages").mkdir()
    for folder in (Path(entry) for entry in sys.path if entry.endswith("-packages")):
        for package in folder.iterdir():
            link = place / "packages" / package.name
            if not package.name.startswith("pip") and not link.exists():
                link.symlink_to(package)
    return place / "bin" / "python"


def run(bare: Path, place: Path, hide: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    place.mkdir()
    borrowed = [str(bare.parent.parent / "packages")]
    if not (root := Path(llcuda_ffi.__file__).parent.parent).name.endswith("-packages"):
        borrowed.insert(0, str(root))  # not installed: the tests run in the working tree
    return subprocess.run(
        [str(bare), "-c", FETCH, str(place), hide],
        env={**os.environ, "BORROWED": os.pathsep.join(borrowed), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def uv_folder() -> str:
    """Where the uv of the extra `test` is."""
    return str(Path(pytest.importorskip("uv").find_uv_bin()).parent)


@pytest.mark.usefixtures("wheels")
@pytest.mark.parametrize("hide", ["", "base"], ids=["base Python's pip", "ensurepip's wheel"])
def test_environment_without_pip(bare: Path, tmp_path: Path, hide: str) -> None:
    """The pip of the Python that the environment was made from, else the one that ensurepip carries."""
    done = run(bare, tmp_path / "place", hide)
    assert done.stdout.strip().encode() == CONTENT, done.stderr


@pytest.mark.usefixtures("wheels")
def test_uv_alone(bare: Path, tmp_path: Path) -> None:
    """Where there is no pip at all, uv."""
    done = run(bare, tmp_path / "place", "base ensurepip", PATH=uv_folder())
    assert done.stdout.strip().encode() == CONTENT, done.stderr


@pytest.mark.usefixtures("wheels")
def test_uv_has_an_index_that_pip_lacks(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pip finds nothing, uv with its own settings is asked as well."""
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(DownloadError, match=r"pip found no thing==1\.0"):
        fetch_wheel(WheelPin("thing", "1.0"), tmp_path, progress=False)
    monkeypatch.setenv("PATH", uv_folder())
    (tmp_path / "place").mkdir()
    assert fetch_wheel(WheelPin("thing", "1.0"), tmp_path / "place", progress=False).exists()


@pytest.mark.usefixtures("wheels")
def test_nothing_to_fetch_with(bare: Path, tmp_path: Path) -> None:
    """One sentence that says what to install."""
    done = run(bare, tmp_path / "place", "base ensurepip")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("llcuda_ffi.errors.DownloadError: thing==1.0 cannot be fetched")
    assert "-m ensurepip" in last


@pytest.mark.usefixtures("wheels")
@pytest.mark.parametrize("variable", ["PIP_INDEX_URL", "HTTP_PROXY"])
def test_index_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A dead index, or a dead proxy before it, is no wheel that is missing."""
    dead = "http://127.0.0.1:9"
    for name in ("PIP_NO_INDEX", "NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    monkeypatch.setenv(variable, f"{dead}/simple" if variable == "PIP_INDEX_URL" else dead)
    monkeypatch.setenv("PIP_TRUSTED_HOST", "index.invalid")
    monkeypatch.setenv("PIP_RETRIES", "1")
    (tmp_path / "place").mkdir()
    with pytest.raises(
        DownloadError, match=r"pip could not reach an index for none==1.0 \(.*refused\): .*proxy"
    ) as told:
        fetch_wheel(WheelPin("none", "1.0"), tmp_path / "place", progress=False)
    assert not isinstance(told.value, NotThere)


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_hash_of_the_wheel(bare: Path, tmp_path: Path, wheels: Path, tool: str) -> None:
    """A wheel with the pinned hash is taken, any other refused, by either tool."""
    right = hashlib.sha256(next(wheels.iterdir()).read_bytes()).hexdigest()
    more = {"PATH": uv_folder()} if tool == "uv" else {}
    hide = "base ensurepip" if tool == "uv" else ""
    done = run(bare, tmp_path / "right", hide, SHA256=right, **more)
    assert done.stdout.strip().encode() == CONTENT, done.stderr
    done = run(bare, tmp_path / "wrong", hide, SHA256="0" * 64, **more)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("llcuda_ffi.errors.ChecksumError: the wheel of thing==1.0"), done.stderr
    assert "0" * 64 in last


def test_wheel_for_another_python(tmp_path: Path, wheels: Path) -> None:
    """A bundle's wheel is taken by its platform tag, whatever Python runs here."""
    write_wheel(wheels, "other", "lib", b"x", tag="cp312-abi3-manylinux_2_28_x86_64")
    pin = WheelPin("other", "1.0", platform="manylinux_2_28_x86_64")
    (tmp_path / "place").mkdir()
    assert fetch_wheel(pin, tmp_path / "place", progress=False).name.endswith("manylinux_2_28_x86_64.whl")


def test_current_folder_is_not_run(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip.py or logging.py in the current folder is not what runs."""
    (tmp_path / "here").mkdir()
    (tmp_path / "place").mkdir()
    for name in ("pip.py", "logging.py"):
        (tmp_path / "here" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path / "here")
    assert fetch_wheel(WheelPin("thing", "1.0"), tmp_path / "place", progress=False).exists()
    assert not (tmp_path / "ran").exists()


def test_pips_of_this_python() -> None:
    """The environment's own comes first, the wheel of ensurepip last."""
    commands = list(index.pip_commands())
    assert commands[0][0] == sys.executable
    if sysconfig.get_config_var("WHEEL_PKG_DIR") is None:
        assert commands[-1][-1].endswith("-py3-none-any.whl/pip")


def test_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip ends with a traceback then; the message says to free space, not to check the network."""
    pip = "raise OSError(28, 'No space left on device')"
    monkeypatch.setattr(index, "pip_commands", lambda: iter([[sys.executable, "-c", pip]]))
    monkeypatch.setenv("PATH", str(tmp_path))  # no uv
    monkeypatch.delenv("LLCUDA_FFI_OFFLINE", raising=False)
    with pytest.raises(DownloadError, match="free some space there"):
        fetch_wheel(WheelPin("thing", "1.0"), tmp_path, False)
