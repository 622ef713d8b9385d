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


def speech_to_text(t: ModuleType) -> Built:
    config = t.Speech2TextConfig(
        vocab_size=50,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=64,
        max_target_positions=32,
        input_feat_per_channel=12,
        conv_channels=16,
        pad_token_id=0,
        use_cache=False,
    )
    model = t.Speech2TextForConditionalGeneration(config)
    return Named(model, "input_features", "decoder_input_ids"), (torch.randn(2, 40, 12), *ids(7))


def spectrogram(t: ModuleType) -> Built:
    config = t.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=40,
        num_mel_bins=16,
    )
    return Named(t.ASTForAudioClassification(config), "input_values"), (torch.randn(2, 40, 16),)


def patches(t: ModuleType) -> Built:
    model = t.PatchTSTForClassification(t.PatchTSTConfig(**SERIES))
    return Named(model, "past_values"), (torch.randn(2, 32, 3),)


def mixed_patches(t: ModuleType) -> Built:
    model = t.PatchTSMixerForTimeSeriesClassification(t.PatchTSMixerConfig(**SERIES, num_layers=2))
    return Named(model, "past_values"), (torch.randn(2, 32, 3),)


SOUND: dict[str, Architecture] = {
    "wav2vec2": hears("Wav2Vec2"),
    "hubert": hears("Hubert"),
    "wavlm": hears("WavLM"),
    "unispeech": hears("UniSpeech"),
    "data2vec_audio": hears("Data2VecAudio", conv_pos_kernel_size=5, num_conv_pos_embeddings=2),
    "sew": hears("SEW", squeeze_factor=2),
    "whisper": hub(whisper),
    "speech_to_text": hub(speech_to_text),
    "spectrogram_transformer": hub(spectrogram),
    "patch_tst": hub(patches),
    "patch_ts_mixer": hub(mixed_patches),
}
