"""Opens files in a process of its own, named on stdin, one answer a line on stdout: `python -m
tests.support.gguf_worker [--trial] [--adapter | --state KIND | --projector | --medium]`: model files, adapters of a
tiny llama, saved states of a tiny model of that kind, projectors for a tiny llama, images and sounds.

The first line says that it has started. An answer is JSON: ["ok", tokens], ["refused", message] for an exception of
ours, ["bug", traceback] for any other.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llcuda_ffi.core.adapter import LoraAdapter, set_adapters
from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.projector import Image, Projector
from llcuda_ffi.core.state import SavedState, restore_state, save_state
from llcuda_ffi.enums import VocabType
from llcuda_ffi.errors import InvalidRequest, LlcudaError
from llcuda_ffi.multimodal.media import read_image, read_sound

from .tiny_architectures import TINY
from .tiny_projector import make_tiny_projector, make_tiny_seer

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
    """A tiny model on which adapters and states are opened.

    Attributes:
        context: of two sequences, each with cells of its own.
    """

    def __init__(self, folder: Path, kind: str = "llama") -> None:
        path = folder / "base.gguf"
        TINY[kind]().write(path)
        self.model = Model.load(path, trial=TRIAL)
        self.context = Context(self.model, n_ctx=512, n_batch=64, n_seq_max=2, n_threads=1, n_threads_batch=1)

    def decode(self, position: int, n: int = 4, seq_id: int = 0) -> list[object]:
        """So many tokens from there on."""
        batch = Batch(64)
        for token in range(n):
            batch.add(token + 1, position + token, seq_id, output=True)
        self.context.decode(batch)
        return ["ok", n]

    def states(self) -> list[SavedState]:
        """States of every form: of a sequence, what of it cannot be rolled back, of the context."""
        self.decode(0, 12)
        self.decode(0, 5, 1)
        return [
            save_state(self.context, 0, tokens=range(1, 13)),
            save_state(self.context, 1, tokens=range(1, 6)),
            save_state(self.context, 0, tokens=range(1, 13), partial_only=True),
            save_state(self.context, tokens=range(1, 13)),
        ]

    def clear(self) -> None:
        """Forget everything."""
        assert self.context.memory is not None
        self.context.memory.clear()

    def use_adapter(self, path: str) -> list[object]:
        """Load it, and decode with it."""
        with LoraAdapter.load(self.model, path) as adapter:
            set_adapters(self.context, {adapter: 1.0})
            self.clear()
            return self.decode(0)

    def use_state(self, path: str) -> list[object]:
        """Restore it where it belongs, and decode after it, in both sequences."""
        self.clear()
        state = SavedState.from_bytes(Path(path).read_bytes())
        restore_state(self.context, state, None if state.whole else 0)
        memory = self.context.memory
        assert memory is not None
        for seq_id in (0, 1):
            held = memory.positions(seq_id)
            self.decode(0 if held is None else held[1] + 1, 4, seq_id)
        return ["ok", 4]


class Seer:
    """A tiny llama for which projectors are opened, and one that images are given to."""

    def __init__(self, folder: Path) -> None:
        make_tiny_seer(folder / "base.gguf")
        make_tiny_projector(folder / "mmproj.gguf")
        self.model = Model.load(folder / "base.gguf", trial=TRIAL)
        self.projector = Projector(self.model, folder / "mmproj.gguf", n_threads=1)
        self.image = Image(np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8))

    def use_projector(self, path: str) -> list[object]:
        """Load it, and encode an image."""
        with Projector(self.model, path, n_threads=1) as projector:
            return ["ok", len(projector.encode([self.image]))]

    def use_medium(self, path: str) -> list[object]:
        """Read it as an image, and encode that; else as a sound."""
        raw = Path(path).read_bytes()
        try:
            return ["ok", len(self.projector.encode([read_image(raw)]))]
        except InvalidRequest:
            return ["ok", len(read_sound(raw, 16_000).samples)]


def opener() -> Callable[[str], list[object]]:
    """What opens the files."""
    if "--projector" in sys.argv or "--medium" in sys.argv:
        seer = Seer(Path(tempfile.mkdtemp()))
        return seer.use_projector if "--projector" in sys.argv else seer.use_medium
    if "--adapter" in sys.argv:
        return Base(Path(tempfile.mkdtemp())).use_adapter
    if "--state" in sys.argv:
        return Base(Path(tempfile.mkdtemp()), sys.argv[sys.argv.index("--state") + 1]).use_state
    return use


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, 32 << 30))
    open_file = opener()
    print('["ready"]', flush=True)
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
