"""The names of other libraries over this engine, for the calls of their own documentation.

`llcuda_ffi.compat.llama_cpp`, `.vllm` and `.sentence_transformers` take the place of those packages in an import line.
Each is thin: the work is done by Llama, Embedder and Reranker, which docs/migrating.md leads to.
"""
