"""llama-cpp-python's own code on the bundle's libllama, in a child process, to compare with.

Its package needs no build for that: only its Python files, of 0.3.36, are used (`pip download --no-binary :all:
--no-deps llama-cpp-python==0.3.36`, then unpack), with numpy, jinja2, diskcache and typing_extensions. Functions that
this libllama lacks and that completions do not use are replaced by stubs.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("libggml-base", "libggml", "libllama")


class Peer:
    """The child process: it answers one request at a time."""

    def __init__(self, folder: str, llm: Any, *, n_ctx: int, n_threads: int) -> None:
        bundle = llm.model.library.bundle
        command = [sys.executable, __file__, os.path.abspath(folder), str(bundle.path), str(llm.model.path)]
        command += [str(n_ctx), str(n_threads)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        self.name = json.loads(self._child.stdout.readline())

    def complete(self, prompts: Sequence[Sequence[int]], n_tokens: int, *, schema: Any = None) -> int:
        """Complete the prompts one after another, sampled as everywhere here; returns the tokens made.

        Args:
            schema: a JSON schema, which its own grammar holds the text to.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(
            json.dumps({"prompts": [list(p) for p in prompts], "n_tokens": n_tokens, "schema": schema}) + "\n"
        )
        self._child.stdin.flush()
        made = json.loads(self._child.stdout.readline())
        if made < 0.98 * n_tokens * len(prompts):
            raise RuntimeError(f"the peer made only {made} tokens of {n_tokens * len(prompts)}: not to be compared")
        return int(made)

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(10)


class _Library(ctypes.CDLL):
    """A library whose missing functions fail when they are called, not when they are declared."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not name.startswith(("llama_", "ggml_")):
                raise

            def missing(*_: object) -> None:
                raise NotImplementedError(name)

            return missing


def boot(folder: str, bundle: Path) -> Any:
    """Import llama_cpp over the bundle's libraries, under the names that it looks for."""
    links = Path(tempfile.mkdtemp(prefix="peer-"))
    for file in bundle.glob("*.so*"):
        (links / file.name).symlink_to(file)
    for name in NAMES:
        target = next(f for f in bundle.iterdir() if f.name.startswith(name + "."))
        link = links / f"{name}.so"
        if not link.exists():
            link.symlink_to(target)
    os.environ["LLAMA_CPP_LIB_PATH"] = str(links)
    sys.path.insert(0, folder)
    ctypes.CDLL = _Library  # type: ignore[misc]
    ggml = ctypes.CDLL(str(links / "libggml.so"), mode=ctypes.RTLD_GLOBAL)
    load_all = ggml.ggml_backend_load_all_from_path
    load_all.argtypes, load_all.restype = [ctypes.c_char_p], None
    load_all(str(bundle).encode())
    import llama_cpp

    return llama_cpp


def serve(folder: str, bundle: str, model: str, n_ctx: int, n_threads: int) -> None:
    """The child's work."""
    llama_cpp = boot(folder, Path(bundle))
    llm = llama_cpp.Llama(
        model, n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, flash_attn=True, verbose=False
    )
    end = {llama_cpp.llama_vocab_eos(llm._model.vocab): float("-inf")}
    eot = llama_cpp.llama_vocab_eot(llm._model.vocab)
    if eot >= 0:
        end[eot] = float("-inf")
    print(json.dumps(f"llama-cpp-python {llama_cpp.__version__}, its Python code"), flush=True)
    for request in sys.stdin:
        wanted = json.loads(request)
        made = 0
        for prompt in wanted["prompts"]:
            llm.reset()
            # without logit_bias: its own is a Python callback over all logits, which would be unfair; generate()
            # does not stop at the end token, and the text is made as create_completion makes it at its end
            tokens = []
            grammar = None
            if wanted["schema"] is not None:
                grammar = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(wanted["schema"]), verbose=False)
            for token in llm.generate(prompt, top_k=40, top_p=0.95, min_p=0.0, temp=0.8, grammar=grammar):
                tokens.append(token)
                if len(tokens) == wanted["n_tokens"]:
                    break
            llm.detokenize(tokens, prev_tokens=prompt)
            made += len(tokens)
        print(json.dumps(made), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
