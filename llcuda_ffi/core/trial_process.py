"""The process that tries files for core/trial.py. It loads libllama, then forks for each file, and tells how it ended.

Lines of JSON: first the bundle, then a job each; an answer for each, {"status": exit code or -signal, "words": stderr}.
Nothing here has threads, so that forking is safe, and nothing is computed but in a fork.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..bundles import InstalledBundle
from ..gguf.types import ValueType
from ..gguf.writer import Typed, write_gguf
from ..hardware.cpu import usable_cores
from ..native.load import Library, inherited, load
from ..params import ContextParams, ModelParams
from .adapter import LoraAdapter, set_adapters
from .batch import Batch
from .context import Context
from .dry_run import dry_run
from .hidden_batch import HiddenBatch
from .model import Model

IDLE_SECONDS = 30.0
SMALL = 32 << 20  # up to this size a model is loaded whole, and computes
_TEXT = "Hello the world \n\n 12345 \U0001f600 <|im_start|>x été 中文".encode()
# of the control
_EMBD, _FF, _VOCAB = 32, 32, 64
_SETTINGS = ContextParams(n_ctx=512, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)


def write_control(path: Path) -> None:
    """Write a model that is known to be sound: where it ends the process too, the file tried is not to blame.

    A llama of one layer, without a vocabulary, all of whose weights are equal.
    """

    def u32(value: int) -> Typed:
        return Typed(value, ValueType.UINT32)

    metadata = {
        "general.architecture": "llama",
        "llama.vocab_size": u32(_VOCAB),
        "llama.context_length": u32(512),
        "llama.embedding_length": u32(_EMBD),
        "llama.block_count": u32(1),
        "llama.feed_forward_length": u32(_FF),
        "llama.attention.head_count": u32(1),
        "llama.attention.layer_norm_rms_epsilon": Typed(1e-5, ValueType.FLOAT32),
        "tokenizer.ggml.model": "none",
    }

    def matrix(rows: int, columns: int = _EMBD) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.full((rows, columns), 0.01, np.float32)

    tensors = {"token_embd.weight": matrix(_VOCAB), "output_norm.weight": np.ones(_EMBD, np.float32)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensors[f"blk.0.{name}.weight"] = matrix(_EMBD)
    for name in ("attn_norm", "ffn_norm"):
        tensors[f"blk.0.{name}.weight"] = np.ones(_EMBD, np.float32)
    tensors["blk.0.ffn_gate.weight"] = tensors["blk.0.ffn_up.weight"] = matrix(_FF)
    tensors["blk.0.ffn_down.weight"] = matrix(_EMBD, _FF)
    write_gguf(path, metadata, tensors)


def try_model(library: Library, job: dict[str, Any]) -> None:
    """Load, tokenize, make contexts; of a small model also compute, with the adapter if there is one."""
    params = ModelParams(
        n_gpu_layers=0,
        kv_overrides=job["kv_overrides"],
        vocab_only=job["vocab_only"],
        use_extra_bufts=job["use_extra_bufts"],
        load_mtp=job.get("load_mtp", False),
        trial=False,
    )
    size = sum(os.stat(part).st_size for part in job["parts"])
    settings = _SETTINGS.replace(**job["context"])
    if job["projector"]:
        from .projector import Projector

        model = Model.load(job["parts"], params.replace(use_extra_bufts=False))
        Projector(model, job["projector"], use_gpu=False, n_threads=usable_cores(), warmup=True).try_out()
        return
    if (size > SMALL or job.get("dry")) and not job["adapter"] and not params.vocab_only:
        dry_run(library, Path(job["parts"][0]), params, [settings], lambda model: _tokenize(library, model))
        return
    model = Model.load(job["parts"], params.replace(use_extra_bufts=params.use_extra_bufts and size <= SMALL))
    with model.shared():
        _tokenize(library, model.pointer)
    if params.vocab_only:
        return
    adapter = LoraAdapter.load(model, job["adapter"]) if job["adapter"] else None
    if not model.has_decoder:
        settings = settings.replace(embeddings=True)
    with Context(model, settings) as context:
        if adapter is not None:
            set_adapters(context, {adapter: 1.0})
        if size <= SMALL:
            _compute(context, model)
    if settings.mtp and size <= SMALL:  # and where their hidden states come from
        with Context(model, settings.replace(mtp=False)) as context:
            context.keep_hidden()
            _compute(context, model)


def _tokenize(library: Library, model: Any) -> None:
    ffi, lib = library.ffi, library.lib
    vocab = lib.llama_model_get_vocab(model)
    if lib.llama_vocab_type(vocab) == 0:
        return
    ids = ffi.new("llama_token[]", 4 * len(_TEXT))
    for special in (False, True):
        lib.llama_tokenize(vocab, _TEXT, len(_TEXT), ids, len(ids), special, special)
    piece = ffi.new("char[]", 256)
    n = lib.llama_vocab_n_tokens(vocab)
    for token in range(0, n, max(1, n // 64)):
        lib.llama_token_to_piece(vocab, token, piece, 256, 0, True)


def _compute(context: Context, model: Model) -> None:
    n, position = model.vocab.n_tokens, 0
    batch = HiddenBatch(8, model.n_embd_out) if context.params.mtp else Batch(8)
    for ids in ([0, n - 1, n // 2, 5 % n], [n // 3]):
        batch.clear()
        for token in ids:
            batch.add(token, position, output=not model.n_layer_mtp or len(ids) == 1)
            position += 1
        if model.has_encoder:
            context.encode(batch)
        if model.has_decoder:
            context.decode(batch)


def _fork(library: Library, job: dict[str, Any], words: IO[bytes]) -> int:
    """Try in a fork; -signal if one ended it, else 0. A refusal is no death: the caller gets it again, and safely."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(words.fileno(), 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, job["seconds"])
            _limits()
            inherited()
            try_model(library, job)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _to_blame(library: Library, job: dict[str, Any]) -> bool:
    """Whether a model that is known to be sound can be tried in the same way and lives."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as words:
        place = Path(folder) / "control.gguf"
        write_control(place)
        plain = {**job, "parts": [str(place)], "kv_overrides": {}, "context": {}, "adapter": None, "projector": None}
        plain.pop("load_mtp", None)
        return all(not _fork(library, {**plain, "dry": dry}, words) for dry in (True, False))


def _limits() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process is to go
    except OSError:
        pass


def main() -> None:
    """Serve until the pipe closes, or nobody asked for a while."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # libllama's complaints, to stderr
    given = json.loads(sys.stdin.buffer.readline())
    library = load(InstalledBundle(**{**given, "path": Path(given["path"])}))
    while line := sys.stdin.buffer.readline():
        with tempfile.TemporaryFile() as words:
            job = json.loads(line)
            status = _fork(library, job, words)
            sound = status in (0, -signal.SIGALRM) or _to_blame(library, job)
            words.seek(0)
            lines = [line.strip() for line in words.read()[-8000:].decode("utf-8", "replace").splitlines()]
        said = " | ".join([line for line in lines if line][-4:])[-2000:]
        print(json.dumps({"status": status, "words": said, "tried": sound}), file=answers, flush=True)
        if not select.select([sys.stdin], [], [], IDLE_SECONDS)[0]:
            return


if __name__ == "__main__":
    main()
