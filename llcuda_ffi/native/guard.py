"""The load guard: proof that a library has the ABI of its profile, before any struct goes by value.

ABI mode has no compiler to check declarations, and a wrong layout is memory corruption. The steps, in order:

1. the hash of every library (InstalledBundle.verify)
2. one libggml-base in the process, the bundle's own
3. versions
4. symbols
5. the canary: what the library itself writes for its default parameters, and for results of nothing
6. the fields in it

Steps 3 to 6 call only functions without struct arguments, through ctypes: x86-64 returns a struct of more
than 16 bytes through a hidden first pointer, so `void f(void *)` is what the machine code takes. On aarch64 the fields
alone are compared.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from pathlib import Path
from typing import Any

from ..bundles.elf import plain_name
from ..errors import AbiMismatch
from .profile import Profile

_SIZE = 1024
_STRUCTS = {
    "llama_model_default_params": "struct llama_model_params",
    "llama_context_default_params": "struct llama_context_params",
    "llama_model_quantize_default_params": "struct llama_model_quantize_params",
    "llama_perf_context": "struct llama_perf_context_data",
    "llama_batch_get_one": "struct llama_batch",
}


def mapped(stem: str) -> list[Path]:
    """The files mapped into this process whose name, less a wheel's hash, starts with `stem` (/proc/self/maps)."""
    found: dict[str, None] = {}
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []  # not Linux: the check rests on the absolute paths
    for line in lines:
        columns = line.split(maxsplit=5)
        if len(columns) == 6 and plain_name(columns[5].rsplit("/", 1)[-1]).startswith(stem):
            found[columns[5]] = None
    return [Path(path) for path in found]


def check_single(folder: Path, *, loaded: bool) -> None:
    """Step 2: no libggml-base but the bundle's; once `loaded`, exactly that one.

    Raises:
        AbiMismatch: another one is in the process.
    """
    here = {path.resolve() for path in folder.glob("*")}  # they may be links to somewhere else
    found = mapped("libggml-base.")
    foreign = [path for path in found if path.resolve() not in here]
    if foreign:
        raise AbiMismatch(
            f"{foreign[0]} is loaded in this process, by another package: its functions would be used in "
            f"place of those in {folder}. Use a process of its own, or set LLCUDA_FFI_BUNDLE to that folder"
        )
    if loaded and len({path.resolve() for path in found}) > 1:
        names = ", ".join(path.name for path in found)
        raise AbiMismatch(f"libggml-base is loaded more than once from {folder} ({names}): keep one of them")


def version(library: ctypes.CDLL, function: str) -> str | None:
    """What a version function says, or None where there is none."""
    try:
        call = getattr(library, function)
    except AttributeError:
        return None
    call.restype = ctypes.c_char_p
    text = call()
    return None if text is None else str(text.decode("utf-8", "replace"))


def version_problems(library: ctypes.CDLL, profile: Profile) -> list[str]:
    """Step 3: the library calls itself what the profile says."""
    return [
        f"{function}() is {found!r}, expected {expected!r}"
        for function, expected in (
            ("llama_version", profile.llama_version),
            ("ggml_version", profile.ggml_version),
        )
        # who builds without the repository's history gets "0.5.0" where others get "0.5.0-dev"
        if expected is not None
        and (found := version(library, function) or "").removesuffix("-dev") != expected.removesuffix("-dev")
    ]


def symbol_problems(library: ctypes.CDLL, profile: Profile) -> list[str]:
    """Step 4: the symbols that the profile requires are there, those that it forbids are not."""
    missing = [name for name in profile.required if not hasattr(library, name)]
    extra = [name for name in profile.forbidden if hasattr(library, name)]
    return [f"it lacks {name}" for name in missing] + [f"it has {name}" for name in extra]


def capture(library: ctypes.CDLL, function: str) -> tuple[bytes, frozenset[int]]:
    """What `function` writes: the bytes over 0xAA, and the offsets that it leaves alone."""
    runs = []
    call = getattr(library, function)
    # no context (llama_perf_context), no tokens (llama_batch_get_one); the others take nothing and do not look
    call.restype, call.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    for fill in (0xAA, 0x55):
        buffer = ctypes.create_string_buffer(bytes([fill]) * _SIZE, _SIZE)
        call(ctypes.addressof(buffer), None, 0)
        runs.append(buffer.raw)
    untouched = (i for i, (a, b) in enumerate(zip(*runs, strict=True)) if (a, b) == (0xAA, 0x55))
    return runs[0], frozenset(untouched)


class _Result(ctypes.Structure):
    """Larger than any struct that is returned: by the rules of every platform, memory whose address is passed."""

    _fields_ = (("content", ctypes.c_uint8 * _SIZE),)


def capture_by_value(library: ctypes.CDLL, function: str) -> bytes:
    """What `function` returns, through the platform's own calling convention (aarch64 passes the address in x8).

    Bytes that it does not write hold anything.
    """
    call = getattr(library, function)
    call.restype, call.argtypes = _Result, [ctypes.c_void_p, ctypes.c_int32]
    return bytes(call(None, 0))


def canary_problems(library: ctypes.CDLL, profile: Profile, *, exact: bool) -> list[str]:
    """Steps 5 and 6: what the library writes has the layout and the values of the profile.

    Args:
        exact: compare byte for byte with what was measured on the pinned build. Without it another compiler
            may treat padding as it likes; every field is compared all the same.
    """
    problems = []
    for function, canary in profile.canaries.items():
        if platform.machine() not in ("x86_64", "AMD64"):
            # what lies between and behind the fields is not known there
            if wrong := _field_problems(profile, function, capture_by_value(library, function), frozenset(), 0):
                problems.append(f"{function} writes {'; '.join(wrong)}")
            continue
        raw, untouched = capture(library, function)
        extent = max(set(range(_SIZE)) - untouched, default=-1) + 1
        holes = tuple(sorted(i for i in untouched if i < extent))
        wrong = _field_problems(profile, function, raw, untouched, extent)
        if exact and not wrong:
            if (extent, holes) != (canary.extent, canary.holes):
                wrong.append(f"{extent} bytes but {holes}, expected {canary.extent} but {canary.holes}")
            elif (digest := hashlib.sha256(raw[:extent]).hexdigest()[:16]) != canary.digest:
                wrong.append(f"bytes of digest {digest}, expected {canary.digest}")
        if wrong:
            problems.append(f"{function} writes {'; '.join(wrong)}")
    return problems


def _field_problems(profile: Profile, function: str, raw: bytes, untouched: frozenset[int], extent: int) -> list[str]:
    """The fields of a default struct that the library does not write as the profile declares them."""
    ffi = profile.ffi
    name = _STRUCTS[function]
    size = ffi.sizeof(name)
    wrong = [] if extent <= size else [f"{extent} bytes, {name} has {size}"]
    struct: Any = ffi.cast(f"{name} *", ffi.from_buffer(raw))
    defaults = profile.defaults[function]
    for field, item in ffi.typeof(name).fields:
        size_of = ffi.sizeof(item.type)
        if untouched.intersection(range(item.offset, item.offset + size_of)):
            wrong.append(f"nothing at {item.offset}, where {field} is expected")
            continue
        expected = defaults.get(field, 0)
        # not through cffi but for floats: it raises for a bool of any other value than 0 and 1
        found: float = int.from_bytes(raw[item.offset : item.offset + size_of], "little", signed=expected < 0)
        if item.type.cname == "float":
            found = getattr(struct, field)
        if found != expected:
            wrong.append(f"{found} at {item.offset}, where {field} is expected to be {expected}")
    return wrong


def problems(library: ctypes.CDLL, profile: Profile, *, exact: bool) -> list[str]:
    """What steps 3 to 6 find different from the profile, each step only if those before it found nothing."""
    return (
        version_problems(library, profile)
        or symbol_problems(library, profile)
        or canary_problems(library, profile, exact=exact)
    )


def check(library: ctypes.CDLL, profile: Profile, *, exact: bool) -> None:
    """Steps 3 to 6.

    Raises:
        AbiMismatch: the library is not of the profile; the message says what was expected and what was found.
    """
    found = problems(library, profile, exact=exact)
    if found:
        raise AbiMismatch(f"the library is not of ABI profile {profile.name}: {'; '.join(found)}")
