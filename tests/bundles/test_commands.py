"""The known bundles, and the commands that manage them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from click.testing import CliRunner

from llcuda_ffi import bundles
from llcuda_ffi.bundles import InstalledBundle, pins, store
from llcuda_ffi.cli.bundle import command
from llcuda_ffi.errors import BundleNotFound, ChecksumError, DownloadError
from llcuda_ffi.native.profile import PROFILES


def test_the_default_bundle_is_whole(bundle: InstalledBundle) -> None:
    """The bundle that everything else is tested on has the pinned libraries, by their hashes."""
    bundle.verify()
    assert bundle.profile in PROFILES
    if bundle.name in {pin.name for pin in pins.all_pins()}:
        assert dict(bundle.libraries) == pins.get(bundle.name).libraries
        assert bundle.verified


def test_pins_are_well_formed() -> None:
    """Each pin has an archive with size and hash; a registry's host is never part of it."""
    for pin in pins.all_pins():
        for archive in pin.archives:
            assert archive.size > 1_000_000
            assert len(archive.sha256) == 64
            assert [archive.npm, archive.wheel, archive.url].count(None) == 2
            assert (archive.npm is None) == (archive.integrity is None)
        assert (pin.backend == "cuda") == (pin.cuda is not None)
    assert pins.default_name() in {pin.name for pin in pins.all_pins()}
    with pytest.raises(BundleNotFound, match="the bundles are"):
        pins.get("nothing")


def test_a_name_on_each_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle's name means the build for this machine."""
    for machine, package in (("x86_64", "@node-llama-cpp/linux-x64"), ("aarch64", "@node-llama-cpp/linux-arm64")):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        pins._table.cache_clear()
        pin = pins.get("v0.5.0-cpu")
        assert pin.archives[0].npm == package
        assert pin.platform == f"linux-{machine}"
        assert pin.why_unsupported() is None
    assert "built for linux-x86_64, this machine is linux-aarch64" in str(pins.get("b11669-cpu").why_unsupported())
    monkeypatch.undo()
    pins._table.cache_clear()


def test_commands(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bundle list|path|verify|prune` tell the truth about an empty cache."""
    run = CliRunner().invoke
    listed = run(command, ["list"])
    assert listed.output.startswith("* " + pins.default_name())
    assert listed.output.count("not installed") == len(pins.all_pins())
    assert run(command, ["list", "--json"]).exit_code == 0
    missing = run(command, ["path"])
    assert isinstance(missing.exception, BundleNotFound)
    assert "llcuda-ffi bundle install" in str(missing.exception)
    assert "no bundle is installed" in run(command, ["verify"]).output
    assert isinstance(run(command, ["verify", "v0.5.0-cpu"]).exception, BundleNotFound)
    assert run(command, ["prune"]).exit_code == 0
    assert run(command, ["install", "x", "--variant", "cpu"]).exit_code == 2
    monkeypatch.setenv("LLCUDA_FFI_MIRROR", str(cache / "empty-mirror"))
    for variant in ("auto", "cuda12"):
        done = run(command, ["install", "--variant", variant])
        assert isinstance(done.exception, DownloadError)
        assert "node-llama-cpp-linux-x64" in str(done.exception)
    monkeypatch.delenv("LLCUDA_FFI_MIRROR")
    assert isinstance(run(command, ["install", "no-such"]).exception, BundleNotFound)


def test_a_bundle_with_a_cut_library(cache: Path, bundle: InstalledBundle) -> None:
    """`bundle verify` names what is damaged, with a name and without one; `bundle prune` removes it."""
    place = cache / "bundles" / "v0.6.0-cpu"
    place.mkdir(parents=True)
    bundle.write_receipt(place)
    for name in bundle.libraries:
        (place / name).write_bytes(b"\x7fELF")
    run = CliRunner().invoke
    for arguments in ([], [place.name]):
        with pytest.raises(ChecksumError, match=r"bundle v0\.6\.0-cpu is damaged.*bundle prune v0\.6\.0-cpu"):
            run(command, ["verify", *arguments], catch_exceptions=False)
    assert run(command, ["prune"]).output == f"removed {place}\n"
    assert run(command, ["verify"]).exit_code == 0


def test_a_choice_that_is_gone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that was in use and is removed: who needs it is told who chose it, and the way back."""
    store.bundles_folder().mkdir(parents=True)
    (store.bundles_folder() / store.IN_USE).write_bytes(b"\xff\xfe")
    with pytest.raises(BundleNotFound, match="bundle use --auto"):
        bundles.ensure()
    store.set_in_use("mine")
    with pytest.raises(BundleNotFound, match=r"no bundle 'mine'.*`llcuda-ffi bundle use --auto` goes back"):
        bundles.ensure()
    monkeypatch.setenv("LLCUDA_FFI_BUNDLE", "yours")
    with pytest.raises(BundleNotFound, match=r"no bundle 'yours'.*LLCUDA_FFI_BUNDLE names it"):
        bundles.ensure()
    with pytest.raises(BundleNotFound, match=r"no bundle 'theirs'; the bundles are [^(]*$"):
        bundles.ensure("theirs")
