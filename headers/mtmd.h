/* Images and sound as embeddings (mtmd.h, in libmtmd) */

enum mtmd_input_chunk_type {
    MTMD_INPUT_CHUNK_TYPE_TEXT = 0,
    MTMD_INPUT_CHUNK_TYPE_IMAGE = 1,
    MTMD_INPUT_CHUNK_TYPE_AUDIO = 2,
    MTMD_INPUT_CHUNK_TYPE_COUNT = 3,
};

struct mtmd_context;
struct mtmd_bitmap;
struct mtmd_image_tokens;
struct mtmd_input_chunk;
struct mtmd_input_chunks;

struct mtmd_input_text {
    const char * text;
    size_t text_len;
    bool add_special;
    bool parse_special;
};

struct mtmd_input_part {
    const struct mtmd_input_text * text;
    const struct mtmd_bitmap * bitmap;
};

struct mtmd_decoder_pos {
    uint32_t t;
    uint32_t x;
    uint32_t y;
    uint32_t z;
};

typedef bool (*mtmd_progress_callback)(float progress, void * user_data);

struct mtmd_context_params {
    bool use_gpu;
    ggml_backend_dev_t device;
    bool print_timings;
    int n_threads;
    const char * image_marker;
    const char * media_marker;
    enum llama_flash_attn_type flash_attn_type;
    bool warmup;
    int image_min_tokens;
    int image_max_tokens;
    ggml_backend_sched_eval_callback cb_eval;
    void * cb_eval_user_data;
    int32_t batch_max_tokens;
    mtmd_progress_callback progress_callback;
    void * progress_callback_user_data;
};

struct mtmd_context_params mtmd_context_params_default(void);
struct mtmd_context *mtmd_init_from_file(const char *mmproj_fname, const struct llama_model *text_model, const struct mtmd_context_params ctx_params);
void mtmd_free(struct mtmd_context *ctx);
bool mtmd_decode_use_non_causal(const struct mtmd_context *ctx, const struct mtmd_input_chunk *chunk);
bool mtmd_decode_use_mrope(const struct mtmd_context *ctx);
bool mtmd_support_vision(const struct mtmd_context *ctx);
bool mtmd_support_audio(const struct mtmd_context *ctx);
int mtmd_get_audio_sample_rate(const struct mtmd_context *ctx);
struct mtmd_bitmap *mtmd_bitmap_init(uint32_t nx, uint32_t ny, const unsigned char *data);
struct mtmd_bitmap *mtmd_bitmap_init_from_audio(size_t n_samples, const float *data);
void mtmd_bitmap_free(struct mtmd_bitmap *bitmap);
void mtmd_bitmap_set_id(struct mtmd_bitmap *bitmap, const char *id);
struct mtmd_input_chunks *mtmd_input_chunks_init(void);
size_t mtmd_input_chunks_size(const struct mtmd_input_chunks *chunks);
const struct mtmd_input_chunk *mtmd_input_chunks_get(const struct mtmd_input_chunks *chunks, size_t idx);
void mtmd_input_chunks_free(struct mtmd_input_chunks *chunks);
enum mtmd_input_chunk_type mtmd_input_chunk_get_type(const struct mtmd_input_chunk *chunk);
const llama_token *mtmd_input_chunk_get_tokens_text(const struct mtmd_input_chunk *chunk, size_t *n_tokens_output);
const struct mtmd_image_tokens *mtmd_input_chunk_get_tokens_image(const struct mtmd_input_chunk *chunk);
size_t mtmd_input_chunk_get_n_tokens(const struct mtmd_input_chunk *chunk);
const char *mtmd_input_chunk_get_id(const struct mtmd_input_chunk *chunk);
llama_pos mtmd_input_chunk_get_n_pos(const struct mtmd_input_chunk *chunk);
struct mtmd_decoder_pos mtmd_image_tokens_get_decoder_pos(const struct mtmd_image_tokens *image_tokens, llama_pos pos_0, size_t i);
int32_t mtmd_tokenize_from_parts(const struct mtmd_context *ctx, struct mtmd_input_chunks *output, const struct mtmd_input_part * const *parts, size_t n_parts, bool add_special);
int32_t mtmd_encode_chunk(struct mtmd_context *ctx, const struct mtmd_input_chunk *chunk);
float *mtmd_get_output_embd(struct mtmd_context *ctx);
void mtmd_log_set(ggml_log_callback log_callback, void *user_data);
void mtmd_helper_log_set(ggml_log_callback log_callback, void *user_data);
