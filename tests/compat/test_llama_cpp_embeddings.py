"""llama-cpp-python's embed: its shapes, and the settings that it obeys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi.compat.llama_cpp import Llama
from llcuda_ffi.enums import PoolingType
from llcuda_ffi.errors import InvalidRequest, UnsupportedModel

from ..support.tiny_model import make_tiny_bert, make_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that pools and one that does not."""
    folder = tmp_path_factory.mktemp("embeddings")
    make_tiny_llama(folder / "model.gguf")
    make_tiny_bert(folder / "bert.gguf")
    return folder


def test_model_that_does_not_pool(folder: Path) -> None:
    """A model that generates gives the vector of each token, also after embedding other texts; normalized where asked."""
    with Llama(folder / "model.gguf", embedding=True, verbose=False) as llm:
        n = len(llm.tokenize(b"the quick fox"))
        assert llm.pooling_type() == PoolingType.NONE
        assert np.shape(llm.embed("the quick fox")) == (n, 32)
        many, count = llm.embed((text for text in ["the quick fox", "one"]), normalize=True, return_count=True)
        assert [np.shape(rows) for rows in many] == [(n, 32), (count - n, 32)]
        assert np.allclose(np.linalg.norm(many[0], axis=1), 1, atol=1e-5)
        assert np.shape(llm.create_embedding("one")["data"][0]["embedding"]) == (count - n, 32)
        assert llm("Once", max_tokens=2)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("kind", ["MEAN", "CLS", "LAST"])
def test_pooling_type(folder: Path, kind: str) -> None:
    """What is asked for wins over the file; a model that says it pools does."""
    with Llama(folder / "model.gguf", embedding=True, pooling_type=PoolingType[kind].value, verbose=False) as llm:
        assert np.shape(llm.embed("the quick fox")) == (32,)
    with Llama(folder / "bert.gguf", embedding=True, pooling_type=-1, verbose=False) as llm:
        assert (np.shape(llm.embed("the cat")), llm.pooling_type()) == ((32,), PoolingType.MEAN)


def test_rank(folder: Path) -> None:
    """Scores are not vectors: the error names what gives them."""
    with pytest.raises(UnsupportedModel, match="Reranker"):
        Llama(folder / "bert.gguf", embedding=True, pooling_type=4, verbose=False)


def test_settings(folder: Path) -> None:
    """Threads, layers and flash attention are the embedder's too: what is out of range is told."""
    for name, value in (("device", "tpu"), ("n_threads", 1000), ("n_gpu_layers", "some"), ("n_threads", "many")):
        with pytest.raises(InvalidRequest, match=name):
            Llama(folder / "bert.gguf", embedding=True, verbose=False, **{name: value})
    for flash in (True, False):
        with Llama(
            folder / "bert.gguf", embedding=True, n_threads=1, flash_attn=flash, device=None, f16_kv=False
        ) as llm:
            assert np.shape(llm.embed("the cat")) == (32,)
