/* What drifts: profile b11669 (llama 0.7.0-dev, ggml 0.27.0) has everything of v0.6.0, and this */

struct llama_perf_context_data {
    double t_start_ms;
    double t_load_ms;
    double t_p_eval_ms;
    double t_eval_ms;
    int32_t n_p_eval;
    int32_t n_eval;
    int32_t n_reused;
    int32_t n_reallocs_same;
    int32_t n_reallocs_diff;
};
