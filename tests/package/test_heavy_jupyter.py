"""Notebooks executed by a real kernel: the helpers (extra jupyter), and the notebook of docs/."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from ..support.tiny_model import make_tiny_llama

pytestmark = pytest.mark.heavy

COLAB = Path(__file__).resolve().parents[2] / "docs" / "llcuda_colab.ipynb"

CELLS = [
    "from llcuda_ffi import Llama, jupyter\nllm = Llama(MODEL, n_ctx=256)\nS = dict(max_tokens=8, ignore_eos=True)",
    "text = jupyter.stream_generate(llm, 'the quick', **S)\nassert jupyter.stream_generate(llm, 'the quick', "
    "markdown=True, **S)\nassert text",
    "assert len(jupyter.progress_generate(llm, ['a', 'b'], **S)) == 2",
    "jupyter.display_metrics(llm)",
    "found = jupyter.compare_temperatures(llm, 'the dog', (0.0, 1.5), **S)\nassert list(found) == [0.0, 1.5]",
    "tokens = jupyter.visualize_tokens(llm, 'the quick <b>')\nassert ''.join(p for _, p in tokens) == 'the quick <b>'",
    "jupyter.stream_generate(llm, 'the quick', **S)",
    "llm.generate('the <b>quick', **S)",
    "llm.chat([{'role': 'user', 'content': 'hi'}], template='chatml', **S)",
    "llm.metrics()",
    "jupyter.ChatWidget(llm, template='chatml', **S)",
    "chat = jupyter.ChatWidget(llm, 'Be brief.', max_tokens=8, ignore_eos=True)\nchat.display()\n"
    "pieces = []\nanswer = chat.send('hello', pieces.append)\nassert ''.join(pieces) == answer and answer\n"
    "assert [m['role'] for m in chat.messages] == ['system', 'user', 'assistant']\nchat.clear()\n"
    "assert len(chat.messages) == 1\nchat._send.click()\n"
    "chat._field.value = 'x ' * 500\nchat._send.click()\nassert 'context' in chat._log.value\nllm.close()",
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
    assert shown[7].count("output_type") == 1  # what was streamed is not shown again as the cell's value
    assert "tokens/s" in shown[8]
    assert "tokens/s" in shown[9]
    assert "completion_tokens" in shown[10]
    assert "widget-view" in shown[11]
    assert "widget-view" in shown[12]


@pytest.mark.filterwarnings("ignore")  # Jupyter's own deprecations are not ours
def test_colab_notebook(smollm2: Path, minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of docs/llcuda_colab.ipynb runs, with the real models, and shows what its text says."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # its `!llcuda-ffi`
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipywidgets")
    pytest.importorskip("sklearn")
    notebook = nbformat.read(COLAB, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)  # none that no run produced
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()

    def shown(source: str) -> str:
        found = [cell for cell in cells if source in cell.source]
        assert len(found) == 1, source
        return json.dumps(found[0].outputs, ensure_ascii=False)

    assert "local" in shown("detect_platform")
    assert "tokens/s" in shown("demo --max-tokens")
    assert "tokens/s" in shown("engine.infer(")
    assert shown("batch_infer").count("→") == 4
    assert "tokens_per_sec" in shown("batch_infer")
    assert len(shown("infer_stream")) > 100
    assert "<pre" in shown("stream_generate")
    assert "widget-view" in shown("ChatWidget")
    assert "cat sleeps" in shown("SemanticSearch")
    assert "['A cat sleeps on the sofa', 'Kittens like to play', 'Dogs bark at the postman']" in shown("TextClustering")
