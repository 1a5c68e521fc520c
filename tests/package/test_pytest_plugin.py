"""The pytest plugin, run by pytest in child processes as users run it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llcuda_ffi.bundles import InstalledBundle
from llcuda_ffi.fetch.cache import cache_root
from llcuda_ffi.hardware.gpu import survey
from llcuda_ffi.pytest_plugin import parse_size, parse_sm

pytest_plugins = ["pytester"]
CACHE = str(cache_root())  # pytester changes HOME
NO_GPU = pytest.mark.skipif(bool(survey().gpus), reason="for machines without a GPU")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs pytest on a test file, with warnings as errors and strict markers."""
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers -p llcuda_ffi.pytest_plugin\n")

    def go(source: str, *arguments: str, cache: str = CACHE) -> pytest.RunResult:
        monkeypatch.setenv("LLCUDA_FFI_CACHE", cache)
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess("-rs", "-p", "no:cacheprovider", *arguments)

    return go


def test_loading_it_imports_nothing_heavy() -> None:
    """In every pytest run of its users the plugin costs no numpy, cffi, pynvml nor network module."""
    code = (
        "import sys; import llcuda_ffi.pytest_plugin\n"
        "heavy = {'numpy', 'cffi', '_cffi_backend', 'pynvml', 'httpx2', 'huggingface_hub', 'jinja2', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_other_peoples_tests_see_nothing(run) -> None:
    """A run that uses nothing of the plugin has no line of it."""
    result = run("def test_x(): pass")
    result.assert_outcomes(passed=1)
    assert "llcuda" not in result.stdout.str().replace("llcuda_ffi", "").split("collected")[1]


@pytest.mark.bundle("v0.5.0")
@NO_GPU
def test_gpu_tests_are_skipped_with_the_reason(run) -> None:
    """Without a GPU the skip says why; --llcuda-require=gpu makes it a failure."""
    source = "import pytest\n@pytest.mark.gpu(min_sm='7.5', min_vram='8GiB', count=2, native=True)\ndef test_x(): pass"
    result = run(source)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["llcuda: device auto; no GPU: *bundle v0.5.0*", "*SKIPPED*needs a GPU: *"])
    result = run(source, "--llcuda-require=gpu")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*--llcuda-require=gpu: needs a GPU: *"])


def test_device_cpu_skips_gpu_tests(run) -> None:
    """--llcuda-device=cpu leaves tests marked gpu out on every machine."""
    result = run("import pytest\n@pytest.mark.gpu\ndef test_x(): pass", "--llcuda-device=cpu")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*--llcuda-device=cpu*"])


GPUS = """
import pytest
from llcuda_ffi.hardware import gpu

@pytest.fixture(autouse=True, scope="session")
def _unused(): pass

def survey(environment=None):
    one = gpu.Gpu(0, "Tesla T4", (7, 5), 15 << 30, 14 << 30)
    return gpu.GpuReport((one,), "580.1", (13, 0))

gpu.survey = survey
from llcuda_ffi.bundles import select
select.survey = survey
from llcuda_ffi.hardware import cuda_libraries
cuda_libraries.complete = lambda: (12, 13)
"""


def test_each_requirement_of_the_gpu_marker(run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a T4: architecture, memory, count and native code are compared, and each skip says what there is."""
    monkeypatch.delenv("LLCUDA_FFI_BUNDLE", raising=False)
    pytester.makeconftest(GPUS)
    result = run(
        """
        import pytest
        @pytest.mark.gpu
        def test_any(): pass
        @pytest.mark.gpu(min_sm="7.5", min_vram="8GiB")
        def test_fits(): pass
        @pytest.mark.gpu(min_sm=8.0)
        def test_arch(): pass
        @pytest.mark.gpu(min_vram="24GiB")
        def test_memory(): pass
        @pytest.mark.gpu(count=2)
        def test_count(): pass
        @pytest.mark.gpu(native=True)
        def test_native(): pass
        """
    )
    result.assert_outcomes(passed=3, skipped=3)
    result.stdout.fnmatch_lines(["*Tesla T4 (sm_75), driver 580.1 (CUDA 13.0); bundle b11669-cuda12*"])
    result.stdout.fnmatch_lines_random(
        [
            "*needs 1 GPU(s) of compute capability 8.0, there is Tesla T4 (sm_75, 15 GiB)*",
            "*needs 1 GPU(s) of memory 24GiB, there is Tesla T4*",
            "*needs 2 GPUs, there is Tesla T4*",
        ]
    )


@pytest.mark.bundle("v0.5.0")
@pytest.mark.usefixtures("smollm2", "bundle")
def test_bundle_model_and_network(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other markers: another bundle, an unknown model, no network; each skip has its reason."""
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    result = run(
        """
        import pytest
        @pytest.mark.bundle("v0.5.0")
        def test_this_abi(): pass
        @pytest.mark.bundle("b0000")
        def test_another(): pass
        @pytest.mark.needs_model("smollm2-135m")
        def test_model(): pass
        @pytest.mark.needs_model("no-such-model")
        def test_no_model(): pass
        @pytest.mark.network
        def test_network(): pass
        """
    )
    result.assert_outcomes(passed=2, skipped=3)
    result.stdout.fnmatch_lines_random(
        ["*needs bundle b0000, this run uses *", "*needs model no-such-model: *", "*LLCUDA_FFI_OFFLINE is set*"]
    )


@pytest.mark.parametrize("way", ["environment", "bundle use"])
def test_a_build_by_its_name(
    run, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: InstalledBundle
) -> None:
    """What `bundle build` made is the bundle in use where the environment or `bundle use` names it."""
    place = tmp_path / "cache" / "bundles" / "mine"
    place.mkdir(parents=True)
    for name in bundle.libraries:
        (place / name).symlink_to(bundle.path / name)
    replace(bundle, name="mine", verified=False, source="built from a tree").write_receipt(place)
    monkeypatch.delenv("LLCUDA_FFI_BUNDLE", raising=False)
    if way == "environment":
        monkeypatch.setenv("LLCUDA_FFI_BUNDLE", "mine")
    else:
        (place.parent / "in-use").write_text("mine\n")
    source = "import pytest\n@pytest.mark.bundle('mine')\ndef test_x(): pass"
    result = run(source, cache=str(place.parent.parent))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"llcuda: *; bundle mine (ABI {bundle.profile})"])


def test_a_wrong_marker_is_an_error(run) -> None:
    """An argument that the marker does not take is no silent skip."""
    result = run(
        """
        import pytest
        @pytest.mark.gpu(sm=75)
        def test_name(): pass
        @pytest.mark.gpu(min_vram="8 XB")
        def test_size(): pass
        @pytest.mark.gpu(min_sm="T4")
        def test_capability(): pass
        """
    )
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines_random(
        ["*gpu(min_sm=None*", "*like '8GiB', not '8 XB'*", "*like '7.5' or 'sm_75', not 'T4'*"]
    )


@pytest.mark.usefixtures("smollm2")
def test_fixtures(run) -> None:
    """`llama` is one Llama for the run; `llcuda_model` its path."""
    result = run(
        """
        def test_text(llama, llcuda_model):
            assert llama.generate("Hello", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
            assert llama.model.path == llcuda_model
        def test_same(llama):
            assert not llama.closed
        """
    )
    result.assert_outcomes(passed=2)


def test_leaks(run) -> None:
    """A test that keeps memory fails, one that does not passes, and its own limits count."""
    result = run(
        """
        kept = []
        def test_leak(llcuda_leaks):
            kept.append(b"x" * (200 << 20))
        def test_none(llcuda_leaks):
            b"x" * (200 << 20)
        def test_allowed(llcuda_leaks):
            kept.append(b"x" * (200 << 20))
            llcuda_leaks.check(rss="400MiB")
        """
    )
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*memory leak: rss grew by 2*"])


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 << 30), ("512 MiB", 512 << 20), ("2GB", 2 * 10**9), (17, 17), ("1.5KiB", 1536)]
)
def test_sizes(text: str | int, size: int) -> None:
    """Sizes are written with binary or decimal units."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "sm"), [("7.5", 75), (7.5, 75), ("sm_90", 90), (90, 90), ("12.0", 120), (12, 120), (8, 80)]
)
def test_architectures(text: str | float, sm: int) -> None:
    """Compute capabilities are written in any usual way."""
    assert parse_sm(text) == sm
