"""The load guard: proof that a library has the ABI of its profile, before any struct goes by value.

ABI mode has no compiler to check declarations, and a wrong layout is memory corruption. The steps, in order:
1 the hash of every library (InstalledBundle.verify) · 2 one libggml-base in the process, the bundle's own ·
3 versions · 4 symbols · 5 canary: what the library itself writes for its default parameters · 6 the fields in it.

Steps 3 to 6 call only functions without struct arguments, through ctypes: x86-64 returns a struct of more than 16
bytes through a hidden first pointer, so `void f(void *)` is what the machine code takes.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from pathlib import Path
from typing import Any

from ..errors import AbiMismatch
from .profile import Profile

_SIZE = 1024
_STRUCTS = {
    "llama_model_default_params": "struct llama_model_params",
    "llama_context_default_params": "struct llama_context_params",
    "llama_model_quantize_default_params": "struct llama_model_quantize_params",
}


def mapped(stem: str) -> list[Path]:
    """The files mapped into this process whose name starts with `stem` (/proc/self/maps)."""
    found: dict[str, None] = {}
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []  # not Linux: the check rests on the absolute paths
    for line in lines:
        columns = line.split(maxsplit=5)
        if len(columns) == 6 and columns[5].rsplit("/", 1)[-1].startswith(stem):
            found[columns[5]] = None
    return [Path(path) for path in found]


def check_single(folder: Path, *, loaded: bool) -> None:
    """Step 2: no libggml-base but the bundle's; once `loaded`, exactly that one.

    Raises:
        AbiMismatch: another one is in the process.
    """
    here = folder.resolve()
    found = mapped("libggml-base.")
    foreign = [path for path in found if path.resolve().parent != here]
    if foreign:
        raise AbiMismatch(
            f"{foreign[0]} is already loaded in this process, by another package: its functions would be used in place "
            f"of those in {here}. Use llcuda_ffi in a process of its own, or set LLCUDA_FFI_BUNDLE to that folder"
        )
    if loaded and len({path.resolve() for path in found}) > 1:
        names = ", ".join(path.name for path in found)
        raise AbiMismatch(f"libggml-base is loaded more than once from {here} ({names}): the folder must hold it once")


def check_versions(library: ctypes.CDLL, profile: Profile) -> None:
    """Step 3.

    Raises:
        AbiMismatch: the library calls itself another version than the profile.
    """
    for function, expected in (("llama_version", profile.llama_version), ("ggml_version", profile.ggml_version)):
        found = version(library, function)
        if expected is not None and found != expected:
            raise AbiMismatch(f"{function}() is {found!r}, profile {profile.name} has {expected!r}")


def version(library: ctypes.CDLL, function: str) -> str | None:
    """What a version function says, or None where there is none."""
    try:
        call = getattr(library, function)
    except AttributeError:
        return None
    call.restype = ctypes.c_char_p
    text = call()
    return None if text is None else str(text.decode("utf-8", "replace"))


def check_symbols(library: ctypes.CDLL, profile: Profile) -> None:
    """Step 4.

    Raises:
        AbiMismatch: a symbol of the profile is missing, or one is there that it must not have.
    """
    missing = [name for name in profile.required if not hasattr(library, name)]
    extra = [name for name in profile.forbidden if hasattr(library, name)]
    if missing or extra:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"has {', '.join(extra)}" if extra else ""
        raise AbiMismatch(f"the library {' and '.join(filter(None, (lacks, has)))}: it is not of profile {profile.name}")


def capture(library: ctypes.CDLL, function: str) -> tuple[bytes, int, tuple[int, ...]]:
    """What `function` writes: the bytes over 0xAA, the extent, the holes."""
    runs = []
    call = getattr(library, function)
    call.restype, call.argtypes = None, [ctypes.c_void_p]
    for fill in (0xAA, 0x55):
        buffer = ctypes.create_string_buffer(bytes([fill]) * _SIZE, _SIZE)
        call(ctypes.addressof(buffer))
        runs.append(buffer.raw)
    first, second = runs
    untouched = [a == 0xAA and b == 0x55 for a, b in zip(first, second, strict=True)]
    extent = max((i + 1 for i, same in enumerate(untouched) if not same), default=0)
    return first, extent, tuple(i for i in range(extent) if untouched[i])


def check_canary(library: ctypes.CDLL, profile: Profile) -> None:
    """Steps 5 and 6.

    Raises:
        AbiMismatch: the library writes another layout than the profile declares; the message names what differs.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return  # aarch64 returns structs through x8: there step 1 stands alone
    problems = differences(library, profile)
    if problems:
        raise AbiMismatch(f"the library is not of profile {profile.name}: {'; '.join(problems)}")


def differences(library: ctypes.CDLL, profile: Profile) -> list[str]:
    """What the canary finds different from the profile; empty when nothing is."""
    problems = []
    ffi = profile.ffi
    for function, canary in profile.canaries.items():
        raw, extent, holes = capture(library, function)
        if (extent, holes) != (canary.extent, canary.holes):
            problems.append(
                f"{function} writes {extent} bytes with holes {list(holes)}, expected {canary.extent} with "
                f"{list(canary.holes)}"
            )
            continue
        struct: Any = ffi.cast(f"{_STRUCTS[function]} *", ffi.from_buffer(raw))
        for name, expected in profile.fields.get(function, {}).items():
            found = int(getattr(struct, name))
            if found != expected:
                problems.append(f"{function}: {name} is {found}, expected {expected}")
        digest = hashlib.sha256(raw[:extent]).hexdigest()[:16]
        if canary.digest is not None and digest != canary.digest:
            problems.append(f"{function} writes other values ({digest}, expected {canary.digest})")
    return problems
