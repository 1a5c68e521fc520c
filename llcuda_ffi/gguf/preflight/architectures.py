"""What is known about architectures (general.architecture): facts that the rules need."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# drafts for another model: libllama aborts when they are run without it
NEEDS_TARGET = frozenset({"dflash", "eagle3", "gemma4-assistant"})

# with a sliding window: every nth layer sees everything, and some versions abort where no layer does
FULL_EVERY = {
    "cohere2": 4,
    "exaone4": 4,
    "gemma-embedding": 6,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
    "plamo3": 8,
    "smallthinker": 4,
}

# tensors of a block, of which one choice must be there whole
_ATTENTION = (("attn_qkv",), ("attn_q", "attn_k", "attn_v"))
_FEED_FORWARD = (("ffn_gate", "ffn_up", "ffn_down"), ("ffn_gate_inp", "ffn_up_exps", "ffn_down_exps"))
NEEDS_ONE_OF = {
    **dict.fromkeys(("phi3", "phimoe", "pockettts"), _ATTENTION),
    **dict.fromkeys(("grok", "hy_v3", "mimo2", "step35"), _FEED_FORWARD),
}

# tensors that libllama uses without having looked for them
NEEDS = {
    "dream": ("output.weight",),
    "t5": ("enc.blk.0.attn_rel_b.weight", "dec.blk.0.attn_rel_b.weight"),
    "t5encoder": ("enc.blk.0.attn_rel_b.weight",),
}

# built only for key_length == value_length
SAME_KEY_AND_VALUE = _names(
    """
    afmoe apertus arcee arctic baichuan bailingmoe2 bert bitnet bloom chameleon chatglm codeshell cogvlm
    cohere2 cohere2moe command-r dbrx deci deepseek dots1 dream ernie4_5 ernie4_5-moe eurobert exaone
    exaone-moe exaone4 falcon gemma gemma2 gemma3 glm4 glm4moe gpt-oss gpt2 gptneox granite granite_swa
    granitehybrid granitemoe graniteswitch grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3
    internlm2 jais jais2 jina-bert-v2 jina-bert-v3 laguna llada llada-moe llama llama-embed llama4
    maincoder maple mellum minicpm minimax-01 minimax-m2 minimax-m3 mistral3 modern-bert mpt muse-
    glimmer nanbeige nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert nomic-bert-moe olmo olmo2
    olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo pockettts qwen qwen2 qwen2moe
    qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe qwen4exp refact rnd1 seed_oss
    smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 t5 t5encoder talkie xverse
    """
)

# built only for rope.dimension_count == key_length
WHOLE_HEAD_ROTATES = _names(
    """
    apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1 dream
    ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon granite granite_swa granitemoe graniteswitch
    grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 llada llada-moe llama
    llama-embed llama4 maincoder mellum minicpm mistral3 olmo olmo2 olmoe orion paddleocr pangu-embedded
    plamo pockettts qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe rnd1 seed_oss smallthinker
    smollm3 starcoder2 talkie xverse
    """
)

# without attention: no heads
NO_ATTENTION = _names("arwkv7 mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 wavtokenizer-dec")

# without rotary positions: an odd head size is fine
NO_ROPE = _names("bert bloom gpt2 jina-bert-v2 jais mpt refact starcoder t5 t5encoder")

# whose output may be wider or narrower than the hidden state
OWN_OUTPUT_WIDTH = _names("deepseek4 gemma4-assistant lfm2 lfm2moe qwen4exp wavtokenizer-dec")
