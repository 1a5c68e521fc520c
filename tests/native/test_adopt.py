"""A profile made from a library and the declarations of its llama.cpp."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda_ffi import bundles

ROOT = Path(__file__).resolve().parents[2]
PERF = """
struct llama_perf_context_data {
    double t_start_ms; double t_load_ms; double t_p_eval_ms; double t_eval_ms;
    int32_t n_p_eval; int32_t n_eval; int32_t n_reused; int32_t n_reallocs_same; int32_t n_reallocs_diff;
};
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the tool reads and writes, copied, without the profile that is to be made again."""
    for name in ("headers", "abi", "llcuda_ffi"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "build_ffi.py", tmp_path / "build_ffi.py")
    return tmp_path


def adopt(checkout: Path, name: str, base: str, bundle: str, *more: str) -> subprocess.CompletedProcess[str]:
    libraries = bundles.ensure(bundle, progress=False).path
    command = [sys.executable, "build_ffi.py", "adopt", name, str(libraries), "--base", base, *more]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=100, check=False)


def entry(text: str, name: str) -> str:
    """A profile's part of profiles.toml, from its versions on."""
    part = text.partition(f'name = "{name}"')[2].partition("[[profile]]")[0]
    return part[part.index("llama_version") :].strip()


def test_profile_made_again(checkout: Path) -> None:
    """From v0.6.0, the changed struct and the library comes the entry of b11669 that is kept here."""
    (checkout / "source.h").write_text(PERF)
    done = adopt(checkout, "again", "v0.6.0", "b11669-cpu", "--source", "source.h")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed: struct llama_perf_context_data" in done.stdout
    made = (checkout / "headers" / "profiles.toml").read_text()
    assert entry(made, "again") == entry(made, "b11669")
    assert (checkout / "llcuda_ffi" / "native" / "_abi_again.py").exists()


@pytest.mark.parametrize(
    ("bundle", "base", "source", "said"),
    [
        ("b11669-cpu", "v0.6.0", None, "llama_perf_context writes 56 bytes, struct llama_perf_context_data has 48"),
        ("v0.6.0-cpu", "v0.6.0", "int32_t llama_n_threads(struct llama_context * ctx, bool batch);", "llama_n_threads"),
        ("v0.6.0-cpu", "v0.6.0", "struct llama_logit_bias { llama_token token; double bias; };", "llama_logit_bias"),
        ("v0.6.0-cpu", "v9", None, "--base must be one of"),
    ],
)
def test_what_has_to_be_decided(checkout: Path, bundle: str, base: str, source: str | None, said: str) -> None:
    """A layout that the library does not confirm, and a change of meaning, write nothing and say what it is."""
    more = []
    if source is not None:
        (checkout / "source.h").write_text(source)
        more = ["--source", "source.h"]
    before = (checkout / "headers" / "profiles.toml").read_text()
    done = adopt(checkout, "again", base, bundle, *more)
    assert done.returncode == 1
    assert said in done.stdout
    assert (checkout / "headers" / "profiles.toml").read_text() == before
    assert not (checkout / "headers" / "profile_again.h").exists()
