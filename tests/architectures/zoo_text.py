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
    "deberta_v2": classifies("DebertaV2", {**TINY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "mpnet": classifies("MPNet"),
}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, **SPECIAL}
DECODERS = {
    "gpt2": reads("GPT2", "LMHeadModel", GPT2),
    "gpt_neo": writes(
        "GPTNeo",
        {**TINY, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    ),
    "gpt_neox": writes("GPTNeoX", TINY),
    "opt": writes("OPT", {**TINY, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": writes("Bloom", {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4, **SPECIAL}),
    "falcon": writes("Falcon", TINY),
    "llama": writes("Llama"),
    "mistral": writes("Mistral"),
    "qwen2": writes("Qwen2"),
    "qwen3": writes("Qwen3", {**GROUPED, "head_dim": 8}),
    "gemma": writes("Gemma", {**TINY, "num_key_value_heads": 1, "head_dim": 8}),
    "phi": writes("Phi"),
    "stablelm": writes("StableLm"),
    "mamba": writes("Mamba", {"vocab_size": 50, "hidden_size": 24, "state_size": 4, "num_hidden_layers": 2, **SPECIAL}),
}
TRANSLATORS = {
    "t5": translates("T5", T5),
    "bart": translates("Bart"),
    "pegasus": translates("Pegasus"),
}
TEXT: dict[str, Architecture] = {**ENCODERS, **DECODERS, **TRANSLATORS}
