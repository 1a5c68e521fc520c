"""`llcuda-ffi bundle tune`: every installed bundle is measured, the fastest can be chosen."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from llcuda_ffi import bundles
from llcuda_ffi.bundles import InstalledBundle, store
from llcuda_ffi.cli.bundle import command
from llcuda_ffi.errors import BundleError

from ..support.tiny_model import make_tiny_llama


def test_tune(bundle_b7698: InstalledBundle, cache: Path, tmp_path: Path) -> None:
    """One row for each bundle with what it measured, the fastest first; `--use` has it used; a broken one is told."""
    make_tiny_llama(tmp_path / "tiny.gguf")
    run = CliRunner().invoke
    done = run(command, ["tune", str(tmp_path / "tiny.gguf")])
    assert isinstance(done.exception, BundleError)
    place = store.bundles_folder()
    place.mkdir(parents=True)
    for name in (bundle_b7698.name, "v0.5.0-cpu"):
        (place / name).symlink_to(bundle_b7698.path.parent / name)
    done = run(command, ["tune", str(tmp_path / "tiny.gguf"), "-r", "1", "--use", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert {row["bundle"] for row in rows} == {bundle_b7698.name, "v0.5.0-cpu"}
    assert rows[0]["seconds"] <= rows[1]["seconds"]
    assert all(row["prompt_tokens_per_s"] > 0 and row["generated_tokens_per_s"] > 0 for row in rows)
    assert bundles.chosen_name() == rows[0]["bundle"]
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    done = run(command, ["tune", str(tmp_path / "tiny.gguf")])
    assert isinstance(done.exception, BundleError)
    assert "v0.5.0-cpu: " in done.stderr
