"""BERT text embedding models and cross-encoders: a Hugging Face folder becomes a GGUF, with numpy alone.

The same files as llama.cpp's own converter gives, tensor for tensor, with one difference: the pooling layer of a
classification model (a reranker) is kept, without which its scores are wrong.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidModelFile, InvalidRequest, ModelNotFound, UnsupportedModel
from ..gguf.safetensors import SafeTensors
from ..gguf.types import GGMLType, ValueType
from ..gguf.writer import Encoded, Typed, write_gguf

ARCHITECTURES = ("BertModel", "BertForMaskedLM", "BertForSequenceClassification")
# enum llama_ftype
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}
_RANK = 4
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5

_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_TOP = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "pooler.dense": "cls",
    "classifier": "cls.output",
}


def convert_bert(folder: str | os.PathLike[str], target: str | os.PathLike[str], type: str = "f16") -> Path:
    """Write a BERT model as a GGUF file.

    Args:
        folder: config.json, model.safetensors, and tokenizer.json or vocab.txt; for pooling the sentence-transformers
            files.
        target: the file to write; it appears whole or not at all.
        type: "f32", "f16", "bf16" or "q8_0": of the matrices. Vectors and position embeddings stay F32.

    Raises:
        ModelNotFound: a file is missing.
        UnsupportedModel: another architecture, activation or tokenizer.
        InvalidModelFile: the files contradict each other.
        InvalidRequest: an unknown type.
    """
    if type not in FILE_TYPES:
        raise InvalidRequest(f"type must be one of {', '.join(FILE_TYPES)}, not {type!r}")
    place = Path(folder)
    config = read_json(place / "config.json")
    if not is_bert(config):
        raise UnsupportedModel(f"{place} holds {config.get('architectures')}, not a BERT model")
    if config.get("hidden_act", "gelu") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedModel(f"{place}: libllama computes BERT with gelu and absolute positions only")
    ranks = config["architectures"][0] == "BertForSequenceClassification"
    metadata = _metadata(place, config, type, ranks)
    tensors = _tensors(SafeTensors(place / "model.safetensors"), type, ranks)
    _check(place, config, tensors)
    return write_gguf(target, metadata, tensors)


def is_bert(config: Mapping[str, Any]) -> bool:
    """Whether `convert_bert` knows the architecture that a config.json names."""
    architectures = config.get("architectures") or [None]
    return architectures[0] in ARCHITECTURES and config.get("model_type", "bert") == "bert"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelNotFound: no such file.
        InvalidModelFile: it holds no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFound(f"there is no {path.name} in {path.parent}: name a folder of Hugging Face's form") from None
    except (OSError, ValueError) as error:
        raise InvalidModelFile(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise InvalidModelFile(f"{path} holds no JSON object")
    return data


def _metadata(place: Path, config: Mapping[str, Any], type: str, ranks: bool) -> dict[str, Any]:
    name = str(config.get("_name_or_path") or place.name).rpartition("/")[2]
    try:
        metadata: dict[str, Any] = {
            "general.architecture": "bert",
            "general.type": "model",
            "general.name": name,
            "general.file_type": FILE_TYPES[type],
            "general.quantization_version": 2,
            "bert.block_count": int(config["num_hidden_layers"]),
            "bert.context_length": int(config["max_position_embeddings"]),
            "bert.embedding_length": int(config["hidden_size"]),
            "bert.feed_forward_length": int(config["intermediate_size"]),
            "bert.attention.head_count": int(config["num_attention_heads"]),
            "bert.attention.layer_norm_epsilon": float(config.get("layer_norm_eps", 1e-12)),
            "bert.attention.causal": False,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelFile(f"{place / 'config.json'} lacks a size, or has one that is no number: {error}") from None
    pooling = _RANK if ranks else _pooling(place)
    if pooling is not None:
        metadata["bert.pooling_type"] = pooling
    labels = config.get("id2label") or {}
    if ranks and labels and labels.get("0") != "LABEL_0":
        metadata["bert.classifier.output_labels"] = [str(v) for _, v in sorted(labels.items(), key=lambda e: int(e[0]))]
    limit = _sentence_limit(place)
    if limit is not None and limit < metadata["bert.context_length"]:
        metadata["llcuda_ffi.max_tokens"] = limit
    metadata.update(_prompts(place))
    return {**metadata, **_vocabulary(place, config)}


def _pooling(place: Path) -> int | None:
    """The pooling that the sentence-transformers files name, or None."""
    path = place / "modules.json"
    if not path.is_file():
        return None
    modules = json.loads(path.read_text(encoding="utf-8"))
    found = next((m["path"] for m in modules if str(m.get("type", "")).endswith("Pooling")), None)
    if found is None:
        return None
    asked = read_json(place / found / "config.json")
    mode = asked.get("pooling_mode")
    for name, key in (("mean", "mean_tokens"), ("cls", "cls_token"), ("lasttoken", "lasttoken")):
        if asked.get(f"pooling_mode_{key}") or mode == name:
            return _POOLING[name]
    raise UnsupportedModel(
        f"{place}: libllama pools by mean, cls or last token, not by {mode or 'what is asked there'}"
    )


def _sentence_limit(place: Path) -> int | None:
    """The length that the model was made for, which is often less than its positions."""
    path = place / "sentence_bert_config.json"
    limit = read_json(path).get("max_seq_length") if path.is_file() else None
    return limit if isinstance(limit, int) and limit > 0 else None


def _prompts(place: Path) -> dict[str, str]:
    path = place / "config_sentence_transformers.json"
    prompts = read_json(path).get("prompts") if path.is_file() else None
    if not isinstance(prompts, dict):
        return {}
    return {f"llcuda_ffi.prompt.{name}": text for name, text in prompts.items() if isinstance(text, str) and text}


def _vocabulary(place: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    tokenizer = read_json(place / "tokenizer.json") if (place / "tokenizer.json").is_file() else {}
    model = tokenizer.get("model", {})
    if model.get("type", "WordPiece") != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
        raise UnsupportedModel(f"{place} has a {model.get('type')} tokenizer: only WordPiece is known here")
    words: dict[str, int] = dict(model.get("vocab", {}))
    if not words:
        try:
            lines = (place / "vocab.txt").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise ModelNotFound(f"there is neither tokenizer.json nor vocab.txt in {place}") from None
        words = {line: i for i, line in enumerate(lines)}
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} & set(words)
    for added in tokenizer.get("added_tokens", []):
        words.setdefault(added["content"], int(added["id"]))
        if added.get("special"):
            special.add(added["content"])
    size = int(config.get("vocab_size", len(words)))
    texts, types = [f"[PAD{i}]" for i in range(size)], [_UNUSED] * size
    for word, i in words.items():
        if not 0 <= i < size:
            raise InvalidModelFile(f"{place}: the token {word!r} has the id {i}, beyond vocab_size {size}")
        types[i] = _CONTROL if word in special else _NORMAL
        # word starts carry a mark, continuations lose theirs
        texts[i] = word if word in special else word[2:] if word.startswith("##") else "▁" + word
    normalizer = tokenizer.get("normalizer") or {}
    settings_file = place / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    lowercase = normalizer.get("lowercase", settings.get("do_lower_case", True))
    metadata: dict[str, Any] = {
        "tokenizer.ggml.token_type_count": int(config.get("type_vocab_size", 1)),
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "jina-v2-en",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": Typed(types, ValueType.INT32),
    }
    for key, token in (
        ("bos", "[CLS]"),
        ("eos", "[SEP]"),
        ("unknown", "[UNK]"),
        ("seperator", "[SEP]"),
        ("padding", "[PAD]"),
        ("mask", "[MASK]"),
    ):
        if token in words:
            metadata[f"tokenizer.ggml.{key}_token_id"] = words[token]
    return {
        **metadata,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_sep_token": False,
        "tokenizer.ggml.normalizer.lowercase": bool(lowercase),
    }


def _tensors(source: SafeTensors, type: str, ranks: bool) -> dict[str, Encoded]:
    found: dict[str, Encoded] = {}
    for name in source:
        new = _name(name, ranks)
        if new is None:
            continue
        values = source[name]
        if values.dtype.kind != "f":
            raise InvalidModelFile(f"{source.path}: tensor {name!r} holds {values.dtype}, not floating-point numbers")
        found[new] = _encoded(new, values, type)
    return found


def _name(name: str, ranks: bool) -> str | None:
    """A tensor's name in the GGUF, or None for what embeddings do not need."""
    name = name.removeprefix("bert.")
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    stem, _, kind = name.rpartition(".")
    if name == "embeddings.position_ids" or stem.startswith("cls."):
        return None
    if stem in ("pooler.dense", "classifier") and not ranks:
        return None
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", stem)
    if layer and layer[2] in _LAYER:
        return f"blk.{layer[1]}.{_LAYER[layer[2]]}.{kind}"
    raise UnsupportedModel(f"the tensor {name!r} has no place in libllama's BERT")


def _encoded(name: str, values: npt.NDArray[Any], type: str) -> Encoded:
    full = values.ndim < 2 or name in ("position_embd.weight", "token_types.weight", "cls.output.weight")
    if full or type == "f32":
        return Encoded(GGMLType.F32, values.shape, lambda: values.astype("<f4"))
    if type == "q8_0" and values.shape[-1] % 32:
        type = "f16"  # rows that are no multiple of a block, as llama.cpp does
    encode: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] = {"f16": _f16, "bf16": _bf16, "q8_0": _q8_0}[type]
    return Encoded(GGMLType[type.upper()], values.shape, lambda: encode(values.astype(np.float32)))


def _f16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.astype("<f2")


def _bf16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _q8_0(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Blocks of 32: an F16 scale, 32 int8."""
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = blocks * inverse
    # halves go away from zero, as in C
    whole = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return np.concatenate([scale.astype("<f2").view(np.uint8), whole.view(np.uint8)], axis=1)


def _check(place: Path, config: Mapping[str, Any], tensors: Mapping[str, Encoded]) -> None:
    needed = ["token_embd.weight", "position_embd.weight", "token_types.weight", "token_embd_norm.weight"]
    for i in range(int(config["num_hidden_layers"])):
        needed += [f"blk.{i}.{name}.weight" for name in _LAYER.values()]
    for name in needed:
        if name not in tensors:
            raise InvalidModelFile(f"{place / 'model.safetensors'} has no tensor for {name}")
    width = tensors["token_embd.weight"].shape
    if width != (int(config["vocab_size"]), int(config["hidden_size"])):
        raise InvalidModelFile(f"{place}: the embeddings are {width}, not as config.json says")
