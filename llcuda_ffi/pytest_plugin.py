"""A pytest plugin: markers for what a test needs, and fixtures with a model. Documented in docs/testing.md.

It is loaded in every pytest run of an environment that has this package, so it imports nothing but pytest until a test
asks for something.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .hardware.gpu import GpuReport
    from .llama import Llama

MARKERS = {
    "gpu": "gpu(min_sm=None, min_vram=None, count=1, native=False): needs NVIDIA GPUs that a bundle runs on",
    "bundle": "bundle(name): needs the bundle in use to be of that name or ABI profile",
    "needs_model": "needs_model(reference): needs a model that is in the cache or can be fetched",
    "network": "network: needs the network; skipped when LLCUDA_FFI_OFFLINE is set",
}
_REQUIRED = {"gpu": "gpu", "bundle": "bundle", "needs_model": "model", "network": "network"}
_FIXTURES = {"llama", "llcuda_model", "llcuda_leaks"}
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("llcuda", "llama.cpp in this process (llcuda_ffi)")
    group.addoption(
        "--llcuda-device",
        choices=["auto", "cpu", "cuda"],
        default=None,
        help="where the fixture `llama` computes; cpu skips tests marked gpu (default: auto)",
    )
    group.addoption(
        "--llcuda-require",
        action="append",
        default=[],
        choices=sorted(set(_REQUIRED.values())),
        help="what must be there: a test that lacks it fails instead of being skipped",
    )
    group.addoption(
        "--llcuda-model", default="smollm2-135m", metavar="REFERENCE", help="the model of the fixtures (smollm2-135m)"
    )


def pytest_configure(config: pytest.Config) -> None:
    for text in MARKERS.values():
        config.addinivalue_line("markers", text)


def pytest_report_header(config: pytest.Config) -> str | None:
    asked = config.getoption("llcuda_device") or config.getoption("llcuda_require")
    return _header(config) if asked else None


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """The same line where no option asked for it and a test uses this plugin."""
    if config.getoption("llcuda_device") or config.getoption("llcuda_require"):
        return None
    used = any(
        any(item.get_closest_marker(name) for name in MARKERS)
        or _FIXTURES.intersection(getattr(item, "fixturenames", ()))
        for item in items
    )
    return _header(config) if used else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in MARKERS:
        for marker in item.iter_markers(name):
            why = _lacking(item.config, name, marker)
            if why is None:
                continue
            if _REQUIRED[name] in item.config.getoption("llcuda_require"):
                pytest.fail(f"--llcuda-require={_REQUIRED[name]}: {why}", pytrace=False)
            pytest.skip(why)


# --- fixtures ---


@pytest.fixture(scope="session")
def llcuda_model(pytestconfig: pytest.Config) -> Path:
    """The path of the model that --llcuda-model names, from the cache or fetched once."""
    from . import hub
    from .errors import LlcudaError

    reference = pytestconfig.getoption("llcuda_model")
    try:
        return hub.resolve(reference, progress=False)
    except LlcudaError as error:
        if "model" in pytestconfig.getoption("llcuda_require"):
            pytest.fail(f"--llcuda-require=model: {error}", pytrace=False)
        pytest.skip(f"model {reference}: {error}")


@pytest.fixture(scope="session")
def llama(llcuda_model: Path, pytestconfig: pytest.Config) -> Iterator[Llama]:
    """One Llama for the whole run, on the device of --llcuda-device."""
    from .llama import Llama

    with Llama(llcuda_model, device=_device(pytestconfig)) as llm:
        yield llm


class Leaks:
    """How much memory this process took since the fixture was set up."""

    def __init__(self) -> None:
        self.checked = False
        self.start = _memory()

    def growth(self) -> dict[str, int]:
        """Bytes of "rss" and "vram" more than at the start; vram is missing without a GPU."""
        gc.collect()
        now = _memory()
        return {name: now[name] - self.start[name] for name in self.start if name in now}

    def restart(self) -> None:
        """Count from here, e.g. after a warm-up."""
        gc.collect()
        self.start = _memory()

    def check(self, rss: str | int = "64MiB", vram: str | int = "64MiB") -> None:
        """Fail if more is in use than at the start, beyond these amounts."""
        self.checked = True
        limits = {"rss": parse_size(rss), "vram": parse_size(vram)}
        over = [f"{name} grew by {n / 2**20:.1f} MiB, over {limits[name] / 2**20:.0f} MiB"
                for name, n in self.growth().items() if n > limits[name]]  # fmt: skip
        if over:
            pytest.fail("memory leak: " + "; ".join(over), pytrace=False)


@pytest.fixture
def llcuda_leaks() -> Iterator[Leaks]:
    """Fails a test that leaves more memory in use than it found (RSS of the process, VRAM of its GPUs)."""
    leaks = Leaks()
    yield leaks
    if not leaks.checked:
        leaks.check()


# --- what is there ---


def parse_size(size: str | int) -> int:
    """Bytes of "8GiB", "512 MiB", "16GB" or a number."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)?\s*", size)
    if match is None:
        raise pytest.UsageError(f"a size is written like '8GiB', not {size!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def parse_sm(sm: str | float | int) -> int:
    """75 of "7.5", 7.5, "sm_75" or 75."""
    match = re.fullmatch(r"(?:sm_)?(\d+)(?:\.(\d))?", str(sm))
    if match is None:
        raise pytest.UsageError(f"a compute capability is written like '7.5' or 'sm_75', not {sm!r}")
    if match[2]:
        return int(match[1]) * 10 + int(match[2])
    return int(match[1]) * (10 if int(match[1]) < 20 else 1)


def _device(config: pytest.Config) -> str:
    return str(config.getoption("llcuda_device") or "auto")


_REPORT: pytest.StashKey[GpuReport] = pytest.StashKey()
_BUNDLE: pytest.StashKey[tuple[str, str, str] | str] = pytest.StashKey()


def _report(config: pytest.Config) -> GpuReport:
    if _REPORT not in config.stash:
        from .hardware.gpu import survey

        config.stash[_REPORT] = survey()
    return config.stash[_REPORT]


def _bundle(config: pytest.Config) -> tuple[str, str, str] | str:
    """Name, profile and backend of the bundle that would be used; or why there is none."""
    if _BUNDLE not in config.stash:
        config.stash[_BUNDLE] = _find_bundle(config)
    return config.stash[_BUNDLE]


def _find_bundle(config: pytest.Config) -> tuple[str, str, str] | str:
    from .bundles import ensure, own, pins, select, selected
    from .errors import LlcudaError

    try:
        name = selected() or select.choose_here(_device(config), _report(config)).bundle
        if own.is_path(name) or own.named(name) is not None:
            built = ensure(name, progress=False)
            return built.name, built.profile, built.backend
        pin = pins.get(name)
        return pin.name, pin.profile, pin.backend
    except LlcudaError as error:
        return str(error)


def _header(config: pytest.Config) -> str:
    report = _report(config)
    if report.gpus:
        gpus = ", ".join(f"{gpu.name} (sm_{gpu.arch})" for gpu in report.gpus)
        cuda = f" (CUDA {report.cuda[0]}.{report.cuda[1]})" if report.cuda else ""
        where = f"{gpus}, driver {report.driver}{cuda}"
    else:
        where = f"no GPU: {report.reason}"
    bundle = _bundle(config)
    told = f"none: {bundle}" if isinstance(bundle, str) else f"{bundle[0]} (ABI {bundle[1]})"
    return f"llcuda: device {_device(config)}; {where}; bundle {told}"


def _lacking(config: pytest.Config, name: str, marker: pytest.Mark) -> str | None:
    """Why a test cannot run; None if it can."""
    checks: dict[str, Callable[..., str | None]] = {
        "gpu": _lacks_gpu,
        "bundle": _lacks_bundle,
        "needs_model": _lacks_model,
        "network": _lacks_network,
    }
    try:
        return checks[name](config, *marker.args, **marker.kwargs)
    except TypeError as error:
        raise pytest.UsageError(f"@pytest.mark.{name}: {error}; it is {MARKERS[name].partition(':')[0]}") from None


def _lacks_gpu(
    config: pytest.Config,
    *,
    min_sm: str | float | int | None = None,
    min_vram: str | int | None = None,
    count: int = 1,
    native: bool = False,
) -> str | None:
    lowest, least = parse_sm(min_sm or 0), parse_size(min_vram or 0)  # what is misspelt is an error without a GPU too
    if _device(config) == "cpu":
        return "needs a GPU, and --llcuda-device=cpu"
    report = _report(config)
    if not report.gpus:
        return f"needs a GPU: {report.reason}"
    gpus = list(report.gpus)
    for wanted, label, fitting in (
        (min_sm, "compute capability", [gpu for gpu in gpus if gpu.arch >= lowest]),
        (min_vram, "memory", [gpu for gpu in gpus if gpu.memory_total >= least]),
    ):
        if wanted is not None:
            still = [gpu for gpu in gpus if gpu in fitting]
            if len(still) < count:
                there = ", ".join(_described(gpu) for gpu in gpus)
                return f"needs {count} GPU(s) of {label} {wanted}, there is {there}"
            gpus = still
    if len(gpus) < count:
        return f"needs {count} GPUs, there is {', '.join(_described(gpu) for gpu in gpus)}"
    bundle = _bundle(config)
    if isinstance(bundle, str):
        return f"needs a bundle that runs on the GPU: {bundle}"
    if bundle[2] != "cuda":
        return (
            f"needs a bundle that runs on the GPU, bundle {bundle[0]} is for the {bundle[2].upper()}{_why_cpu(config)}"
        )
    return _lacks_native(config, bundle[0]) if native else None


def _why_cpu(config: pytest.Config) -> str:
    from .bundles import select

    table = select.verdicts(_report(config))
    return "".join(f"; {v.bundle}: {v.why}" for v in table)


def _lacks_native(config: pytest.Config, name: str) -> str | None:
    from .bundles import ensure, own, pins, select, selected

    chosen = selected()
    if chosen is not None and (own.is_path(chosen) or own.named(chosen) is not None):
        code = select.code_of_bundle(ensure(chosen, progress=False))
    else:
        code = select.code_of_pin(pins.get(name))
    for gpu in _report(config).gpus:
        if not any(arch // 10 == gpu.compute[0] and arch <= gpu.arch for arch in code.sass):
            return f"needs machine code for sm_{gpu.arch}, bundle {name} has it for {', '.join(map(str, code.sass))}"
    return None


def _described(gpu: Any) -> str:
    return f"{gpu.name} (sm_{gpu.arch}, {gpu.memory_total / 2**30:.0f} GiB)"


def _lacks_bundle(config: pytest.Config, name: str) -> str | None:
    bundle = _bundle(config)
    if isinstance(bundle, str):
        return f"needs bundle {name}: {bundle}"
    if name in bundle[:2]:
        return None
    return f"needs bundle {name}, this run uses {bundle[0]} (ABI {bundle[1]}): set LLCUDA_FFI_BUNDLE"


def _lacks_model(config: pytest.Config, reference: str) -> str | None:
    from . import hub
    from .errors import LlcudaError

    try:
        hub.resolve(reference, progress=False)
    except LlcudaError as error:
        return f"needs model {reference}: {error}"
    return None


def _lacks_network(config: pytest.Config) -> str | None:
    from .fetch.cache import offline

    return "needs the network, and LLCUDA_FFI_OFFLINE is set" if offline() else None


def _memory() -> dict[str, int]:
    """RSS of this process and, where there are GPUs, the memory in use on them."""
    found = {}
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["rss"] = pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass  # not Linux: only VRAM is watched
    from .hardware.gpu import survey

    report = survey()
    if report.gpus:
        found["vram"] = sum(gpu.memory_total - gpu.memory_free for gpu in report.gpus)
    return found
