"""The disk tier: prefixes that outlive a process, are shared by processes, and are never trusted unseen."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from llcuda_ffi import Llama
from llcuda_ffi.cli import cache as cache_command
from llcuda_ffi.core.adapter import set_control_vector
from llcuda_ffi.engine.disk_store import DiskStore
from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.params import byte_size

from ..support.generation import known_kinds, oldest
from ..support.random_reuse import RandomReuse
from ..support.server_process import Server
from ..support.tiny_architectures import TINY, lively

PROMPT = [3 + i * 7 % 240 for i in range(400)]
MORE: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "ignore_eos": True}
SETTINGS: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, "kv_type": "f32", "disk_cache": "1GiB"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the disk cache is."""
    monkeypatch.setenv("LLCUDA_FFI_DISK_CACHE", str(tmp_path / "prefix"))
    return tmp_path / "prefix"


def model(tmp_path: Path, name: str = "llama") -> Path:
    path = tmp_path / "model"
    if not path.exists():
        lively(TINY[name]()).write(path)
    return path


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize(
    "name", known_kinds(["llama", "deepseek2", "gemma3", "mamba", "lfm2-window", "granite-hybrid", "qwen35"])
)
def test_after_a_restart(tmp_path: Path, folder: Path, name: str, flash_attn: bool) -> None:
    """The next turn computes only what is new, and a prompt that leaves the first one goes on from what they share;
    with other slots, and with the answer of a cold run."""
    path = model(tmp_path, name)
    settings = {**SETTINGS, "flash_attn": flash_attn}
    with Llama(path, n_parallel=1, **settings) as llm:
        first = llm.generate(PROMPT, **MORE)
        assert first.usage.cached_tokens == 0
    going_on = [*PROMPT, *first.token_ids, 5, 6, 7]
    # 384 are there, and 19 left to be computed: with full attention 64, in a tile (AttentionTile)
    parted = 403 - 64 if flash_attn and name in ("llama", "deepseek2") else 384
    for prompt, slots, least in ((going_on, 2, 404), ([*PROMPT, 9, 9, 9], 3, parted)):
        with Llama(path, n_parallel=slots, **settings) as llm:
            warm = llm.generate(prompt, **MORE)
            assert warm.usage.cached_tokens >= least
            assert llm.metrics().reused["disk"] == warm.usage.cached_tokens
            assert warm.token_ids == llm.generate(prompt, **MORE, prefix_cache=False).token_ids


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba", "lfm2-window", "granite-hybrid"])
def test_random_requests(tmp_path: Path, folder: Path, name: str) -> None:
    """With one slot and every tier, each answer is that of a cold run."""
    run = RandomReuse(model(tmp_path, name), 5, n_parallel=1, disk_cache="100MB", host_cache_bytes="200KB")
    try:
        tally = run.run(16, tmp_path)
        assert sum(run.warm.metrics().reused.values()) >= tally.cached_tokens
    finally:
        run.close()
    assert not tally.wrong


def test_what_is_computed_otherwise_is_not_found(tmp_path: Path, folder: Path) -> None:
    """Other KV types and rope settings have files of their own; with a control vector nothing is written or read."""
    path = model(tmp_path)
    with Llama(path, **SETTINGS) as llm:
        llm.generate(PROMPT, **MORE)
    with Llama(path, **{**SETTINGS, "kv_type": "f16"}) as llm:
        assert llm.generate(PROMPT, **MORE).usage.cached_tokens == 0
    before = len(list(folder.rglob("*")))
    with Llama(path, **SETTINGS) as llm:
        set_control_vector(llm.context, np.full((1, 32), 0.5, np.float32))
        assert llm.generate([*PROMPT, 4], **MORE).usage.cached_tokens == 0
    assert len(list(folder.rglob("*"))) == before


def test_changed_files(tmp_path: Path, folder: Path) -> None:
    """Files that were changed or cut are removed and computed again, before libllama sees them."""
    path = model(tmp_path)
    with Llama(path, **SETTINGS) as llm:
        cold = llm.generate(PROMPT, **MORE)
    files = sorted(folder.rglob("kv-*"))
    assert len(files) == 3
    raw = bytearray(files[0].read_bytes())
    raw[len(raw) // 2] ^= 1
    files[0].write_bytes(raw)
    with Llama(path, **SETTINGS) as llm:
        again = llm.generate(PROMPT, **MORE)
        assert again.usage.cached_tokens == 0
        assert again.token_ids == cold.token_ids
    for file in folder.rglob("*-*"):
        file.write_bytes(file.read_bytes()[:100])
    with Llama(path, **SETTINGS) as llm:
        assert llm.generate(PROMPT, **MORE).token_ids == cold.token_ids
    with Llama(path, **SETTINGS) as llm:  # written anew
        assert llm.generate(PROMPT, **MORE).usage.cached_tokens == 384


@pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX's")
def test_only_our_own_folder(tmp_path: Path, folder: Path) -> None:
    """A folder that others may write, or a link to another one, is refused; ours is closed to others."""
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(InvalidRequest, match="own folder"):
        Llama(model(tmp_path), **SETTINGS)
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidRequest, match="own folder"):
        Llama(model(tmp_path), **SETTINGS)
    folder.unlink()
    folder.write_text("a file is in its place")
    with pytest.raises(InvalidRequest, match=r"cannot be made .*LLCUDA_FFI_DISK_CACHE"):
        Llama(model(tmp_path), **SETTINGS)
    folder.unlink()
    with Llama(model(tmp_path), **SETTINGS) as llm:
        llm.generate(PROMPT, **MORE)
    for path in (folder, *folder.rglob("*")):
        assert not path.stat().st_mode & 0o077 or path.name == ".lock"


def test_budget(tmp_path: Path) -> None:
    """The folder stays within its budget: what was used longest ago goes first, what is in use stays."""
    store = DiskStore(tmp_path / "store", 10_000)
    for i in range(30):
        store.write("group", [(f"end-{i}-x", [bytes(900)])])
        store.touch("group", ["end-0-x"])
        assert store.usage().nbytes <= 10_000
    assert {"end-0-x", "end-29-x"} <= store.names("group")
    assert store.read("group", "end-29-x") == bytes(900)
    assert store.read("group", "end-5-x") is None
    store.write("group", [("end-99-x", [bytes(20_000)])])
    assert store.read("group", "end-99-x") is None
    assert store.clear().files > 0
    assert store.usage().files == 0


def test_command(tmp_path: Path, folder: Path) -> None:
    """`llcuda-ffi cache info` counts, `clear` removes."""
    with Llama(model(tmp_path), **SETTINGS) as llm:
        llm.generate(PROMPT, **MORE)
    run = CliRunner()
    shown = json.loads(run.invoke(cache_command.command, ["info", "--json"]).output)
    assert shown["folder"] == str(folder)
    assert shown["files"] == 4
    assert shown["models"] == 1
    assert "4 files" in run.invoke(cache_command.command, ["info"]).output
    assert "removed 4 files" in run.invoke(cache_command.command, ["clear"]).output
    assert json.loads(run.invoke(cache_command.command, ["info", "--json"]).output)["bytes"] == 0


def test_server(tmp_path: Path, folder: Path) -> None:
    """`serve --disk-cache`: after kill -9 and a new start a prompt goes on from the disk, as /metrics says."""
    path, prompt = model(tmp_path), PROMPT
    rest = 16 + 3 if oldest() else 64  # b7698 has no tiles of attention: what is kept in chunks of 128 is used as it is
    for start, kept in ((0, 0), (1, len(PROMPT) + 3 - rest)):
        server = Server(tmp_path / f"log{start}", path, "-c", 1024, "--disk-cache", "100MB")
        try:
            status, answer = server.post("/v1/completions", prompt=prompt, max_tokens=4, temperature=0)
            assert status == 200, answer
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == kept
            assert server.metric(r'reused_tokens_total\{tier="disk"\}') == kept
            until = time.monotonic() + 60
            while not list(folder.rglob("end-40*")):  # a thread writes it
                assert time.monotonic() < until
                time.sleep(0.05)
        finally:
            server.process.kill()
            server.stop()
        prompt = [*PROMPT, 5, 6, 7]


CHILD = """
import random, sys
from llcuda_ffi import Llama
path, seed, budget = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
with Llama(path, n_ctx=1024, n_parallel=1, n_threads=1, kv_type="f32", disk_cache=budget) as llm:
    print("ready", flush=True)
    while True:
        own = random.Random(rng.randrange(8))
        stem = [3 + (i * 7 + own.randrange(3)) % 240 for i in range(own.randrange(150, 500))]
        first = llm.generate(stem, max_tokens=8, temperature=0, ignore_eos=True)
        llm.generate([*stem, *first.token_ids, 9], max_tokens=2)
"""


def killed_while_they_write(path: Path, seeds: range, budget: int, rng: random.Random, longest: float) -> None:
    """A process for each seed, killed at some moment of its work."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(seed), str(budget)], stdout=subprocess.PIPE, text=True
        )
        for seed in seeds
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            time.sleep(rng.uniform(0.2, longest))
            child.send_signal(signal.SIGKILL)
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


@pytest.mark.parametrize(
    ("processes", "rounds", "longest"),
    [(3, 1, 0.8), pytest.param(8, 6, 3.0, marks=[pytest.mark.soak, pytest.mark.timeout(0)])],
)
def test_processes_killed_at_random(tmp_path: Path, folder: Path, processes: int, rounds: int, longest: float) -> None:
    """Several processes write one cache and are killed: what is left is whole, within the budget, and true."""
    path, budget, rng = model(tmp_path), 600_000, random.Random(3)
    store = DiskStore(folder, budget)
    for number in range(rounds):
        killed_while_they_write(path, range(number * processes, (number + 1) * processes), budget, rng, longest)
        usage = store.usage()
        assert 0 < usage.nbytes <= budget
        [group] = [entry.name for entry in folder.iterdir() if entry.is_dir()]
        assert not [name for name in store.names(group) if name.startswith(".tmp")]
        assert all(store.read(group, name) is not None for name in store.names(group))
        with Llama(path, **{**SETTINGS, "disk_cache": budget}, n_parallel=1) as llm:
            for seed in range(8):
                own = random.Random(seed)
                stem = [3 + (i * 7 + own.randrange(3)) % 240 for i in range(own.randrange(150, 500))]
                warm = llm.generate(stem, **MORE)
                assert warm.token_ids == llm.generate(stem, **MORE, prefix_cache=False).token_ids
            reused = llm.metrics().reused["disk"]
            assert reused > 0
        print(f"{(number + 1) * processes} killed: {usage}, {reused} tokens then read")


@pytest.mark.parametrize(
    ("text", "n"), [("16GiB", 16 << 30), ("1.5 KiB", 1536), ("2MB", 2_000_000), ("7", 7), (12, 12), ("3b", 3)]
)
def test_byte_size(text: str | int, n: int) -> None:
    """Sizes are numbers of bytes, or texts with a unit."""
    assert byte_size("x", text) == n


@pytest.mark.parametrize("bad", ["GiB", "-1", "1e9", "5 parsecs", None, 1.5, True])
def test_no_byte_size(bad: Any) -> None:
    """What is no size is refused, and told how it is written."""
    with pytest.raises(InvalidRequest, match=r"16GiB|from 0 to"):
        byte_size("x", bad)
