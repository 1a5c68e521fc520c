"""The vocabulary of a model: text to token ids and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..enums import TokenAttr, VocabType
from ..errors import InvalidRequest
from ..native.handle import Handle
from ..native.load import Library
from ..params import INT32_MAX, flag, integer, shown

_T = TypeVar("_T")

# Vocabularies that libllama splits with std::regex use up to a few KiB of stack for each byte of a run of one
# character class; the default 8 MiB ends at some 30,000 bytes, and a smaller thread's stack sooner.
_LONG_TEXT = 4096
_STACK_PER_BYTE = 3072
_STACK_MIN, _STACK_MAX = 256 << 20, 16 << 30
_stack_lock = threading.Lock()

SPECIAL = (
    "bos", "eos", "eot", "sep", "nl", "pad", "mask",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)  # fmt: skip


class Vocab:
    """The vocabulary of a loaded model. Any thread may use it.

    Attributes:
        n_tokens: number of tokens.
        type: the tokenizer's kind.
        add_bos, add_eos, add_sep: what `tokenize(add_special=True)` adds.
    """

    def __init__(self, model: Handle, library: Library) -> None:
        """`Model.load` makes one, `Model.vocab`."""
        self._model = model
        self._ffi, self._lib = library.ffi, library.lib
        with model.shared():
            self._vocab = self._lib.llama_model_get_vocab(model.pointer)
            self.n_tokens: int = self._lib.llama_vocab_n_tokens(self._vocab)
            self.type = VocabType(self._lib.llama_vocab_type(self._vocab))
            self.add_bos: bool = self._lib.llama_vocab_get_add_bos(self._vocab)
            self.add_eos: bool = self._lib.llama_vocab_get_add_eos(self._vocab)
            self.add_sep: bool = self._lib.llama_vocab_get_add_sep(self._vocab)
        self._pieces: dict[int, bytes] = {}
        self._special_pieces: dict[int, bytes] = {}
        self._eog: dict[int, bool] = {}
        self._eog_tokens: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.n_tokens

    def __repr__(self) -> str:
        return f"<Vocab {self.type.name} n_tokens={self.n_tokens}>"

    @property
    def pointer(self) -> Any:
        """llama_vocab, for a call of llama.h inside `with model.shared()`."""
        self._model.pointer  # noqa: B018 - raises when the model is closed
        return self._vocab

    def check_id(self, token: int) -> int:
        """`token`, if it is in the vocabulary.

        Raises:
            InvalidRequest: it is not.
        """
        if type(token) is int and 0 <= token < self.n_tokens:
            return token
        return integer("a token id", token, 0, self.n_tokens - 1)

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of llama.h says of this vocabulary."""
        with self._model.shared():
            return call(self.pointer, *arguments)

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False
    ) -> npt.NDArray[np.int32]:
        """Token ids of `text`, int32 of shape (n,) (llama_tokenize).

        Args:
            text: lone surrogates of a str are read as U+FFFD.
            add_special: add what the model asks for at the start and the end (BOS, EOS).
            parse_special: read the text of control tokens ("<|im_start|>") as those tokens. Leave it off for text
                that you do not trust.

        Raises:
            InvalidRequest: not a text, 2 GiB or more, or the model has no vocabulary.
            ClosedError: the model is closed.
        """
        raw = encode(text)
        flag("add_special", add_special)
        flag("parse_special", parse_special)
        if self.type == VocabType.NONE:
            raise InvalidRequest("this model has no vocabulary: it cannot tokenize text")
        if len(raw) > _LONG_TEXT:
            return _on_large_stack(len(raw), lambda: self._tokenize(raw, add_special, parse_special))
        return self._tokenize(raw, add_special, parse_special)

    def _tokenize(self, raw: bytes, add_special: bool, parse_special: bool) -> npt.NDArray[np.int32]:
        capacity = len(raw) + 8
        while True:
            tokens = np.empty(capacity, np.int32)
            into = self._ffi.from_buffer("llama_token[]", tokens)
            n = self._ask(self._lib.llama_tokenize, raw, len(raw), into, capacity, add_special, parse_special)
            if n >= 0:
                return tokens[:n].copy() if n * 2 < capacity else tokens[:n]
            if n == -INT32_MAX - 1:
                raise InvalidRequest(f"a text of {len(raw)} bytes gives more tokens than 2^31: split it")
            capacity = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that `token` writes, often not whole UTF-8 (llama_token_to_piece).

        Args:
            special: also write control tokens, which are empty otherwise.

        Raises:
            InvalidRequest: the id is not in the vocabulary.
        """
        cache = self._special_pieces if special else self._pieces
        try:
            return cache[token]
        except (KeyError, TypeError):  # TypeError: a list, which check_id refuses
            found = cache[token] = self._piece(self.check_id(token), special)
            return found

    def _piece(self, token: int, special: bool) -> bytes:
        ffi, size = self._ffi, 64
        while True:
            buffer = ffi.new("char[]", size)
            n = self._ask(self._lib.llama_token_to_piece, token, buffer, size, 0, flag("special", special))
            if n >= 0:
                return bytes(ffi.buffer(buffer, n))
            size = -n

    def detokenize_bytes(
        self,
        tokens: Iterable[int] | npt.NDArray[np.integer[Any]],
        *,
        remove_special: bool = False,
        special: bool = False,
    ) -> bytes:
        """The bytes of a token sequence (llama_detokenize).

        Args:
            remove_special: drop a leading BOS and a trailing EOS that `tokenize` would have added.
            special: write control tokens as text.

        Raises:
            InvalidRequest: an id is not in the vocabulary.
        """
        ids = self.ids(tokens)
        flag("remove_special", remove_special)
        flag("special", special)
        ffi, n = self._ffi, len(ids)
        if not n:
            return b""
        size = 8 * n + 64
        while True:
            buffer = ffi.new("char[]", size)
            source = ffi.from_buffer("llama_token[]", ids)
            got = self._ask(self._lib.llama_detokenize, source, n, buffer, size, remove_special, special)
            if got >= 0:
                return bytes(ffi.buffer(buffer, got))
            size = -got

    def detokenize(
        self,
        tokens: Iterable[int] | npt.NDArray[np.integer[Any]],
        *,
        remove_special: bool = False,
        special: bool = False,
    ) -> str:
        """`detokenize_bytes` as str; bytes that are no UTF-8 become U+FFFD."""
        return self.detokenize_bytes(tokens, remove_special=remove_special, special=special).decode("utf-8", "replace")

    def ids(self, tokens: Iterable[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
        """`tokens` as a contiguous int32 array, every id checked against the vocabulary.

        Raises:
            InvalidRequest: not integers, or an id outside the vocabulary.
        """
        try:
            array = tokens if isinstance(tokens, np.ndarray) else np.array(list(tokens))
        except (TypeError, ValueError):  # nothing that can be listed, or rows of several lengths
            raise InvalidRequest(f"token ids must be a list of integers, not {shown(tokens)}") from None
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise InvalidRequest(
                f"token ids must be integers in one dimension, not {array.dtype} of shape {array.shape}"
            )
        if array.size and (int(array.min()) < 0 or int(array.max()) >= self.n_tokens):
            bad = next(int(t) for t in array if not 0 <= t < self.n_tokens)
            raise InvalidRequest(f"token id {bad} is outside the vocabulary (0 to {self.n_tokens - 1})")
        return np.ascontiguousarray(array, np.int32)

    def text(self, token: int) -> str:
        """The token as the vocabulary spells it ("Ġhello", "▁hello") (llama_vocab_get_text)."""
        with self._model.shared():
            raw = self._lib.llama_vocab_get_text(self.pointer, self.check_id(token))
            return str(self._ffi.string(raw).decode("utf-8", "replace"))

    def score(self, token: int) -> float:
        """The token's score in the vocabulary (llama_vocab_get_score)."""
        return float(self._ask(self._lib.llama_vocab_get_score, self.check_id(token)))

    def attributes(self, token: int) -> TokenAttr:
        """The token's attributes (llama_vocab_get_attr)."""
        return TokenAttr(self._ask(self._lib.llama_vocab_get_attr, self.check_id(token)))

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation (llama_vocab_is_eog)."""
        try:
            return self._eog[token]
        except (KeyError, TypeError):
            found = self._eog[token] = bool(self._ask(self._lib.llama_vocab_is_eog, self.check_id(token)))
            return found

    @property
    def eog_tokens(self) -> tuple[int, ...]:
        """Every token that ends a generation."""
        if self._eog_tokens is None:
            with self._model.shared():
                is_eog, vocab = self._lib.llama_vocab_is_eog, self.pointer
                self._eog_tokens = tuple(t for t in range(self.n_tokens) if is_eog(vocab, t))
        return self._eog_tokens

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token (llama_vocab_is_control)."""
        return bool(self._ask(self._lib.llama_vocab_is_control, self.check_id(token)))

    def special(self, name: str) -> int | None:
        """The id of a special token, or None where the vocabulary has none.

        Args:
            name: bos, eos, eot, sep, nl, pad, mask, fim_pre, fim_suf, fim_mid, fim_pad, fim_rep or fim_sep.
        """
        if not isinstance(name, str) or name not in SPECIAL:
            raise InvalidRequest(f"no special token is called {shown(name)}: it takes {', '.join(SPECIAL)}")
        token = self._ask(getattr(self._lib, f"llama_vocab_{name}"))
        return int(token) if 0 <= token < self.n_tokens else None

    @property
    def bos(self) -> int | None:
        """The beginning-of-sequence token."""
        return self.special("bos")

    @property
    def eos(self) -> int | None:
        """The end-of-sequence token."""
        return self.special("eos")

    @property
    def eot(self) -> int | None:
        """The end-of-turn token."""
        return self.special("eot")


def encode(text: str | bytes) -> bytes:
    """UTF-8 of `text`; a str's lone surrogates become U+FFFD.

    Raises:
        InvalidRequest: neither str nor bytes, or too long for libllama (2 GiB).
    """
    if isinstance(text, str):
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            raw = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    elif isinstance(text, (bytes, bytearray, memoryview)):
        raw = bytes(text)
    else:
        raise InvalidRequest(f"a text must be str or bytes, not {type(text).__name__}")
    if len(raw) > INT32_MAX - 64:
        raise InvalidRequest(f"a text of {len(raw)} bytes is too long: libllama takes less than 2 GiB at once")
    return raw


def _on_large_stack(n_bytes: int, work: Callable[[], _T]) -> _T:
    """Run `work` on a thread whose stack std::regex cannot exhaust; errors are raised here."""
    result: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="llcuda_ffi-tokenize")
    with _stack_lock:
        before = threading.stack_size(min(max(_STACK_MIN, _STACK_PER_BYTE * n_bytes), _STACK_MAX))
        try:
            thread.start()
        except RuntimeError:
            raise InvalidRequest(
                f"no memory for the stack that a text of {n_bytes} bytes may need: tokenize it in smaller parts"
            ) from None
        finally:
            threading.stack_size(before)
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
