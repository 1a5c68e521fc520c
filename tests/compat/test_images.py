"""Images through the names of llama-cpp-python and vLLM, in a child process with the bundle that has libmtmd."""

from __future__ import annotations

from pathlib import Path

from llcuda_ffi import bundles

from ..support.child_process import run_child
from ..support.tiny_projector import make_tiny_projector, make_tiny_seer


def test_images(tmp_path: Path) -> None:
    """Every handler's name, from a file and from the hub; vLLM's multi_modal_data with marks of several models, and its
    conversations; marks and media that do not fit are refused."""
    bundles.ensure("v0.6.0-cpu", progress=False)
    make_tiny_seer(tmp_path / "text.gguf")
    make_tiny_projector(tmp_path / "mmproj.gguf")
    out = run_child(
        """
import base64, io, sys
import numpy as np
from PIL import Image
from llcuda_ffi.compat.llama_cpp import Llama
from llcuda_ffi.compat.llama_cpp import llama_chat_format as formats
from llcuda_ffi.compat.vllm import LLM, SamplingParams
from llcuda_ffi.errors import InvalidRequest
model, mmproj = (f"{sys.argv[1]}/{name}.gguf" for name in ("text", "mmproj"))
image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8))
png = io.BytesIO()
image.save(png, "PNG")
url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
messages = [
    {"role": "user", "content": [{"type": "image_url", "image_url": url}, {"type": "text", "text": "what is it?"}]}
]
assert formats.MTMDChatHandler.from_pretrained("a/b", "*mmproj*").clip_model_path == "a/b:*mmproj*"
handler = formats.Qwen3VLChatHandler(clip_model_path=mmproj, verbose=False)
llm = Llama(model, chat_handler=handler)
done = llm.create_chat_completion(messages, max_tokens=4, temperature=0)
assert done["usage"]["prompt_tokens"] > 40
again = handler(llama=llm, messages=messages, max_tokens=4, temperature=0)
assert again["choices"][0]["message"] == done["choices"][0]["message"]

llm, params = LLM(model, mmproj=mmproj, max_model_len=512), SamplingParams(max_tokens=4, temperature=0)
marks = ("<image>", "<|vision_start|><|image_pad|><|vision_end|>", "<|image_1|>", "[IMG]")
prompts = [{"prompt": f"look: {mark} what?", "multi_modal_data": {"image": image}} for mark in marks]
found = llm.generate([*prompts, "look"], params, use_tqdm=False)
assert len({one.outputs[0].text for one in found[:4]}) == 1
assert len({len(one.prompt_token_ids) for one in found[:4]}) == 1
[answer] = llm.chat(messages, params)
assert answer.outputs[0].text == done["choices"][0]["message"]["content"]
assert len(answer.prompt_token_ids) == done["usage"]["prompt_tokens"]
for prompt, data in (
    ("a", {"image": image}), ("<image>a", {"image": [image, image]}), ("<image>a", {"video": image}),
    ("<image>a", {"image": "/etc/passwd"}), ("<image>", {"image": image}), ("<image>a", 3),
):
    try:
        llm.generate({"prompt": prompt, "multi_modal_data": data}, params)
        print("taken", prompt, data)
    except InvalidRequest:
        pass
print("seen")
""",
        tmp_path,
        timeout=200,
        LLCUDA_FFI_BUNDLE="v0.6.0-cpu",
    )
    assert out.strip() == "seen"
