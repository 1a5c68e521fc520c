/* What drifts: profile b11227 (llama.cpp 0c1e57098) has everything of v0.5.0, and this */

bool llama_get_causal_attn(const struct llama_context *ctx);
