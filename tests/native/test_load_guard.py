"""The load guard: each step refuses what only it can see, in order, with what was expected and what was found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from llcuda_ffi import bundles
from llcuda_ffi.bundles import own
from llcuda_ffi.bundles.installed import RECEIPT
from llcuda_ffi.errors import AbiMismatch
from llcuda_ffi.fetch.integrity import file_sha256

from ..support.child_process import run_child

pytestmark = pytest.mark.bundle("v0.5.0")  # the damage is done to the default bundle

# loads the bundle in the folder argv[1] and prints the outcome, and which libggml-base the process has mapped
LOAD = """
import dataclasses, json, sys
from pathlib import Path
from llcuda_ffi.bundles.installed import read
from llcuda_ffi.errors import LlcudaError
from llcuda_ffi.native import guard, profile
from llcuda_ffi.native.load import load, loaded
def attempt(bundle):
    try:
        library = load(bundle)
    except LlcudaError as error:
        return type(error).__name__, str(error)
    return "loaded", library.profile.name
bundle = read(Path(sys.argv[1]))
"""
SHOW = "print(json.dumps([*attempt(bundle), [str(p) for p in guard.mapped('libggml-base')]]))"


class Copy:
    """A copy of a bundle's three core libraries (no backend), to be damaged."""

    def __init__(self, source: bundles.InstalledBundle, folder: Path) -> None:
        folder.mkdir()
        self.path = folder
        names = [n for n in source.libraries if n.startswith(("libggml-base.", "libggml.", "libllama."))]
        for name in names:
            shutil.copyfile(source.path / name, folder / name)
        self.bundle = dataclasses.replace(
            source,
            path=folder,
            libraries={name: source.libraries[name] for name in names},
            sizes={name: source.sizes[name] for name in names},
        )
        self.receipt()

    def receipt(self, **changes: object) -> None:
        """Write the receipt, with changes; an own build's has the hashes of what is there."""
        if changes.get("verified") is False:
            there = {name: self.path / name for name in self.bundle.libraries if (self.path / name).exists()}
            hashes = {name: file_sha256(path) for name, path in there.items()}
            changes = {"libraries": {**self.bundle.libraries, **hashes}, **changes}
        (self.path / RECEIPT).unlink(missing_ok=True)
        dataclasses.replace(self.bundle, **changes).write_receipt(self.path)  # type: ignore[arg-type]

    def file(self, stem: str) -> Path:
        return next(p for p in self.path.iterdir() if p.name.startswith(stem))

    def patch(self, stem: str, old: bytes, new: bytes) -> None:
        """Replace bytes of a library, and have it as an own build."""
        assert len(old) == len(new)
        path = self.file(stem)
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))
        self.receipt(verified=False)

    def load(self, code: str = "") -> tuple[str, str, list[str]]:
        """(exception or "loaded", message or profile, mapped libggml-base) from a child process."""
        kind, message, found = json.loads(run_child(LOAD + code + "\n" + SHOW, self.path).splitlines()[-1])
        return kind, message, found


@pytest.fixture
def copy(bundle: bundles.InstalledBundle, tmp_path: Path) -> Copy:
    """A copy of the default bundle's core."""
    return Copy(bundle, tmp_path / "copy")


def test_step_1_hash_before_anything_is_loaded(copy: Copy) -> None:
    """One changed byte of a pinned library refuses it, and nothing of it was loaded."""
    path = copy.file("libllama.")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    kind, message, found = copy.load()
    assert (kind, found) == ("ChecksumError", [])
    assert path.name in message
    assert "expected" in message


def test_libraries_that_are_links(copy: Copy, tmp_path: Path) -> None:
    """A folder of links to the libraries is that bundle, not another package's: all that it lacks is a backend."""
    store = tmp_path / "store"
    store.mkdir()
    for name in copy.bundle.libraries:
        (copy.path / name).rename(store / name)
        (copy.path / name).symlink_to(store / name)
    kind, message, _ = copy.load()
    assert kind == "MissingLibrary", message
    assert "no CPU backend" in message


def test_step_1_comes_before_step_2(copy: Copy, tmp_path: Path) -> None:
    """A tampered bundle is told as such even where a foreign library is in the process as well."""
    other = tmp_path / "libggml-base.so"
    shutil.copyfile(copy.file("libggml-base."), other)
    path = copy.file("libggml.")
    path.write_bytes(path.read_bytes() + b"\0")
    kind, _, _ = copy.load(f"import ctypes; ctypes.CDLL({str(other)!r})")
    assert kind == "ChecksumError"


def test_a_refused_bundle_leaves_the_process_usable(copy: Copy, bundle: bundles.InstalledBundle) -> None:
    """After the refusal of a tampered bundle the sound one loads in the same process."""
    path = copy.file("libllama.")
    path.write_bytes(path.read_bytes() + b"\0")
    out = run_child(LOAD + "print(attempt(bundle)[0], attempt(read(Path(sys.argv[2])))[0])", copy.path, bundle.path)
    assert out.split() == ["ChecksumError", "loaded"]


def test_missing_library(copy: Copy) -> None:
    """A library that is gone is named, for a pinned bundle and for an own build."""
    path = copy.file("libggml.")
    path.unlink()
    kind, message, _ = copy.load()
    assert kind == "ChecksumError"
    assert path.name in message
    copy.receipt(verified=False)
    kind, message, _ = copy.load()
    assert kind == "ChecksumError"
    assert path.name in message


def test_step_2_a_foreign_libggml_base(copy: Copy, bundle: bundles.InstalledBundle) -> None:
    """A libggml-base from another folder, loaded before by another package, is refused and named."""
    foreign = next(bundle.path / n for n in bundle.libraries if n.startswith("libggml-base."))
    kind, message, found = copy.load(f"import ctypes; ctypes.CDLL({str(foreign)!r})")
    assert kind == "AbiMismatch"
    assert str(foreign.parent) in message
    assert found == [str(foreign)], "the bundle's own must not be loaded beside it"


def test_step_2_two_copies_of_one_library(copy: Copy) -> None:
    """The same library twice, under its plain name and its SONAME, is refused: listed twice, or only loaded twice."""
    base = copy.file("libggml-base.")
    twin = copy.path / "libggml-base.so.0"
    shutil.copyfile(base, twin)
    kind, message, _ = copy.load(f"import ctypes; ctypes.CDLL({str(twin)!r})")
    assert kind == "AbiMismatch"
    assert "more than once" in message
    assert twin.name in message
    both = {**copy.bundle.libraries, twin.name: copy.bundle.libraries[base.name]}
    copy.receipt(libraries=both, sizes={name: (copy.path / name).stat().st_size for name in both})
    kind, message, _ = copy.load()
    assert kind == "MissingLibrary"
    assert "2 times" in message


@pytest.mark.parametrize(
    ("stem", "old", "new", "function"),
    [
        ("libggml-base.", b"\x000.25.1\0", b"\x000.25.7\0", "ggml_version"),
        ("libllama.", b"0.5.0-dev", b"0.5.9-dev", "llama_version"),
    ],
)
def test_step_3_version(copy: Copy, stem: str, old: bytes, new: bytes, function: str) -> None:
    """A library that calls itself another version is refused, with both versions named."""
    data = copy.file(stem).read_bytes()
    if old not in data:
        pytest.skip(f"this build keeps the version of {function} in another form")
    copy.patch(stem, old, new)
    kind, message, _ = copy.load()
    assert kind == "AbiMismatch"
    assert f"{function}() is {new.strip(bytes(1)).decode()!r}, expected {old.strip(bytes(1)).decode()!r}" in message


def test_step_4_symbols(copy: Copy) -> None:
    """A required function that is missing, and one that the profile must not have, are named."""
    copy.patch("libllama.", b"llama_set_adapters_lora\0", b"llama_set_adapters_larO\0")
    kind, message, _ = copy.load()
    assert kind == "AbiMismatch"
    assert "lacks llama_set_adapters_lora" in message
    lie = "p = profile.PROFILES['v0.5.0']\n"
    lie += "profile.PROFILES['v0.5.0'] = dataclasses.replace(p, required=(), forbidden=('llama_decode',))"
    kind, message, _ = copy.load(lie)
    assert kind == "AbiMismatch"
    assert "it has llama_decode" in message


CANARY = "llama_context_default_params"


@pytest.mark.parametrize(
    ("lie", "expected"),
    [
        ("canaries={F: dataclasses.replace(c, extent=168)}", "160 bytes but (134, 135), expected 168"),
        ("canaries={F: dataclasses.replace(c, holes=(134,))}", "expected 160 but (134,)"),
        ("canaries={F: dataclasses.replace(c, digest='0' * 16)}", "expected 0000000000000000"),
        ("defaults={**p.defaults, F: {**p.defaults[F], 'n_ctx': 513}}", "512 at 0, where n_ctx is expected to be 513"),
        ("defaults={**p.defaults, F: {}}", "-1.0 at 64, where yarn_ext_factor is expected to be 0"),
        ("module='_abi_b7698'", "160 bytes, struct llama_context_params has 136"),
    ],
)
def test_steps_5_and_6_a_profile_that_lies(copy: Copy, lie: str, expected: str) -> None:
    """A profile of another extent, holes, bytes, value or layout than the library's is found out by the canary."""
    code = f"""
F = {CANARY!r}
p = profile.PROFILES["v0.5.0"]
c = p.canaries[F]
profile.PROFILES["v0.5.0"] = dataclasses.replace(p, {lie})
"""
    kind, message, _ = copy.load(code)
    assert kind == "AbiMismatch"
    assert expected in message
    assert f"{CANARY} writes" in message


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("llama_perf_context", "48 bytes but (), expected 56"),
        ("llama_batch_get_one", "56 bytes but (4, 5, 6, 7), expected 64"),
    ],
)
def test_step_5_structs_that_libllama_returns(copy: Copy, function: str, expected: str) -> None:
    """A result that grew would be written past its end: what a call with nothing writes is compared too."""
    code = f"""
F = {function!r}
p = profile.PROFILES["v0.5.0"]
c = dataclasses.replace(p.canaries[F], extent=p.canaries[F].extent + 8)
profile.PROFILES["v0.5.0"] = dataclasses.replace(p, canaries={{F: c}})
"""
    kind, message, _ = copy.load(code)
    assert kind == "AbiMismatch"
    assert f"{function} writes {expected}" in message


def test_fields_through_the_platforms_own_convention(bundle: bundles.InstalledBundle) -> None:
    """What aarch64 has in place of the byte canary finds a profile's fields right, and another profile's wrong."""
    out = run_child(
        LOAD
        + """
import platform
from llcuda_ffi.native.load import open_core
library = open_core(bundle.path, list(bundle.libraries))
platform.machine = lambda: "aarch64"
for name in ("v0.5.0", "v0.6.0"):
    print(json.dumps(guard.canary_problems(library, profile.PROFILES[name], exact=True)))
""",
        bundle.path,
    )
    right, wrong = map(json.loads, out.splitlines())
    assert right == []
    assert len(wrong) == 1
    assert "llama_context_default_params writes" in wrong[0]


def test_step_5_a_forged_library(copy: Copy, tmp_path: Path) -> None:
    """A library whose defaults function writes nothing, its machine code patched to return at once, is refused."""
    offset = int(
        run_child(
            """
            import ctypes, sys
            from pathlib import Path
            for path in sys.argv[1:]:
                library = ctypes.CDLL(path)
            address = ctypes.cast(library.llama_context_default_params, ctypes.c_void_p).value
            for line in Path("/proc/self/maps").read_text().splitlines():
                span, _, start, *_ = line.split()
                low, high = (int(x, 16) for x in span.split("-"))
                if low <= address < high:
                    print(address - low + int(start, 16))
            """,
            *(copy.file(stem) for stem in ("libggml-base.", "libggml.", "libllama.")),
        )
    )
    path = copy.file("libllama.")
    data = bytearray(path.read_bytes())
    data[offset] = 0xC3  # ret
    path.write_bytes(data)
    copy.receipt(verified=False)
    kind, message, _ = copy.load()
    assert kind == "AbiMismatch"
    assert f"{CANARY} writes nothing at 0, where n_ctx is expected" in message
    # the same found by the measurement of an own build
    with pytest.raises(AbiMismatch, match=r"nearest profile is v0\.5\.0.*nothing at 0, where n_ctx"):
        own.measure(copy.path, "the build")


def test_backends_come_only_from_the_bundle(bundle: bundles.InstalledBundle, tmp_path: Path) -> None:
    """Neither GGML_BACKEND_PATH nor the current folder can add a backend, and libggml forks no debugger."""
    for name in bundle.libraries:
        if name.startswith("libggml-cpu"):
            shutil.copyfile(bundle.path / name, tmp_path / name)
            evil = tmp_path / name
    out = run_child(
        LOAD
        + """
import os
os.chdir(sys.argv[2])
assert attempt(bundle)[0] == "loaded"
assert os.environ["GGML_NO_BACKTRACE"] == "1" and "GGML_BACKEND_PATH" not in os.environ
print(loaded().cpu_variant, *{p.parent for p in guard.mapped("libggml")}, loaded().backends)
""",
        bundle.path,
        tmp_path,
        GGML_BACKEND_PATH=str(evil),
    )
    variant, *folders = out.split(maxsplit=2)
    assert folders == [str(bundle.path.resolve()), "('CPU',)\n"]
    assert any(name == f"libggml-cpu-{variant}.so" for name in bundle.libraries)


def test_one_bundle_for_a_process(bundle: bundles.InstalledBundle, bundle_b7698: bundles.InstalledBundle) -> None:
    """load() is idempotent, from several threads too; a second, different bundle is refused."""
    out = run_child(
        LOAD
        + """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    first = {id(library) for library in pool.map(load, [bundle] * 8)}
print(len(first), load() is load(bundle) is loaded())
print(*attempt(read(Path(sys.argv[2]))))
""",
        bundle.path,
        bundle_b7698.path,
    )
    first, second = out.splitlines()
    assert first == "1 True"
    assert second.startswith("LoadError")
    assert bundle.name in second
    assert bundle_b7698.name in second


@pytest.mark.parametrize("pin", ["v0.5.0-cpu", "b7698-cpu", "v0.6.0-cpu", "b11669-cpu"])
def test_measure_names_the_profile(pin: str) -> None:
    """A folder of unknown libraries is measured in a child process: each known build gives its own profile."""
    known = bundles.ensure(pin, progress=False)
    assert own.measure(known.path, pin) == known.profile


def test_measure_names_what_differs(copy: Copy, tmp_path: Path) -> None:
    """A build that fits no profile is refused with what differs; so is a folder without libraries, or of rubbish."""
    copy.patch("libllama.", b"llama_set_adapters_lora\0", b"llama_set_adapters_larO\0")
    with pytest.raises(AbiMismatch, match=r"nearest profile is v0\.5\.0.*lacks llama_set_adapters_lora"):
        own.measure(copy.path, "the build")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(AbiMismatch, match=r"libggml-base\.so is not there"):
        own.measure(empty, "the folder")
    path = copy.file("libllama.")
    path.write_bytes(b"\x7fELF" + bytes(200))
    with pytest.raises(AbiMismatch, match=path.name):
        own.measure(copy.path, "the build")


def test_a_build_with_its_own_libstdcxx(tmp_path: Path) -> None:
    """Where no library of a bundle needs libstdc++, the system's is the one that all of them find first."""
    out = run_child(
        """
        import ctypes, sys
        from pathlib import Path
        from llcuda_ffi.errors import MissingLibrary
        from llcuda_ffi.native.load import open_core
        print(hasattr(ctypes.CDLL(None), "_ZNSt6locale7classicEv"))
        names = ["libggml-base.so.0", "libggml.so.0", "libllama.so.0"]
        try:
            open_core(Path(sys.argv[1]), names)  # not there: what comes before them is opened all the same
        except MissingLibrary:
            print(hasattr(ctypes.CDLL(None), "_ZNSt6locale7classicEv"))
        """,
        tmp_path,
    )
    assert out.split() == ["False", "True"]
