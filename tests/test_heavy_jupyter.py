"""The notebook helpers, executed in a real notebook (extra jupyter)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .tiny_model import make_tiny_llama

pytestmark = pytest.mark.heavy

CELLS = [
    "from llcuda_ffi import Llama, jupyter\nllm = Llama(MODEL, n_ctx=256)\nS = dict(max_tokens=8, ignore_eos=True)",
    "text = jupyter.stream_generate(llm, 'the quick', **S)\nassert jupyter.stream_generate(llm, 'the quick', "
    "markdown=True, **S)\nassert text",
    "assert len(jupyter.progress_generate(llm, ['a', 'b'], **S)) == 2",
    "jupyter.display_metrics(llm)",
    "found = jupyter.compare_temperatures(llm, 'the dog', (0.0, 1.5), **S)\nassert list(found) == [0.0, 1.5]",
    "tokens = jupyter.visualize_tokens(llm, 'the quick <b>')\nassert ''.join(p for _, p in tokens) == 'the quick <b>'",
    "chat = jupyter.ChatWidget(llm, 'Be brief.', max_tokens=8, ignore_eos=True)\nchat.display()\n"
    "pieces = []\nanswer = chat.send('hello', pieces.append)\nassert ''.join(pieces) == answer and answer\n"
    "assert [m['role'] for m in chat.messages] == ['system', 'user', 'assistant']\nchat.clear()\n"
    "assert len(chat.messages) == 1\nchat._send.click()\nllm.close()",
]


@pytest.mark.filterwarnings("ignore")  # Jupyter's own deprecations are not ours
def test_notebook(tmp_path: Path) -> None:
    """Every helper runs in a notebook's kernel, and shows what it should in its cell."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipywidgets")
    make_tiny_llama(tmp_path / "tiny.gguf")
    cells = [nbformat.v4.new_code_cell(f"MODEL = {str(tmp_path / 'tiny.gguf')!r}")]
    cells += [nbformat.v4.new_code_cell(source) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [json.dumps(cell.outputs) for cell in notebook.cells]
    assert "<pre" in shown[2]
    assert "completion_tokens" in shown[4]
    assert "<table>" in shown[5]
    assert "&lt;</span>" in shown[6]
    assert "widget-view" in shown[7]
