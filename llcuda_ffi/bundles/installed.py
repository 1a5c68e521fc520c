"""A bundle that is installed, and the receipt in its folder that says what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BundleError, ChecksumError
from ..fetch.integrity import file_sha256
from .elf import plain_name

RECEIPT = "receipt.json"


@dataclass(frozen=True)
class InstalledBundle:
    """A folder of libraries that were verified when they were put there.

    `libraries` maps file name → sha256. `verified` is False for an own build, whose hashes nobody pinned.
    """

    name: str
    path: Path
    profile: str
    backend: str
    libraries: Mapping[str, str]
    verified: bool
    sizes: Mapping[str, int] = field(default_factory=dict)
    source: str = ""

    @property
    def libllama_sha256(self) -> str:
        """The hash of libllama: what tells two builds of one ABI apart."""
        return next((hash_ for name, hash_ in self.libraries.items() if plain_name(name).startswith("libllama.")), "")

    def intact(self) -> bool:
        """Whether every library is there with its size: the quick check of each use."""
        try:
            return all((self.path / name).stat().st_size == size for name, size in self.sizes.items())
        except OSError:
            return False

    def verify(self) -> None:
        """Hash every library.

        Raises:
            ChecksumError: One is missing, or is not what was installed.
        """
        for name, want in self.libraries.items():
            try:
                found = file_sha256(self.path / name)
            except OSError as error:
                raise ChecksumError(
                    f"{name} of bundle {self.name} cannot be read ({error.strerror}): {self._again()}"
                ) from error
            if found != want:
                raise ChecksumError(
                    f"{name} of bundle {self.name} has sha256 {found}, expected {want}: it was changed after "
                    f"it was installed; {self._again()}"
                )

    def _again(self) -> str:
        """How to have the bundle as it was."""
        give = f"`llcuda-ffi bundle install {self.name}`" if self.verified else f"use {self.source} again"
        return f"`llcuda-ffi bundle prune {self.path.name}`, then {give}"

    def write_receipt(self, folder: Path) -> None:
        """Write the receipt into the folder that is about to be published."""
        text = json.dumps(
            {
                "name": self.name,
                "profile": self.profile,
                "backend": self.backend,
                "verified": self.verified,
                "source": self.source,
                "libraries": {
                    name: {"sha256": digest, "size": self.sizes[name]}
                    for name, digest in sorted(self.libraries.items())
                },
            },
            indent=1,
        )
        with (folder / RECEIPT).open("x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(folder: Path) -> InstalledBundle | None:
    """The bundle in a folder; None where there is no receipt.

    Raises:
        BundleError: The receipt is not one of ours.
    """
    path = folder / RECEIPT
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): mend its permissions") from error
    try:
        data: dict[str, Any] = json.loads(text)
        return InstalledBundle(
            name=data["name"],
            path=folder,
            profile=data["profile"],
            backend=data["backend"],
            libraries={name: entry["sha256"] for name, entry in data["libraries"].items()},
            sizes={name: int(entry["size"]) for name, entry in data["libraries"].items()},
            verified=bool(data["verified"]),
            source=str(data["source"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is no receipt of a bundle: remove {folder} and install again") from error
