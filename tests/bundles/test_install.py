"""Installing bundles from a loopback server: atomically, by one process or two, after any damage."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llcuda_ffi import bundles
from llcuda_ffi.bundles import InstalledBundle, pins, store
from llcuda_ffi.bundles.pins import Archive, Pin
from llcuda_ffi.errors import BundleError, BundleNotFound, ChecksumError, DownloadError, UnsafeArchive
from llcuda_ffi.fetch import http

from ..support.loopback import Loopback, Served


def tarball(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """A tar archive in memory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pin_of(content: bytes, url: str, libraries: dict[str, str] | None = None, name: str = "test-cpu") -> Pin:
    archive = Archive(
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        url=url,
        libraries=libraries or {},
    )
    return Pin(name, "test", "v0.5.0", "linux-x86_64", "cpu", (archive,))


@pytest.fixture(scope="module")
def content(bundle: InstalledBundle) -> bytes:
    """A small archive with two real libraries."""
    names = [name for name in bundle.libraries if name.startswith(("libggml.", "libggml-base"))]
    return tarball({f"package/lib/{name}": (bundle.path / name).read_bytes() for name in names})


@pytest.fixture
def served(content: bytes, loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.01)
    return loopback.put("/a.tar.gz", content)


@pytest.fixture
def pin(content: bytes, served: Served, loopback: Loopback, bundle: InstalledBundle) -> Pin:
    """A pin of that archive on the loopback server, with the hashes of its libraries."""
    libraries = {
        name: digest for name, digest in bundle.libraries.items() if name.startswith(("libggml.", "libggml-base"))
    }
    return pin_of(served.content, loopback.url + "/a.tar.gz", libraries)


def names_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_install_once(cache: Path, pin: Pin, loopback: Loopback) -> None:
    """A first call fetches and publishes the whole tree and its receipt; a second asks nobody."""
    first = store.install(pin, progress=False)
    assert dict(first.libraries) == pin.libraries
    first.verify()
    assert names_below(cache / "bundles") == ["test-cpu", "test-cpu.lock"]
    assert names_below(first.path) == sorted([*pin.libraries, "receipt.json"])
    again = store.install(pin, progress=False)
    assert again == first
    assert len(loopback.requests) == 1


def test_two_processes_at_once_download_once(
    cache: Path, pin: Pin, served: Served, loopback: Loopback, tmp_path: Path
) -> None:
    """The second process waits, says so, and uses what the first one installed."""
    served.pause, served.block = 0.4, 100_000
    (tmp_path / "pin").write_bytes(pickle.dumps(pin))
    code = (
        "import pickle, sys; from llcuda_ffi.bundles import store; "
        f"print(store.install(pickle.load(open({str(tmp_path / 'pin')!r}, 'rb'))).path)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = ""
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.strip() == str(cache / "bundles" / "test-cpu")
        said += err
    assert len(loopback.requests) == 1
    assert said.count("waiting for another process that is installing bundle test-cpu") == 1
    assert said.count("installed bundle test-cpu in") == 1


HOLDER = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_lock_of_a_dead_process_is_no_obstacle(cache: Path, pin: Pin) -> None:
    """The lock file that a killed holder left is taken over at once; it is never deleted."""
    (cache / "bundles").mkdir(parents=True)
    lock = cache / "bundles" / "test-cpu.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    inode = lock.stat().st_ino
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    store.install(pin, progress=False).verify()
    assert lock.stat().st_ino == inode


def test_killed_install_is_resumed(cache: Path, pin: Pin, served: Served, loopback: Loopback, tmp_path: Path) -> None:
    """SIGKILL amid the download: no bundle appears, and the next run asks for the rest only."""
    served.pause, served.block = 0.4, 100_000
    (tmp_path / "pin").write_bytes(pickle.dumps(pin))
    code = (
        "import pickle; from llcuda_ffi.bundles import store; "
        f"store.install(pickle.load(open({str(tmp_path / 'pin')!r}, 'rb')))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in (cache / "bundles").glob("*.partial")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.find(pin) is None
    served.pause = 0.0
    store.install(pin, progress=False).verify()
    assert loopback.requests[-1].range is not None
    assert names_below(cache / "bundles") == ["test-cpu", "test-cpu.lock"]


@pytest.mark.parametrize("damage", ["cut", "missing", "receipt", "no receipt"])
def test_damaged_bundle_is_replaced(cache: Path, pin: Pin, loopback: Loopback, damage: str) -> None:
    """A bundle that lost something is fetched again, as a whole."""
    first = store.install(pin, progress=False)
    library = first.path / next(iter(pin.libraries))
    if damage == "cut":
        os.truncate(library, 100)
    elif damage == "missing":
        library.unlink()
    elif damage == "receipt":
        (first.path / "receipt.json").write_text("{}")
    else:
        (first.path / "receipt.json").unlink()
    assert store.find(pin) is None
    store.install(pin, progress=False).verify()
    assert len(loopback.requests) == 2
    assert names_below(cache / "bundles") == ["test-cpu", "test-cpu.lock"]


def test_verify_finds_one_changed_byte(cache: Path, pin: Pin) -> None:
    """A change that keeps the size is found by verify, and the library is named."""
    first = store.install(pin, progress=False)
    library = first.path / next(iter(pin.libraries))
    data = bytearray(library.read_bytes())
    data[-1] ^= 1
    library.write_bytes(data)
    with pytest.raises(ChecksumError, match=library.name):
        first.verify()


def test_moved_pin_is_installed_anew(cache: Path, pin: Pin, loopback: Loopback, content: bytes) -> None:
    """A pin that came to mean other libraries replaces what was installed under its name."""
    name, digest = next(iter(pin.libraries.items()))
    smaller = replace(pin, archives=(replace(pin.archives[0], libraries={name: digest}),))
    store.install(pin, progress=False)
    assert dict(store.install(smaller, progress=False).libraries) == {name: digest}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), ChecksumError),
        (lambda content: content[:1000], ChecksumError),
        (lambda content: content + b"\0", ChecksumError),
    ],
    ids=["tampered", "truncated", "oversized"],
)
def test_another_archive_than_pinned(
    cache: Path, pin: Pin, served: Served, change: object, kind: type[BundleError]
) -> None:
    """What the server has is not what was pinned: one error, and the cache stays empty."""
    served.content = change(served.content)  # type: ignore[operator]
    with pytest.raises(kind):
        store.install(pin, progress=False)
    assert names_below(cache / "bundles") == ["test-cpu.lock"]


def test_archive_with_an_evil_member(cache: Path, loopback: Loopback) -> None:
    """Even an archive of the pinned hash is unpacked by the rules."""
    evil = tarball({"../../libggml-base.so": b"x"})
    loopback.put("/evil.tar.gz", evil)
    with pytest.raises(UnsafeArchive):
        store.install(pin_of(evil, loopback.url + "/evil.tar.gz"), progress=False)
    assert names_below(cache / "bundles") == ["test-cpu.lock"]


def test_composed_bundle(cache: Path, loopback: Loopback, bundle: InstalledBundle) -> None:
    """Two archives make one bundle, each giving its own libraries (as the CUDA 12 pin does)."""
    first, second = [name for name in bundle.libraries if name.startswith(("libggml.", "libggml-base"))]
    whole = tarball({f"lib/{name}": (bundle.path / name).read_bytes() for name in (first, second)})
    extra = tarball({f"fallback/{second}": (bundle.path / second).read_bytes()})
    parts = []
    for path, data, name in (("/1.tgz", whole, first), ("/2.tgz", extra, second)):
        loopback.put(path, data)
        parts += pin_of(data, loopback.url + path, {name: bundle.libraries[name]}).archives
    pin = replace(pin_of(whole, ""), archives=tuple(parts))
    installed = store.install(pin, progress=False)
    assert set(installed.libraries) == {first, second}
    installed.verify()


def test_llcuda_bundle(
    cache: Path, loopback: Loopback, bundle_b7698: InstalledBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original archive (a parent folder, bin/ and lib/, three copies each) gives one file per SONAME.

    The archive is made here out of the libraries of b7698, the nearest build that can be had.
    """
    members = {"llcuda-v2.0.6/bin/llama-server": b"\x7fELF program", "llcuda-v2.0.6/README.md": b"x"}
    for name in bundle_b7698.libraries:
        data = (bundle_b7698.path / name).read_bytes()
        plain = name.partition(".so")[0] + ".so"
        for copy in (plain, plain + ".0", plain + ".0.9.5"):
            members[f"llcuda-v2.0.6/lib/{copy}"] = data
    content = tarball({name: members[name] for name in members if "cpu" not in name or "x64" in name}, "w:gz")
    real = pins.get("llcuda-v2.0.6")
    archive = replace(real.archives[0], size=len(content), sha256=hashlib.sha256(content).hexdigest())
    loopback.put("/mirror/" + archive.file_name, content)
    monkeypatch.setenv("LLCUDA_FFI_MIRROR", loopback.url + "/mirror/")
    installed = store.install(replace(real, archives=(archive,)), progress=False)
    assert installed.profile == "b7698"
    assert archive.file_name == "llcuda-binaries-cuda12-t4-v2.0.6.tar.gz"
    assert {name: bundle_b7698.libraries[name] for name in installed.libraries} == dict(installed.libraries)
    assert len(installed.libraries) == 4
    installed.verify()


@pytest.mark.parametrize("form", ["folder", "url"])
def test_mirror(
    cache: Path,
    pin: Pin,
    content: bytes,
    loopback: Loopback,
    tmp_path: Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LLCUDA_FFI_MIRROR takes the place of every source, by the archive file name."""
    npm = replace(pin.archives[0], url=None, npm="@scope/thing", version="1.0.0")
    mirrored = replace(pin, archives=(npm,))
    if form == "folder":
        (tmp_path / "scope-thing-1.0.0.tgz").write_bytes(content)
        monkeypatch.setenv("LLCUDA_FFI_MIRROR", str(tmp_path))
        monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    else:
        loopback.put("/m/scope-thing-1.0.0.tgz", content)
        monkeypatch.setenv("LLCUDA_FFI_MIRROR", loopback.url + "/m")
    store.install(mirrored, progress=False).verify()
    with pytest.raises(DownloadError, match=r"put other-1\.0\.0\.tgz there"):
        store.install(replace(mirrored, name="other", archives=(replace(npm, npm="other"),)), progress=False)


def test_offline(cache: Path, pin: Pin, loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline a missing bundle is an error without a request; an installed one is used."""
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    with pytest.raises(DownloadError, match="LLCUDA_FFI_OFFLINE"):
        store.install(pin, progress=False)
    with pytest.raises(DownloadError, match="LLCUDA_FFI_OFFLINE"):
        bundles.ensure(progress=False)
    assert loopback.requests == []
    monkeypatch.delenv("LLCUDA_FFI_OFFLINE")
    store.install(pin, progress=False)
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    store.install(pin, progress=False)


def test_cache_that_cannot_be_written(pin: Pin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one error names the folder and the switch."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLCUDA_FFI_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"cannot be written.*LLCUDA_FFI_CACHE"):
        store.install(pin, progress=False)


def test_full_disk_while_unpacking(cache: Path, pin: Pin, tmp_path: Path) -> None:
    """The download fits, a library does not: one error, nothing published, nothing left."""
    (tmp_path / "pin").write_bytes(pickle.dumps(pin))
    limit = max(pin.archives[0].size + 1000, 700_000)
    code = (
        "import pickle, resource; from llcuda_ffi.bundles import store; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        f"store.install(pickle.load(open({str(tmp_path / 'pin')!r}, 'rb')), progress=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "DownloadError: writing" in done.stderr.splitlines()[-1]
    assert names_below(cache / "bundles") == ["test-cpu.lock"]


def test_stale_leftovers_are_swept(cache: Path, pin: Pin) -> None:
    """An install removes what a process left that died days ago, and leaves alone what may be in use."""
    for name in (".unpack-old", ".unpack-new", ".removed-old"):
        (cache / "bundles" / name / "tree").mkdir(parents=True)
    for name in (".fetch-old.1.partial", ".fetch-new.1.partial"):
        (cache / "bundles" / name).write_bytes(b"x")
    for path in (cache / "bundles").glob(".*old*"):
        os.utime(path, (0, 0))
    store.install(pin, progress=False)
    left = [".fetch-new.1.partial", ".unpack-new", "test-cpu", "test-cpu.lock"]
    assert names_below(cache / "bundles") == left


def test_prune(cache: Path, pin: Pin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leftovers of dead processes go, a bundle goes when it is named, lock files stay."""
    installed = store.install(pin, progress=False)
    (cache / "bundles" / ".unpack-dead").mkdir()
    (cache / "bundles" / ".fetch-dead.1.partial").write_bytes(b"x")
    monkeypatch.setattr(store, "all_pins", lambda: (pin,))
    store.prune()
    assert names_below(cache / "bundles") == ["test-cpu", "test-cpu.lock"]
    with pytest.raises(BundleNotFound, match="nothing"):
        store.prune(["nothing"])
    assert store.prune([pin.name]) == [installed.path]
    assert names_below(cache / "bundles") == ["test-cpu.lock"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"platform": "linux-riscv64"}, "built for linux-riscv64"),
        ({"min_glibc": "9.99"}, r"needs glibc 9\.99"),
    ],
)
def test_bundle_for_other_machines(
    cache: Path,
    pin: Pin,
    loopback: Loopback,
    change: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bundle that cannot run here is refused before it is fetched, with the way out."""
    monkeypatch.setitem(pins._table()[1], "elsewhere", replace(pin, **change))  # type: ignore[arg-type]
    with pytest.raises(BundleNotFound, match=message + ".*LLCUDA_FFI_BUNDLE"):
        bundles.ensure("elsewhere", progress=False)
    assert loopback.requests == []
    assert pins.get(pins.default_name()).why_unsupported() is None
