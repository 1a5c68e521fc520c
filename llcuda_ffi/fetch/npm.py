"""Packages of the npm registry that the user has configured, downloaded and verified by us; npm is not needed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ..errors import DownloadError
from . import npmrc
from .cache import offline
from .http import NotThere, client, download, shown
from .integrity import Expected

NPM_SECONDS = 60


def tarball_name(package: str, version: str) -> str:
    """The file name that `npm pack` gives a package: also its name in a mirror."""
    return f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"


def configured_registry(package: str, values: Mapping[str, str]) -> str | None:
    """The registry that the user has configured for a package, without a slash at its end; None where there is none."""
    found = npmrc.registry_of(values, package)
    program = shutil.which("npm")
    if found is not None or program is None:
        return found
    # npm also reads the system's configuration.
    scope = package.partition("/")[0]
    answer = _ask(program, f"{scope}:registry") if scope.startswith("@") else None
    return answer or _ask(program, "registry")


def _ask(program: str, key: str) -> str | None:
    """One setting from npm, which must not read a project's .npmrc; None when it has no answer."""
    try:
        with tempfile.TemporaryDirectory(prefix="llcuda-ffi-") as nowhere:
            done = subprocess.run(
                [program, "config", "get", key, "--global"],
                check=False,
                capture_output=True,
                text=True,
                timeout=NPM_SECONDS,
                stdin=subprocess.DEVNULL,
                cwd=nowhere,
            )
    except (OSError, subprocess.SubprocessError):
        return None
    value = done.stdout.strip()
    return value.rstrip("/") if done.returncode == 0 and value.startswith(("http://", "https://")) else None


def address(package: str, version: str, registry: str | None) -> str:
    """The URL of a package's tarball: in a registry, else where packages of that name are by default.

    Raises:
        DownloadError: No registry is configured and no default one is known.
    """
    name = package.rpartition("/")[2]
    if registry is not None:
        return f"{registry}/{package}/-/{name}-{version}.tgz"
    from packageurl.contrib import purl2url

    found = purl2url.get_download_url(f"pkg:npm/{quote(package, safe='/')}@{version}")
    if not found:
        raise DownloadError(
            f"there is no npm registry to fetch {package} from: set npm_config_registry to the URL of one (or write "
            "`registry=URL` in ~/.npmrc), or set LLCUDA_FFI_MIRROR to a URL or folder that holds the archive"
        )
    return str(found)


def fetch(
    package: str, version: str, target: Path, expected: Expected, *, progress: bool | None = None
) -> tuple[str, str]:
    """Download a package's tarball, verified.

    Returns:
        Its sha256 and the address that served it.

    Raises:
        DownloadError: The registry cannot be reached, or has no such package.
        ChecksumError: What arrived is not the pinned package.
    """
    if offline():
        raise DownloadError(
            f"{package} {version} is not in the cache and LLCUDA_FFI_OFFLINE is set: unset it, "
            "or set LLCUDA_FFI_MIRROR to a folder that holds " + tarball_name(package, version)
        )
    values = npmrc.settings()
    registry = configured_registry(package, values)
    url = address(package, version, registry)
    label = f"{package} {version}"
    try:
        return (
            download(
                url,
                target,
                expected,
                label=label,
                headers=npmrc.credentials(values, url),
                progress=progress,
            ),
            shown(url),
        )
    except NotThere:
        # Some private registries keep tarballs elsewhere: their description of the package says where.
        other = _described(registry, package, version, values) if registry else None
        if other is None or other == url:
            raise
    headers = npmrc.credentials(values, other)
    return download(other, target, expected, label=label, headers=headers, progress=progress), shown(other)


def _described(registry: str, package: str, version: str, values: dict[str, str]) -> str | None:
    import httpx2

    url = f"{registry}/{quote(package, safe='@')}"
    try:
        with client(npmrc.credentials(values, url)) as session:
            answer = session.get(url)
            answer.raise_for_status()
            found = answer.json()["versions"][version]["dist"]["tarball"]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and found.startswith(("http://", "https://")) else None
