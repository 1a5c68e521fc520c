"""Loads GGUF files in a process of its own, named on stdin, one answer a line on stdout: `python -m
tests.support.gguf_worker`.

An answer is JSON: ["ok", tokens], ["refused", message] for an exception of ours, ["bug",
traceback] for any other.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback

from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.enums import VocabType
from llcuda_ffi.errors import LlcudaError

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


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, 32 << 30))
    for line in sys.stdin:
        try:
            answer = use(line.rstrip("\n"))
        except LlcudaError as error:
            answer = ["refused", f"{type(error).__name__}: {error}"]
        except BaseException:
            answer = ["bug", traceback.format_exc()]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
