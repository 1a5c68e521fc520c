/* LoRA adapters (llama.h) */

struct llama_adapter_lora;

struct llama_adapter_lora *llama_adapter_lora_init(struct llama_model *model, const char *path_lora);
int32_t llama_adapter_meta_val_str(const struct llama_adapter_lora *adapter, const char *key, char *buf, size_t buf_size);
int32_t llama_adapter_meta_count(const struct llama_adapter_lora *adapter);
int32_t llama_adapter_meta_key_by_index(const struct llama_adapter_lora *adapter, int32_t i, char *buf, size_t buf_size);
int32_t llama_adapter_meta_val_str_by_index(const struct llama_adapter_lora *adapter, int32_t i, char *buf, size_t buf_size);
void llama_adapter_lora_free(struct llama_adapter_lora *adapter);
uint64_t llama_adapter_get_alora_n_invocation_tokens(const struct llama_adapter_lora *adapter);
const llama_token *llama_adapter_get_alora_invocation_tokens(const struct llama_adapter_lora *adapter);
