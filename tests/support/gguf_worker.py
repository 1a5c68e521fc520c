"""Opens files in a process of its own, named on stdin, one answer a line on stdout: `python -m
tests.support.gguf_worker [--trial] [--adapter | --state]`: model files, or adapters or saved states of a tiny llama.

An answer is JSON: ["ok", tokens], ["refused", message] for an exception of ours, ["bug",
traceback] for any other.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from llcuda_ffi.core.adapter import LoraAdapter, set_adapters
from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.state import SavedState, restore_state
from llcuda_ffi.enums import VocabType
from llcuda_ffi.errors import LlcudaError

from .tiny_model import make_tiny_llama

# without it every file is opened here: what would end this process shows what the preflight does not know
TRIAL = "--trial" in sys.argv

TEXTS = [
    "Hello the world \n\n 12345 \U0001f600 <|im_start|>x",
    "",
    "the dog été 中文 \u0301\0a",
    b"\x00\xff\xc3( a",
]


def use(path: str) -> list[object]:
    """Load, tokenize, decode three batches as a careful user would."""
    with Model.load(path, trial=TRIAL) as model:
        vocab = model.vocab
        if vocab.type != VocabType.NONE:
            for text in TEXTS:
                for special in (False, True):
                    ids = vocab.tokenize(text, add_special=special, parse_special=special)
                    vocab.detokenize(ids)
            for token in range(0, vocab.n_tokens, max(1, vocab.n_tokens // 200)):
                vocab.piece(token, special=True)
        n = vocab.n_tokens
        embeddings = "bert" in model.architecture
        with Context(
            model, n_ctx=64, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1, embeddings=embeddings
        ) as context:
            batch, position = Batch(8), 0
            for ids in ([0, n - 1, n // 2, 5 % n], [n // 3], [1 % n]):
                batch.clear()
                for token in ids:
                    batch.add(token, position, output=True)
                    position += 1
                if model.has_encoder:
                    context.encode(batch)
                if model.has_decoder:
                    context.decode(batch)
            if not embeddings:
                context.logits(0)
    return ["ok", position]


class Base:
    """A tiny llama on which adapters and states are opened."""

    def __init__(self, folder: Path) -> None:
        path = folder / "base.gguf"
        make_tiny_llama(path)
        self.model = Model.load(path, trial=TRIAL)
        self.context = Context(self.model, n_ctx=64, n_batch=64, n_threads=1, n_threads_batch=1)

    def decode(self, position: int) -> list[object]:
        """Four tokens from there on."""
        batch = Batch(8)
        for token in range(4):
            batch.add(token + 1, position + token, output=True)
        self.context.decode(batch)
        return ["ok", 4]

    def use_adapter(self, path: str) -> list[object]:
        """Load it, and decode with it."""
        with LoraAdapter.load(self.model, path) as adapter:
            set_adapters(self.context, {adapter: 1.0})
            assert self.context.memory is not None
            self.context.memory.clear()
            return self.decode(0)

    def use_state(self, path: str) -> list[object]:
        """Restore it, and decode after it."""
        assert self.context.memory is not None
        self.context.memory.clear()
        with open(path, "rb") as file:
            tokens = restore_state(self.context, SavedState.from_bytes(file.read()), 0)
        return self.decode(len(tokens))


def opener() -> Callable[[str], list[object]]:
    """What opens the files."""
    if "--adapter" in sys.argv or "--state" in sys.argv:
        base = Base(Path(tempfile.mkdtemp()))
        return base.use_adapter if "--adapter" in sys.argv else base.use_state
    return use


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, 32 << 30))
    open_file = opener()
    for line in sys.stdin:
        try:
            answer = open_file(line.rstrip("\n"))
        except LlcudaError as error:
            answer = ["refused", f"{type(error).__name__}: {error}"]
        except BaseException:
            answer = ["bug", traceback.format_exc()]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
