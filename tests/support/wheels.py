"""Small real wheels that pip and uv accept."""

from __future__ import annotations

import zipfile
from pathlib import Path


def write_wheel(folder: Path, name: str, member: str, content: bytes, *, tag: str = "py3-none-any") -> Path:
    """Write version 1.0 of a distribution with one member."""
    stem = f"{name.replace('-', '_')}-1.0"
    path = folder / f"{stem}-{tag}.whl"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        for file, text in about.items():
            archive.writestr(f"{stem}.dist-info/{file}", text)
        names = [member, *(f"{stem}.dist-info/{file}" for file in (*about, "RECORD"))]
        archive.writestr(f"{stem}.dist-info/RECORD", "".join(f"{name},,\n" for name in names))
    return path
