"""`llcuda-ffi doctor` on this machine, and with things missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda_ffi import bundles as bundle
from llcuda_ffi.bundles import store
from llcuda_ffi.cli import doctor
from llcuda_ffi.hardware.gpu import Gpu, GpuReport

RUN = [sys.executable, "-c", "from llcuda_ffi.cli import main; main()", "doctor"]


@pytest.mark.usefixtures("bundle")
def test_a_sound_machine() -> None:
    """With the bundle installed nothing is missing; JSON and text say the same."""
    done = subprocess.run([*RUN, "--json"], check=False, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report["problems"]
    assert report["bundle"]["state"] == "works"
    assert report["bundle"]["cpu_variant"]
    assert report["cpu"]["usable_cores"] >= 1
    assert report["python"] == sys.version.split()[0]
    text = subprocess.run(RUN, check=False, capture_output=True, text=True).stdout
    assert report["bundle"]["name"] in text
    assert "All is well" in text


def test_offline_without_a_bundle(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing installed and the network off: the command that mends it is named."""
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    report = doctor.examine()
    assert report["bundle"]["state"] == "not installed"
    assert "bundle install" in report["problems"][0]["mend"]
    monkeypatch.delenv("LLCUDA_FFI_OFFLINE")
    assert doctor.examine()["problems"] == []


@pytest.mark.bundle("v0.5.0")
def test_a_damaged_bundle(cache: Path, bundle: bundle.InstalledBundle) -> None:
    """A library of the right size with another content is found."""
    copy = cache / "bundles" / bundle.name
    copy.mkdir(parents=True)
    for file in bundle.path.iterdir():
        (copy / file.name).symlink_to(file)
    name = next(iter(bundle.libraries))
    size = (bundle.path / name).stat().st_size
    (copy / name).unlink()
    (copy / name).write_bytes(bytes(size))
    report = doctor.examine()
    assert report["bundle"]["state"] == "broken"
    assert name in report["problems"][0]["what"]
    assert report["problems"][0]["mend"].startswith(f"llcuda-ffi bundle prune {bundle.name} && ")


def test_a_choice_that_is_gone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that was chosen by name and is not there: what mends it is another choice, no install."""
    monkeypatch.delenv("LLCUDA_FFI_BUNDLE", raising=False)
    store.set_in_use("mine")
    assert doctor.examine()["problems"][0]["mend"] == "llcuda-ffi bundle use --auto"
    for chosen in ("yours", str(cache / "nothing")):
        monkeypatch.setenv("LLCUDA_FFI_BUNDLE", chosen)
        assert doctor.examine()["problems"][0]["mend"] == "unset LLCUDA_FFI_BUNDLE"


def test_a_gpu_without_runtime_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that would run, but for CUDA's runtime libraries: the verdicts and the pip command are there."""
    report = GpuReport((Gpu(0, "RTX 4090", (8, 9), 24 << 30, 23 << 30),), "580.1", (13, 0))
    monkeypatch.delenv("LLCUDA_FFI_BUNDLE", raising=False)
    monkeypatch.setattr(doctor, "survey", lambda: report)
    monkeypatch.setattr(doctor.select, "survey", lambda: report)
    monkeypatch.setattr(doctor.cuda_libraries, "complete", lambda: ())
    found = doctor.examine()
    assert {v["how"] for v in found["gpu"]["verdicts"]} == {"impossible"}
    assert any("llcuda-ffi[cuda1" in problem["mend"] for problem in found["problems"])
    doctor._print(found)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's folder is checked without writing into it."""
    monkeypatch.setenv("LLCUDA_FFI_CACHE", str(tmp_path / "x"))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert any("LLCUDA_FFI_CACHE" in problem["mend"] for problem in doctor.examine()["problems"])


@pytest.mark.parametrize("kind", ["file", "loop"])
def test_a_cache_that_is_no_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor still reports, and names the cache among the problems."""
    place = tmp_path / "cache"
    if kind == "file":
        place.touch()
    else:
        place.symlink_to(place)
    monkeypatch.setenv("LLCUDA_FFI_CACHE", str(place))
    monkeypatch.delenv("LLCUDA_FFI_BUNDLE", raising=False)
    assert any(str(place) in problem["what"] for problem in doctor.examine()["problems"])
