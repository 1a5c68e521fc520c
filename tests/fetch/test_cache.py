"""Where the caches are for a user without a home folder."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from llcuda_ffi.errors import DownloadError
from llcuda_ffi.fetch.cache import cache_root

from ..support.child_process import run_child


@pytest.fixture(autouse=True)
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a user id without a passwd entry sees: "~" stays "~". Temporary files are below the folder given."""
    for name in ("LLCUDA_FFI_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_temporary_folder_of_its_own(no_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A private folder among the temporary files, told once; nothing below the current folder."""
    place = cache_root()
    assert place == no_home / f"llcuda-ffi-{os.getuid()}"
    assert place.stat().st_mode & 0o777 == 0o700
    assert "LLCUDA_FFI_CACHE" in capsys.readouterr().err
    assert cache_root() == place
    assert capsys.readouterr().err == ""
    assert [path.name for path in no_home.iterdir()] == [place.name]


def test_folder_that_others_can_write(no_home: Path) -> None:
    """A folder of that name that others could have filled is refused."""
    place = no_home / f"llcuda-ffi-{os.getuid()}"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(DownloadError, match=r"not this user's own folder.*LLCUDA_FFI_CACHE"):
        cache_root()


def test_switch(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLCUDA_FFI_CACHE is used whatever the home folder is."""
    monkeypatch.setenv("LLCUDA_FFI_CACHE", "here")
    assert cache_root() == no_home / "here"


FOREIGN_HOME = """
import os, sys, tempfile
import huggingface_hub.constants, platformdirs
from llcuda_ffi.fetch.cache import cache_root
from llcuda_ffi.hub import cached
cached("smollm2-135m")  # the environment's files may be where the other user cannot read them: imported before
place = sys.argv[1]
os.environ["HOME"] = place + "/home"
tempfile.tempdir = place
if os.getuid() == 0:
    os.setuid(65534)
print(cache_root())
print(cached("smollm2-135m"))
"""


def test_home_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME that another user closed (a container started as another user): as without one, and no PermissionError."""
    monkeypatch.undo()
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        home = Path(place, "home")
        home.mkdir()
        home.chmod(0)
        said = run_child(FOREIGN_HOME, place, LLCUDA_FFI_CACHE="", XDG_CACHE_HOME="", HF_HUB_CACHE=str(home / "hub"))
        home.chmod(0o700)
    user = os.getuid() or 65534
    assert said.splitlines()[-2:] == [f"{place}/llcuda-ffi-{user}", "None"]
