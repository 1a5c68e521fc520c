"""Wheels from the package index that the user has configured, fetched by whatever reads that configuration.

No index is named here. Asked in this order: the pip of this environment (a virtual environment of uv or poetry has
none), the pip of the Python that it was made from, the pip that `ensurepip` carries, and uv.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..child_process import python_command
from ..errors import ChecksumError, DownloadError
from .cache import disk_error, offline
from .http import NotThere
from .progress import Progress

POLL_SECONDS = 0.2
_QUIET = ("--quiet", "--progress-bar", "off", "--disable-pip-version-check", "--no-input")
_NO_PIP = re.compile(r"No module named '?pip'?\b")
# pip warns of each attempt, and says in the end that the index has no such wheel
_BROKEN = re.compile(r"connection broken by '(\w+)\(.*?(\[Errno -?\d+\] [^')\"]+|timed out)")
_UV_PLATFORM = re.compile(r"(manylinux\w*?)_(x86_64|aarch64)")
_FULL = "No space left on device"


class WheelPin(NamedTuple):
    """One wheel of an index.

    Attributes:
        name: the distribution's name.
        version: its version.
        size: bytes of the wheel, for the progress; None where it is not known.
        sha256: of the wheel; None where what it carries is pinned instead.
        platform: the platform tag (manylinux_2_28_x86_64) of a wheel that is not for the running Python.
        python: the version of Python that such a wheel is for.
    """

    name: str
    version: str
    size: int | None = None
    sha256: str | None = None
    platform: str | None = None
    python: str = "3.12"

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


def fetch_wheel(pin: WheelPin, place: Path, progress: bool | None = None) -> Path:
    """Fetch a wheel into the empty folder `place`; returns its path there.

    Raises:
        NotThere: The index has no such wheel for this machine.
        ChecksumError: It has another hash than the pinned one.
        DownloadError: There is neither pip nor uv, or the index cannot be reached.
    """
    if offline():
        raise DownloadError(f"{pin.requirement} is not in the cache and LLCUDA_FFI_OFFLINE is set: unset it")
    failure: DownloadError | ChecksumError | None = None
    with Progress(pin.requirement, pin.size, progress) as shows:
        for command in pip_commands():
            status, said = _run([*command, *_pip_arguments(pin, place)], place, shows, pin)
            wheels = list(place.glob("*.whl"))
            if status == 0 and len(wheels) == 1:
                shows.at(wheels[0].stat().st_size)
                return wheels[0]
            if not _NO_PIP.search(said):
                failure = _failure("pip", pin, status, said, "`pip config list`", place)
                break
        uv = _uv()
        if uv is not None and not isinstance(failure, ChecksumError):
            files = place / "files"
            status, said = _run([uv, *_uv_arguments(pin, place, files)], place, shows, pin)
            if status == 0:
                shows.at(pin.size or shows.done)
                return _zipped(files, place / f"{pin.name}-{pin.version}.whl")
            failure = failure or _failure("uv", pin, status, said, "UV_INDEX and uv.toml", place)
        raise failure or DownloadError(
            f"{pin.requirement} cannot be fetched: {sys.executable} has no pip, nor has the Python that it was made "
            f"from, ensurepip carries none, and uv is not on PATH. `{sys.executable} -m ensurepip` or your "
            "system's package for pip mends it"
        )


# What pip asks of an sdist's build backend before it keeps the file. This stands in the place of the backend, so that
# none of its code, nor of the sdist's, is run or fetched.
_BACKEND = """
import os
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.makedirs(os.path.join(folder, "{stem}.dist-info"))
    with open(os.path.join(folder, "{stem}.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return "{stem}.dist-info"
def build_wheel(*arguments):
    raise NotImplementedError
"""


def fetch_sdist(pin: WheelPin, backend: str, place: Path, progress: bool | None = None) -> Path:
    """Fetch a source distribution into the empty folder `place`, running nothing of it; returns its path there.

    Args:
        pin: Its name, version, size and sha256.
        backend: The build backend that its pyproject.toml names (scikit_build_core.build).
        place: Where it goes.
        progress: False for silence.

    Raises:
        NotThere, ChecksumError, DownloadError: As `fetch_wheel`.
    """
    if offline():
        raise DownloadError(f"{pin.requirement} is not in the cache and LLCUDA_FFI_OFFLINE is set: unset it")
    stub = place / "backend" / Path(*backend.split(".")[:-1])
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    stem = f"{pin.name.replace('-', '_')}-{pin.version}"
    text = _BACKEND.format(stem=stem, name=pin.name, version=pin.version)
    (stub / f"{backend.rpartition('.')[2]}.py").write_text(text, encoding="utf-8")
    options = [
        "download",
        "--no-deps",
        "--no-binary",
        pin.name,
        "--no-build-isolation",
        "--quiet",
        "--progress-bar",
        "off",
    ]
    options += ["--disable-pip-version-check", "--no-input", "--dest", os.fspath(place)]
    with Progress(pin.requirement, pin.size, progress) as shows:
        for command in pip_commands():
            whole = [*command, *options, *_requirements(pin, place)]
            status, said = _run(whole, place, shows, pin, {"PYTHONPATH": os.fspath(place / "backend")})
            archives = list(place.glob("*.tar.gz"))
            if status == 0 and len(archives) == 1:
                shows.at(archives[0].stat().st_size)
                return archives[0]
            if not _NO_PIP.search(said):
                raise _failure("pip", pin, status, said, "`pip config list`", place)
        raise DownloadError(
            f"the source of {pin.requirement} cannot be fetched: that takes a pip, and there is none (uv cannot). "
            f"`{sys.executable} -m ensurepip` installs one; or give the folder of a llama.cpp source tree"
        )


def pip_commands() -> Iterator[list[str]]:
    """The ways to run a pip for this Python, best first; whether there is one is seen by running it."""
    yield python_command("pip")
    major, minor = sys.version_info[:2]
    for name in (f"bin/python{major}.{minor}", "bin/python3", "python.exe"):
        base = Path(sys.base_prefix, name)
        if base.exists():
            yield [os.fspath(base), "-I", "-m", "pip"]
            break
    carried = _carried_pip()
    if carried is not None:
        yield [sys.executable, "-I", os.fspath(carried / "pip")]


def _carried_pip() -> Path | None:
    """The wheel of pip that ensurepip would install."""
    folders = []
    try:
        import ensurepip

        folders.append(Path(ensurepip.__file__).parent / "_bundled")
    except ImportError:
        pass  # distributions pack it separately
    if elsewhere := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        folders.append(Path(elsewhere))
    wheels = [wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"))]
    return wheels[-1] if wheels else None


def _uv() -> str | None:
    """uv's program; `uv run` says where it is."""
    return os.environ.get("UV") or shutil.which("uv")


def _requirements(pin: WheelPin, place: Path) -> list[str]:
    """The arguments that name the wheel; a pinned hash has to stand in a file."""
    if pin.sha256 is None:
        return [pin.requirement]
    file = place / "requirements"
    file.write_text(f"{pin.requirement} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    return ["--require-hashes", "--requirement", os.fspath(file)]


def _pip_arguments(pin: WheelPin, place: Path) -> list[str]:
    options = ["download", "--no-deps", "--only-binary", ":all:", "--dest", os.fspath(place), *_QUIET]
    if pin.platform is not None:
        options += ["--platform", pin.platform, "--python-version", pin.python, "--implementation", "cp"]
        options += ["--abi", "abi3", "--abi", "none", "--abi", f"cp{pin.python.replace('.', '')}"]
    return options + _requirements(pin, place)


def _uv_arguments(pin: WheelPin, place: Path, files: Path) -> list[str]:
    """uv unpacks what it fetches: it has no command that keeps the wheel."""
    options = ["pip", "install", "--no-deps", "--only-binary", ":all:", "--quiet", "--no-progress", "--no-cache"]
    options += ["--python", sys.executable, "--target", os.fspath(files)]
    if pin.platform is not None:
        options += ["--python-version", pin.python]
        if found := _UV_PLATFORM.fullmatch(pin.platform):
            options += ["--python-platform", f"{found[2]}-{found[1]}"]
    return options + _requirements(pin, place)


def _zipped(files: Path, target: Path) -> Path:
    """What uv unpacked as a wheel again (not compressed), so that all that follows reads one form."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(files.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.write(path, path.relative_to(files).as_posix())
    shutil.rmtree(files)
    return target


def _failure(
    tool: str, pin: WheelPin, status: int, said: str, settings: str, place: Path
) -> DownloadError | ChecksumError:
    """The one error for what pip or uv complained of."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if line.lower().startswith(("error", "cause")) and not line.endswith("Exception:")]
    cause = told[-1] if told else ""
    cause = cause or "".join(lines[-1:]) or f"exit status {status}"
    if re.search(r"DO NOT MATCH THE HASHES|hash mismatch", said, re.IGNORECASE):
        return ChecksumError(
            f"the wheel of {pin.requirement} on the index that {tool} asked has not the pinned sha256 {pin.sha256}: "
            f"nothing of it was used; ask another index (see {settings})"
        )
    if broken := _BROKEN.search(said):
        return DownloadError(
            f"{tool} could not reach an index for {pin.requirement} ({broken[1]}: {broken[2]}): check the network, the "
            f"proxy (HTTPS_PROXY) and the index settings ({settings})"
        )
    if "No matching distribution" in said or "not found in the package registry" in said:
        return NotThere(f"{tool} found no {pin.requirement} for this machine: {cause}")
    if _FULL in said:
        return disk_error(OSError(errno.ENOSPC, _FULL), place)
    return DownloadError(
        f"{tool} could not fetch {pin.requirement}: {cause}. Check the network and the index settings ({settings})"
    )


def _run(
    command: list[str], place: Path, shows: Progress, pin: WheelPin, more: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run pip or uv and show how its files grow; its status and what it said."""
    # On the cache's disk, where there has to be room anyway, and where the growth can be seen.
    temporary = place / "temporary"
    temporary.mkdir()
    said = temporary / "said"
    environment = {**os.environ, "TMPDIR": str(temporary), "PIP_REQUIRE_VIRTUALENV": "0", **(more or {})}
    is_uv = command[0] == _uv()
    try:
        with said.open("wb") as errors:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=place if is_uv else None,  # uv would read the uv.toml or pyproject.toml of the current folder
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
    except OSError as error:
        raise DownloadError(f"{command[0]} could not be run to fetch {pin.requirement}: {error}") from error
    try:
        while True:
            try:
                status = process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                shows.at(min(max(_written(place), shows.done), pin.size or sys.maxsize))
    except BaseException:
        process.kill()
        process.wait()
        raise
    text = said.read_text(encoding="utf-8", errors="replace")
    shutil.rmtree(temporary, ignore_errors=True)
    return status, text


def _written(place: Path) -> int:
    """Bytes of the files below a folder in which files come and go."""
    total = 0
    for where, _, names in os.walk(place):
        for name in names:
            try:
                total += os.stat(os.path.join(where, name)).st_size
            except OSError:
                continue  # gone meanwhile
    return total
