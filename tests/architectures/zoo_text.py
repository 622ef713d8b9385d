"""Language models of transformers, from local configurations: encoders, decoders, encoder-decoders."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from architecture import Architecture, Built, Named, hub, ids

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    **SPECIAL,
}
GROUPED = {**TINY, "num_key_value_heads": 2}
TRANSLATOR: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
    **SPECIAL,
}
T5: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    **SPECIAL,
}


def reads(name: str, task: str, settings: dict[str, Any], **known: Any) -> Architecture:
    """`<name><task>` of transformers from `<name>Config(**settings)`, called with token numbers."""

    def build(t: ModuleType) -> Built:
        model = getattr(t, name + task)(getattr(t, f"{name}Config")(**settings))
        return Named(model, "input_ids"), ids()

    return hub(build, **known)


def classifies(name: str, settings: dict[str, Any] = TINY, **known: Any) -> Architecture:
    return reads(name, "ForSequenceClassification", settings, **known)


def writes(name: str, settings: dict[str, Any] = GROUPED, **known: Any) -> Architecture:
    return reads(name, "ForCausalLM", settings, **known)


def translates(name: str, settings: dict[str, Any] = TRANSLATOR, **known: Any) -> Architecture:
    """An encoder-decoder, called with two sequences."""

    def build(t: ModuleType) -> Built:
        model = getattr(t, f"{name}ForConditionalGeneration")(getattr(t, f"{name}Config")(**settings))
        return Named(model, "input_ids", "decoder_input_ids"), (*ids(), *ids(7))

    return hub(build, **known)


def marian(t: ModuleType) -> Built:
    model = t.MarianMTModel(t.MarianConfig(**TRANSLATOR))
    return Named(model, "input_ids", "decoder_input_ids"), (*ids(), *ids(7))


def experts(t: ModuleType) -> Built:
    """A mixture of experts, computed by gathering each token's weights: the grouped kernel has no rule and no ONNX."""
    model = t.MixtralForCausalLM(t.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2))
    model.set_experts_implementation("batched_mm")
    return Named(model, "input_ids"), ids()


ENCODERS = {
    "bert": classifies("Bert", fast=True),
    "bert_masked_words": reads("Bert", "ForMaskedLM", TINY),
    "roberta": classifies("Roberta"),
    "distilbert": classifies(
        "DistilBert",
        {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 32},
    ),
    "albert": classifies("Albert", {**TINY, "embedding_size": 16}),
    "electra": classifies("Electra", {**TINY, "embedding_size": 16}),
    "deberta": classifies("Deberta", {**TINY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta_v2": classifies("DebertaV2", {**TINY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "mpnet": classifies("MPNet"),
    "squeezebert": classifies("SqueezeBert", {**TINY, "embedding_size": 32}),
    "convbert": classifies("ConvBert", {**TINY, "embedding_size": 32}),
    "fnet": classifies("FNet"),
    "modernbert": classifies("ModernBert"),
    "data2vec_text": classifies("Data2VecText"),
    "megatron_bert": classifies("MegatronBert"),
    "mobilebert": classifies(
        "MobileBert", {**TINY, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
    ),
    "roformer": classifies("RoFormer", {**TINY, "embedding_size": 32}),
    "rembert": classifies("RemBert", {**TINY, "input_embedding_size": 16, "output_embedding_size": 16}),
    "nystromformer": classifies("Nystromformer", {**TINY, "num_landmarks": 3, "segment_means_seq_len": 9}),
    "esm": classifies("Esm", {**TINY, "position_embedding_type": "rotary", "mask_token_id": 4}),
    "layoutlm": classifies("LayoutLM"),
    "funnel": classifies(
        "Funnel",
        {"vocab_size": 50, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    ),
    "xlnet": classifies("XLNet", {"vocab_size": 50, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, **SPECIAL}
DECODERS = {
    "gpt2": reads("GPT2", "LMHeadModel", GPT2),
    "gpt_neo": writes(
        "GPTNeo",
        {**TINY, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    ),
    "gpt_neox": writes("GPTNeoX", TINY),
    "gptj": writes("GPTJ", {**GPT2, "rotary_dim": 4}),
    "codegen": writes("CodeGen", {**GPT2, "rotary_dim": 4}),
    "opt": writes("OPT", {**TINY, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": writes("Bloom", {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4, **SPECIAL}),
    "mpt": writes("Mpt", {"vocab_size": 50, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 32, **SPECIAL}),
    "falcon": writes("Falcon", TINY),
    "llama": writes("Llama"),
    "mistral": writes("Mistral"),
    "mixtral": hub(experts),
    "qwen2": writes("Qwen2"),
    "qwen3": writes("Qwen3", {**GROUPED, "head_dim": 8}),
    "gemma": writes("Gemma", {**TINY, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": writes("Gemma2", {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi": writes("Phi"),
    "phi3": writes("Phi3"),
    "stablelm": writes("StableLm"),
    "starcoder2": writes("Starcoder2"),
    "olmo2": writes("Olmo2"),
    "smollm3": writes("SmolLM3"),
    "cohere": writes("Cohere"),
    "granite": writes("Granite"),
    "nemotron": writes("Nemotron"),
    "persimmon": writes("Persimmon", TINY),
    "mamba": writes("Mamba", {"vocab_size": 50, "hidden_size": 24, "state_size": 4, "num_hidden_layers": 2, **SPECIAL}),
    "mamba2": writes(
        "Mamba2",
        {
            "vocab_size": 50,
            "hidden_size": 16,
            "state_size": 4,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 4,
            **SPECIAL,
        },
    ),
    "rwkv": writes(
        "Rwkv",
        {
            "vocab_size": 50,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "intermediate_size": 48,
            **SPECIAL,
        },
    ),
}
TRANSLATORS = {
    "t5": translates("T5", T5),
    "t5_gated": translates("T5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": translates("Bart"),
    "mbart": translates("MBart"),
    "pegasus": translates("Pegasus"),
    "blenderbot": translates("Blenderbot"),
    "marian": hub(marian),
}
TEXT: dict[str, Architecture] = {**ENCODERS, **DECODERS, **TRANSLATORS}
