"""The registry of models by name, and the commands that list it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llcuda_ffi.cli.model import command
from llcuda_ffi.errors import InvalidRequest, ModelNotFound
from llcuda_ffi.hub import registry as models

from ..support.hub import CONTENT, resolve


def test_registry_is_well_formed() -> None:
    """Each name has a source, a way to it, and either a pinned size and hash or a rough size."""
    for model in models.all_models():
        assert model.file.endswith(".gguf")
        assert model.sources
        from_hub = {"hub", "hub, converted"} & set(model.sources)
        assert bool(from_hub) == (model.repo is not None)
        assert ("wheel, converted" in model.sources) == (model.convert_wheel is not None)
        assert ("wheels" in model.sources) == bool(model.wheels)
        assert (model.size is None) == (model.sha256 is None)
        assert model.estimated_size > 0


def test_commands(cache: Path) -> None:
    """`model list|path|recommend` tell the truth about an empty cache."""
    run = CliRunner().invoke
    listed = run(command, ["list"]).stdout.splitlines()
    assert len(listed) == len(models.all_models())
    assert listed[0].startswith("smollm2-135m")
    assert [" unpinned " in line for line in listed] == [model.sha256 is None for model in models.all_models()]
    rows = json.loads(run(command, ["list", "--json"]).stdout)
    assert all(row["path"] is None for row in rows)
    assert isinstance(run(command, ["path", "smollm2-135m"]).exception, ModelNotFound)
    sizes = [row["estimated_size"] for row in json.loads(run(command, ["recommend", "--memory", "2", "--json"]).stdout)]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < max(sizes) < 1.5e9
    assert run(command, ["recommend"]).exit_code == 0


def test_recommend_for_odd_memory(cache: Path) -> None:
    """`model recommend` refuses what is no amount of memory, and says so where nothing fits."""
    run = CliRunner().invoke
    for value in ("nan", "inf", "-1"):
        assert isinstance(run(command, ["recommend", "--memory", value]).exception, InvalidRequest)
    nothing = run(command, ["recommend", "--memory", "0.1"])
    assert nothing.exit_code == 0
    assert not nothing.stdout
    assert "no model of the list fits" in nothing.stderr


def test_names_that_are_nearly_right(tmp_path: Path) -> None:
    """A name of the registry or of a file that is misspelt is told the nearest one."""
    with pytest.raises(ModelNotFound, match="did you mean smollm2-135m"):
        resolve("smollm-135m")
    (tmp_path / "model-q4.gguf").write_bytes(CONTENT)
    with pytest.raises(ModelNotFound, match=r"did you mean model-q4\.gguf"):
        resolve(str(tmp_path / "model-q5.gguf"))
    assert models.get("sentence-transformers/all-MiniLM-L6-v2").name == "all-minilm-l6-v2"
