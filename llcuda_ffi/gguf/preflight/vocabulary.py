"""Rules about the vocabulary: what libllama aborts on while it reads it, or when it tokenizes with it."""

from __future__ import annotations

from collections.abc import Iterable

from ..types import ValueType, value_name
from .charsmap import check_charsmap
from .subject import Subject

BYTE = 6  # LLAMA_TOKEN_TYPE_BYTE
TOKENS = "tokenizer.ggml.tokens"

# tokenizer.ggml.model → the ids that libllama takes where the file names none
DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "mask": 103},
    "gpt2": {"bos": 11, "eos": 11},
    "hybriddna": {"bos": 11, "eos": 11},
    "whitespace": {"bos": 11, "eos": 11},
    "t5": {"eos": 1, "unknown": 2},
}
ARRAYS = {
    TOKENS: (ValueType.STRING,),
    "tokenizer.ggml.merges": (ValueType.STRING,),
    "tokenizer.ggml.token_type": (ValueType.INT32,),
    "tokenizer.ggml.scores": (ValueType.FLOAT32, ValueType.INT32),
}
PER_TOKEN = ("tokenizer.ggml.token_type", "tokenizer.ggml.scores")
BPE = frozenset({"gpt2", "hybriddna", "whitespace", "gemma4"})


def check_vocabulary(subject: Subject) -> None:
    """Refuse a vocabulary that libllama aborts on.

    Raises:
        InvalidModelFile: its parts do not fit each other.
        UnsupportedModel: libllama could not tokenize every text with it.
    """
    model = subject.text("tokenizer.ggml.model")
    if model in (None, "none", "no_vocab"):
        return
    n = _check_arrays(subject)
    if not n:
        return
    # libllama reads C strings: what follows a NUL is lost, and an empty one gets a name by its number
    tokens = subject.metadata.raw(TOKENS)
    if b"\0" in b"".join(tokens):
        tokens = [raw.split(b"\0", 1)[0] for raw in tokens]
    known = set(tokens)
    if b"" in known:
        tokens = [raw or b"[EMPTY_%d]" % i for i, raw in enumerate(tokens)]
        known = set(tokens)
    if len(known) != n:
        first, second = _twice(tokens)
        subject.invalid(f"{TOKENS} holds {tokens[first]!r} twice, as {first} and {second}: tokens must differ")
    _check_types(subject, str(model), tokens)
    _check_bytes(subject, str(model), known)
    _check_special(subject, str(model), n)
    if model == "t5":
        check_charsmap(subject)


def _check_arrays(subject: Subject) -> int:
    """The arrays that go with the tokens are of the right type and length. Returns the number of tokens."""
    field = subject.metadata.field(TOKENS)
    for key, kinds in ARRAYS.items():
        found = subject.metadata.field(key)
        if found is None:
            continue
        if found.item_type not in kinds:
            wanted = " or ".join(value_name(kind) for kind in kinds)
            subject.invalid(f"{key} is {found.kind}: an array of {wanted} is needed")
        if field and key in PER_TOKEN and found.count < field.count:
            subject.invalid(f"{key} has {found.count} items for {field.count} tokens")
    if field is None:
        return 0  # libllama refuses it by itself
    if not field.count:
        subject.invalid(f"{TOKENS} is empty: a vocabulary needs tokens")
    return field.count


def _twice(items: Iterable[bytes]) -> tuple[int, int]:
    seen: dict[bytes, int] = {}
    for i, item in enumerate(items):
        if item in seen:
            return seen[item], i
        seen[item] = i
    raise AssertionError("called for a list with duplicates")  # pragma: no cover


def _check_types(subject: Subject, model: str, tokens: list[bytes]) -> None:
    """Byte tokens exist only in some vocabularies, and must look like one."""
    key = "tokenizer.ggml.token_type"
    if key not in subject.metadata:
        return
    for i in (subject.metadata[key][: len(tokens)] == BYTE).nonzero()[0].tolist():
        if model == "bert":
            subject.invalid(f"{key} marks token {i} {tokens[i]!r} as a byte: WordPiece vocabularies have none")
        if model in ("gpt2", "llama", "t5", "gemma4") and len(tokens[i]) < 3:
            subject.invalid(f"{key} marks token {i} {tokens[i]!r} as a byte: it should be written like <0x0A>")


def _check_bytes(subject: Subject, model: str, known: set[bytes]) -> None:
    """Text that no token covers is spelled in bytes: these tokens must exist."""
    if model == "llama":
        missing = [b for b in range(256) if b"<0x%02X>" % b not in known and (not b or bytes([b]) not in known)]
        if missing:
            subject.unsupported(
                f"{TOKENS} lacks {len(missing)} byte tokens, first <0x{missing[0]:02X}>: "
                "libllama aborts on text that needs them"
            )
    elif model == "rwkv":
        spelled = {_rwkv_text(raw) for raw in known if len(raw) <= 4}
        missing = [b for b in range(256) if bytes([b]) not in spelled]
        if missing:
            subject.unsupported(
                f"{TOKENS} lacks {len(missing)} single bytes, first \\x{missing[0]:02x}: "
                "libllama never ends on text that needs them"
            )


def _rwkv_text(raw: bytes) -> bytes:
    """A token of an RWKV vocabulary without its escapes, for tokens of one byte."""
    if raw[:2] == b"\\x" and len(raw) == 4:
        try:
            return bytes([int(raw[2:], 16)])
        except ValueError:
            return raw
    return {b"\\t": b"\t", b"\\n": b"\n", b"\\r": b"\r"}.get(raw, raw[1:] if raw[:1] == b"\\" else raw)


def _check_special(subject: Subject, model: str, n: int) -> None:
    """A token that is always added, or that stands for the unknown, must exist."""
    defaults = DEFAULTS.get(model, {})

    def known(name: str) -> bool:
        return any(token is not None and token < n for token in (subject.token(name), defaults.get(name)))

    def need(name: str, why: str) -> None:
        if not known(name):
            subject.invalid(f"tokenizer.ggml.{name}_token_id is missing or not below {n}, the number of tokens: {why}")

    for name, default in defaults.items():
        if default >= n:
            need(name, f"the default {default} does not exist either")
    add_bos = subject.flag("tokenizer.ggml.add_bos_token")
    add_eos = subject.flag("tokenizer.ggml.add_eos_token")
    if model == "bert":
        need("bos", "WordPiece puts it before every text")
        need("seperator", "WordPiece puts it after every text")
        need("unknown", "WordPiece writes it for unknown words")
    elif model == "llama":
        if add_bos is not False:
            need("bos", "it is put before every text")
    elif model == "t5":
        need("unknown", "it is written for unknown characters")
        if add_eos is not False:
            need("eos", "it is put after every text")
    elif model == "gemma4":
        need("bos", "it is put before every text")
    if add_bos and model in (*BPE, "t5"):
        need("bos", "tokenizer.ggml.add_bos_token asks for it")
    if add_eos and model in (*BPE, "llama"):
        need("eos", "tokenizer.ggml.add_eos_token asks for it")
