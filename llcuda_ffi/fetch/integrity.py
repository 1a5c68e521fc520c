"""Sizes and hashes: what a file has to be, computed while it streams."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import ChecksumError

BLOCK = 1 << 20
# Nothing that we fetch without a known size is larger.
LIMIT = 64 << 30


@dataclass(frozen=True)
class Expected:
    """What a download has to be; None where it is not known beforehand."""

    size: int | None = None
    sha256: str | None = None
    integrity: str | None = None  # npm's form: "sha512-" and base64

    @property
    def limit(self) -> int:
        """The number of bytes past which a transfer is broken off."""
        return LIMIT if self.size is None else self.size


class Digest:
    """The hashes of a stream against what was expected."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._sha512 = hashlib.sha512() if expected.integrity else None

    def update(self, block: bytes) -> None:
        self.size += len(block)
        self._sha256.update(block)
        if self._sha512 is not None:
            self._sha512.update(block)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def check(self, what: str) -> None:
        """Compare with what was expected.

        Raises:
            ChecksumError: The size or a hash differs.
        """
        want = self.expected
        if want.size is not None and self.size != want.size:
            raise ChecksumError(
                f"{what} has {self.size:,} bytes, expected {want.size:,}: it was cut short or replaced; "
                "nothing of it was used, try again or ask another source"
            )
        if want.sha256 is not None and self.sha256 != want.sha256:
            raise ChecksumError(
                f"{what} has sha256 {self.sha256}, expected {want.sha256}: it is not the file that was pinned; "
                "nothing of it was used, try again or ask another source"
            )
        if self._sha512 is not None and want.integrity is not None:
            found = "sha512-" + base64.b64encode(self._sha512.digest()).decode()
            if found != want.integrity:
                raise ChecksumError(f"{what} has integrity {found}, expected {want.integrity}: not the pinned file")


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
