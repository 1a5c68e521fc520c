"""What is on a picture: python picture.py MODEL PICTURE [QUESTION]

MODEL is a vision model with its projector (mmproj-….gguf) beside it or in its repository, for example
ggml-org/SmolVLM-500M-Instruct-GGUF. Needs Pillow, and a bundle with libmtmd: llcuda-ffi bundle install v0.6.0-cpu
"""

import sys

from llcuda_ffi import Llama

if len(sys.argv) < 3:
    sys.exit(print(__doc__))
model, picture, *question = sys.argv[1:]

with Llama(model, mmproj="auto", bundle="v0.6.0-cpu", n_ctx=2048, n_parallel=1) as llm:
    parts = [
        {"type": "image", "image": picture},
        {"type": "text", "text": " ".join(question) or "Describe this picture."},
    ]
    for chunk in llm.chat_stream([{"role": "user", "content": parts}], max_tokens=200, temperature=0):
        print(chunk.content, end="", flush=True)
    print()
