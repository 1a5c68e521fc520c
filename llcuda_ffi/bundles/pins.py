"""The bundles of pins.toml as objects."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

from ..errors import BundleNotFound
from ..fetch.index import WheelPin
from ..fetch.integrity import Expected
from ..fetch.npm import tarball_name
from ..hardware.cpu import cpu_features
from ..hardware.platform import glibc_version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Archive:
    """One archive of a bundle: an npm package, a wheel (its file name), or a URL.

    `libraries` maps each file used, under its SONAME, to its sha256; empty takes every library there is.
    """

    size: int
    sha256: str
    npm: str | None = None
    version: str | None = None
    wheel: str | None = None
    url: str | None = None
    integrity: str | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The archive's name in a mirror and in the cache."""
        if self.npm is not None:
            return tarball_name(self.npm, self.version or "")
        if self.wheel is not None:
            return self.wheel
        return (self.url or "").rpartition("/")[2]

    @property
    def expected(self) -> Expected:
        return Expected(size=self.size, sha256=self.sha256, integrity=self.integrity)

    @property
    def wheel_pin(self) -> WheelPin:
        """The wheel by what its file name says: distribution, version, Python tag, ABI tag, platform tags."""
        name, version, python, _, platforms = (self.wheel or "").removesuffix(".whl").split("-")
        found = re.fullmatch(r"cp(\d)(\d+)", python)
        return WheelPin(
            name.replace("_", "-"),
            version,
            self.size,
            self.sha256,
            platforms.partition(".")[0],
            f"{found[1]}.{found[2]}" if found else "3.12",
        )


@dataclass(frozen=True)
class Pin:
    """One bundle that this package knows.

    `sass` and `ptx` are CUDA architectures as numbers (75 is compute capability 7.5), `ptx_isa` the version
    of the PTX language, `cuda` the toolkit's major version. `cpu` are instruction sets without which the build dies,
    by the kernel's names.
    """

    name: str
    llama_cpp: str
    profile: str
    platform: str
    backend: str
    archives: tuple[Archive, ...]
    commit: str | None = None
    min_glibc: str | None = None
    cuda: str | None = None
    ptx_isa: str | None = None
    sass: tuple[int, ...] = ()
    ptx: tuple[int, ...] = ()
    cpu: tuple[str, ...] = ()

    @property
    def libraries(self) -> dict[str, str]:
        """File name → sha256 of every library that is pinned by itself."""
        merged: dict[str, str] = {}
        for archive in self.archives:
            merged.update(archive.libraries)
        return merged

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(archive.size for archive in self.archives)

    def why_unsupported(self) -> str | None:
        """Why this bundle cannot run on this machine (its platform, C library, processor); None if it can."""
        if here() != self.platform:
            return f"it is built for {self.platform}, this machine is {here()}"
        lacking = [feature for feature in self.cpu if feature not in cpu_features()] if self.cpu else []
        if lacking:
            return f"it needs a processor with {', '.join(lacking)}"
        if self.min_glibc is None:
            return None
        found = glibc_version()
        if found is None:
            return f"it needs glibc {self.min_glibc} or newer, this system has another C library"
        if found < _numbers(self.min_glibc):
            return f"it needs glibc {self.min_glibc} or newer, this system has {'.'.join(map(str, found))}"
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _pin(table: Mapping[str, Any]) -> Pin:
    values = dict(table)
    archives = tuple(Archive(**archive) for archive in values.pop("archive"))
    for key in ("sass", "ptx", "cpu"):
        values[key] = tuple(values.get(key, ()))
    return Pin(archives=archives, **values)


@dataclass(frozen=True)
class SourcePin:
    """The source that `bundle build` takes: an sdist, the folder in it, and the build backend that it names."""

    package: str
    version: str
    size: int
    sha256: str
    folder: str
    backend: str

    @property
    def file_name(self) -> str:
        """The archive's name in a mirror."""
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"

    @property
    def expected(self) -> Expected:
        return Expected(size=self.size, sha256=self.sha256)


def source() -> SourcePin:
    """The pinned source of llama.cpp."""
    return SourcePin(**_data()["source"])


def tool(name: str) -> WheelPin:
    """The wheel of a build tool for this platform.

    Raises:
        BundleNotFound: None is known for this platform.
    """
    for table in _data()["tool"]:
        if table["name"] == name and table["platform"] == here():
            return Archive(table["size"], table["sha256"], wheel=table["wheel"]).wheel_pin
    raise BundleNotFound(f"no wheel of {name} is known for {here()}: install {name} on this system")


def here() -> str:
    """This machine as pins name it: linux-x86_64, linux-aarch64, darwin-arm64, win32-x86_64."""
    return f"{sys.platform}-{platform.machine().lower().replace('amd64', 'x86_64')}"


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("pins.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _table() -> tuple[str, dict[str, Pin]]:
    data = _data()
    pins: dict[str, Pin] = {}
    for pin in map(_pin, data["bundle"]):
        # a name means the build for this machine, where there is one
        if pin.name not in pins or pin.platform == here():
            pins[pin.name] = pin
    return data["default"], pins


def require_linux() -> None:
    """The check of a front door, before anything is fetched.

    Raises:
        BundleNotFound: This is another system.
    """
    if sys.platform != "linux":
        raise BundleNotFound(
            f"llcuda_ffi runs on Linux (x86-64, aarch64) only, this machine is {here()}: use WSL on Windows, a "
            "container of Linux on macOS"
        )


def default_name() -> str:
    """The name of the bundle used when none is asked for."""
    return _table()[0]


def all_pins() -> tuple[Pin, ...]:
    """Every pin, in the order of pins.toml."""
    return tuple(_table()[1].values())


def get(name: str) -> Pin:
    """A pin by its name.

    Raises:
        BundleNotFound: There is none of that name.
    """
    pins = _table()[1]
    if name not in pins:
        raise BundleNotFound(f"there is no bundle {name!r}; the bundles are {', '.join(pins)}")
    return pins[name]
