/* What drifts: profile b11227 (llama.cpp 0c1e57098) has everything of v0.5.0, and this */

enum llama_process_type {
    LLAMA_PROCESS_TYPE_ENCODE,
    LLAMA_PROCESS_TYPE_DECODE,
};

struct llama_batch_ext;

struct llama_embd {
    const float * data;
    size_t n_rows;
    size_t n_embd;
};

bool llama_get_causal_attn(const struct llama_context *ctx);
struct llama_batch_ext *llama_batch_ext_init(struct llama_context *ctx);
void llama_batch_ext_free(struct llama_batch_ext *batch);
void llama_batch_ext_clear(struct llama_batch_ext *batch);
int32_t llama_batch_ext_add(struct llama_batch_ext *batch, llama_seq_id seq_id);
int32_t llama_batch_ext_add_token(struct llama_batch_ext *batch, llama_seq_id seq_id, llama_token id);
int32_t llama_batch_ext_add_embd(struct llama_batch_ext *batch, llama_seq_id seq_id, struct llama_embd embd);
bool llama_batch_ext_add_seq(struct llama_batch_ext *batch, int32_t idx, llama_seq_id seq_id);
bool llama_batch_ext_set_embd_token(struct llama_batch_ext *batch, int32_t idx, struct llama_embd embd);
bool llama_batch_ext_set_embd_state(struct llama_batch_ext *batch, int32_t idx, struct llama_embd embd);
bool llama_batch_ext_set_output_embd(struct llama_batch_ext *batch, int32_t idx, bool value);
bool llama_batch_ext_set_output_logits(struct llama_batch_ext *batch, int32_t idx, bool value);
bool llama_batch_ext_set_pos(struct llama_batch_ext *batch, int32_t idx, const llama_pos *pos);
int32_t llama_process(struct llama_context *ctx, enum llama_process_type type, struct llama_batch_ext *batch);
