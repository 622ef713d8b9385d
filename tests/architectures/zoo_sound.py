"""Models of sound and of time series in transformers, from local configurations."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from architecture import Architecture, Built, Named, hub, ids

WAVES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}
SERIES: dict[str, Any] = {
    "num_input_channels": 3,
    "context_length": 32,
    "patch_length": 8,
    "patch_stride": 8,
    "d_model": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 24,
    "num_targets": 4,
}


def hears(name: str, **settings: Any) -> Architecture:
    """A classifier of raw waves."""

    def build(t: ModuleType) -> Built:
        config = getattr(t, f"{name}Config")(**{**WAVES, **settings})
        model = getattr(t, f"{name}ForSequenceClassification")(config)
        return Named(model, "input_values"), (torch.randn(2, 400),)

    return hub(build)


def whisper(t: ModuleType) -> Built:
    config = t.WhisperConfig(
        vocab_size=50,
        num_mel_bins=12,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=20,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        use_cache=False,
    )
    model = t.WhisperForConditionalGeneration(config)
    return Named(model, "input_features", "decoder_input_ids"), (torch.randn(2, 12, 40), *ids(7))


SOUND: dict[str, Architecture] = {
    "wav2vec2": hears("Wav2Vec2"),
    "hubert": hears("Hubert"),
    "whisper": hub(whisper),
}
