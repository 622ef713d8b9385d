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


def yolos(t: ModuleType) -> Built:
    config = t.YolosConfig(**{**TOKENS, "image_size": [32, 32]}, num_detection_tokens=5, num_labels=3)
    return Named(t.YolosForObjectDetection(config), "pixel_values", pick=boxes), images()


def dpt(t: ModuleType) -> Built:
    config = t.DPTConfig(
        **{**TOKENS, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=12,
        reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
    )
    return Named(t.DPTForDepthEstimation(config), "pixel_values"), images()


def upernet(t: ModuleType) -> Built:
    stages = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "num_stages": 4}
    backbone = t.ConvNextConfig(**stages, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = t.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_in_channels=16,
        auxiliary_channels=8,
        num_labels=5,
    )
    return Named(t.UperNetForSemanticSegmentation(config), "pixel_values"), images(3, 64)


def clips(name: str, task: str, **settings: Any) -> Architecture:
    """A classifier of four frames."""

    def build(t: ModuleType) -> Built:
        config = getattr(t, f"{name}Config")(**{**TOKENS, "num_frames": 4}, **settings)
        return Named(getattr(t, name + task)(config), "pixel_values"), (torch.randn(2, 4, 3, 32, 32),)

    return hub(build)


CONVOLUTIONAL = {
    "resnet_basic": sees("ResNet", {**STAGES, "layer_type": "basic"}, fast=True),
    "resnet_bottleneck": sees("ResNet", {**STAGES, "layer_type": "bottleneck"}),
    "regnet": sees("RegNet", {**STAGES, "hidden_sizes": [16, 24], "groups_width": 8, "layer_type": "y"}),
    "bit": sees("Bit", {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 4}),
    "convnext": sees("ConvNext", {"hidden_sizes": [12, 16], "depths": [1, 2], "num_stages": 2}),
    "convnext_v2": sees("ConvNextV2", {"hidden_sizes": [12, 16], "depths": [1, 2], "num_stages": 2}),
    "mobilenet_v1": sees("MobileNetV1", {"depth_multiplier": 0.25, "min_depth": 8}),
    "mobilenet_v2": sees("MobileNetV2", {"depth_multiplier": 0.25, "min_depth": 8}),
    "efficientnet": sees("EfficientNet", {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}, 64),
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
    "focalnet": sees(
        "FocalNet",
        {"embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3], "image_size": 32},
    ),
}
TRANSFORMERS = {
    "vit": sees("ViT", TOKENS),
    "deit": sees("DeiT", TOKENS),
    "dinov2": sees("Dinov2", {**TOKENS, "mlp_ratio": 2}),
    "beit": sees("Beit", TOKENS),
    "data2vec_vision": sees("Data2VecVision", TOKENS),
    "vit_msn": sees("ViTMSN", TOKENS),
    "ijepa": sees("IJepa", TOKENS),
    "hiera": sees(
        "Hiera",
        {
            "image_size": [32, 32],
            "patch_size": [7, 7],
            "patch_stride": [4, 4],
            "patch_padding": [3, 3],
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "query_stride": [2, 2],
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
            "num_query_pool": 1,
        },
    ),
    "swin": sees("Swin", {**PYRAMID, "window_size": 4}),
    "swin_v2": sees("Swinv2", {**PYRAMID, "window_size": 4}),
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
    "pvt": sees(
        "Pvt",
        {
            "image_size": 32,
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sequence_reduction_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [4, 2],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
        },
    ),
    "pvt_v2": sees(
        "PvtV2",
        {
            "image_size": 32,
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
        },
    ),
    "cvt": sees(
        "Cvt",
        {
            "num_channels": 3,
            "patch_sizes": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [2, 1],
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "depth": [1, 2],
            "mlp_ratio": [2.0, 2.0],
            "attention_drop_rate": [0.0, 0.0],
            "drop_rate": [0.0, 0.0],
            "drop_path_rate": [0.0, 0.0],
            "qkv_bias": [True, True],
            "cls_token": [False, True],
            "qkv_projection_method": ["dw_bn", "dw_bn"],
            "kernel_qkv": [3, 3],
            "padding_kv": [1, 1],
            "stride_kv": [2, 2],
            "padding_q": [1, 1],
            "stride_q": [1, 1],
        },
    ),
    "levit": sees(
        "Levit",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "mlp_ratio": [2, 2, 2],
            "attention_ratio": [2, 2, 2],
            "patch_size": 16,
        },
        64,
    ),
    "mobilevit": sees(
        "MobileViT",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 12, 16, 16, 20, 32],
            "num_attention_heads": 2,
            "expand_ratio": 2.0,
        },
        64,
    ),
    "mobilevit_v2": sees(
        "MobileViTV2",
        {"image_size": 64, "width_multiplier": 0.25, "base_attn_unit_dims": [32, 48, 64], "n_attn_blocks": [1, 1, 1]},
        64,
    ),
    "glpn": sees(
        "GLPN",
        {
            "num_encoder_blocks": 4,
            "depths": [1, 1, 1, 1],
            "sr_ratios": [2, 2, 1, 1],
            "hidden_sizes": [8, 16, 16, 24],
            "patch_sizes": [7, 3, 3, 3],
            "strides": [4, 2, 2, 2],
            "num_attention_heads": [1, 2, 2, 2],
            "mlp_ratios": [2, 2, 2, 2],
            "decoder_hidden_size": 16,
        },
        64,
        "ForDepthEstimation",
    ),
    "timesformer": clips("Timesformer", "ForVideoClassification"),
    "videomae": clips("VideoMAE", "ForVideoClassification", tubelet_size=2),
    "vivit": clips("Vivit", "ForVideoClassification", tubelet_size=[2, 8, 8]),
}
OTHER = {
    "detr": hub(detr),
    "yolos": hub(yolos),
    "dpt": hub(dpt),
    "upernet_convnext": hub(upernet),
    "clip": pairs("CLIP", projection_dim=16),
    "siglip": pairs("Siglip"),
    "chinese_clip": pairs("ChineseCLIP", projection_dim=16),
}
VISION: dict[str, Architecture] = {**CONVOLUTIONAL, **TRANSFORMERS, **OTHER}
