"""Vision models of transformers, from local configurations: convolutional, transformers, detectors, image and text."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from architecture import Architecture, Built, Named, hub, ids, images
from torch import Tensor

TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
STAGES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [12, 16], "depths": [2, 2]}
PYRAMID: dict[str, Any] = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}


def sees(
    name: str, settings: dict[str, Any], side: int = 32, task: str = "ForImageClassification", **known: Any
) -> Architecture:
    """`<name><task>` of transformers from `<name>Config(**settings)`, called with images of that side."""

    def build(t: ModuleType) -> Built:
        model = getattr(t, name + task)(getattr(t, f"{name}Config")(**settings))
        return Named(model, "pixel_values"), images(3, side)

    return hub(build, **known)


def agreement(out: Any) -> Tensor:
    """How well image and text fit, item by item: the logits of all pairs would mix the items of a batch."""
    return (out.image_embeds * out.text_embeds).sum(-1, keepdim=True)


def pairs(name: str, vision: dict[str, Any] = TOKENS, **settings: Any) -> Architecture:
    """A tower for images beside one for text."""

    def build(t: ModuleType) -> Built:
        text = {key: value for key, value in TOKENS.items() if key not in ("image_size", "patch_size")}
        text = {**text, "vocab_size": 50, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
        config = getattr(t, f"{name}Config")(text_config=text, vision_config=vision, **settings)
        model = getattr(t, f"{name}Model")(config)
        return Named(model, "pixel_values", "input_ids", pick=agreement), (*images(), *ids())

    return hub(build)


def detr(t: ModuleType) -> Built:
    backbone = t.ResNetConfig(**STAGES, layer_type="basic", out_features=["stage2"])
    config = t.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=5,
        num_labels=3,
    )
    return Named(t.DetrForObjectDetection(config), "pixel_values", pick=boxes), images(3, 64)


def boxes(out: Any) -> Tensor:
    return torch.cat([out.logits, out.pred_boxes], -1)


CONVOLUTIONAL = {
    "resnet_basic": sees("ResNet", {**STAGES, "layer_type": "basic"}, fast=True),
    "regnet": sees("RegNet", {**STAGES, "hidden_sizes": [16, 24], "groups_width": 8, "layer_type": "y"}),
    "convnext": sees("ConvNext", {"hidden_sizes": [12, 16], "depths": [1, 2], "num_stages": 2}),
    "mobilenet_v1": sees("MobileNetV1", {"depth_multiplier": 0.25, "min_depth": 8}),
    "mobilenet_v2": sees("MobileNetV2", {"depth_multiplier": 0.25, "min_depth": 8}),
    "efficientnet": sees(
        "EfficientNet",
        {
            "width_coefficient": 0.25,
            "depth_coefficient": 0.5,
            "hidden_dim": 320,
            "image_size": 64,
            "initializer_range": 1.0,  # of the scales of batch norms too
        },
        64,
    ),
    "convnext_v2": sees("ConvNextV2", {"hidden_sizes": [12, 16], "depths": [1, 2], "num_stages": 2}),
    "focalnet": sees(
        "FocalNet",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
    ),
    "poolformer": sees(
        "PoolFormer",
        {
            "hidden_sizes": [12, 16],
            "depths": [1, 1],
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
        },
    ),
}
TRANSFORMERS = {
    "vit": sees("ViT", TOKENS),
    "deit": sees("DeiT", TOKENS),
    "dinov2": sees("Dinov2", {**TOKENS, "mlp_ratio": 2}),
    "beit": sees("Beit", TOKENS),
    "swin": sees("Swin", {**PYRAMID, "window_size": 4}),
    "swin_v2": sees("Swinv2", {**PYRAMID, "window_size": 4}),
    "cvt": sees("Cvt", {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, 64),
    "levit": sees(
        "Levit",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        64,
    ),
    "mobilevit": sees(
        "MobileViT",
        {
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 16, 16, 24, 24, 32, 48],
            "image_size": 64,
            "num_attention_heads": 2,
            "hidden_act": "relu",
        },
        64,
    ),
    "mobilevit_v2": sees("MobileViTV2", {"width_multiplier": 0.25, "image_size": 64, "hidden_act": "relu"}, 64),
    "pvt_v2": sees(
        "PvtV2",
        {
            "image_size": 64,
            "hidden_sizes": [8, 16, 16, 24],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 3],
            "sr_ratios": [4, 2, 2, 1],
            "mlp_ratios": [2, 2, 2, 2],
        },
        64,
    ),
    "segformer": sees(
        "Segformer",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
        },
        64,
        "ForSemanticSegmentation",
    ),
}
OTHER = {
    "detr": hub(detr),
    "clip": pairs("CLIP", projection_dim=16),
    "siglip": pairs("Siglip"),
}
VISION: dict[str, Architecture] = {**CONVOLUTIONAL, **TRANSFORMERS, **OTHER}
