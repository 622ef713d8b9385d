"""An input as a picture for the report, written without an image library (PNG, RFC 2083)."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

_LARGEST = 96
"""Pixels on the longer side; a larger image is sampled down."""


def picture(item: np.ndarray) -> str:
    """A PNG data URI of an item (C, H, W), (H, W, C) or (H, W) with 1 or 3 channels; "" where it is no image.

    Values are stretched from the item's own extremes to 0..255, because inputs are usually normalised.
    """
    image = _as_image(item)
    if image is None or not np.isfinite(image).all():
        return ""
    step = -(-max(image.shape[:2]) // _LARGEST)
    small = image[::step, ::step].astype(np.float64)
    low, high = small.min(), small.max()
    pixels = ((small - low) * (255.0 / (high - low if high > low else 1.0))).round().astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: np.ndarray) -> bytes:
    """uint8 pixels (H, W, 1) or (H, W, 3) as a PNG file."""
    height, width, channels = pixels.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # the leading zero says: this line is unfiltered
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    data = zlib.compress(lines.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _as_image(item: np.ndarray) -> np.ndarray | None:
    if item.ndim == 2:
        item = item[None]
    if item.ndim != 3 or item.dtype.kind not in "fui":
        return None
    if item.shape[0] in (1, 3):
        item = np.moveaxis(item, 0, -1)
    if item.shape[2] not in (1, 3) or min(item.shape[:2]) < 8 or max(item.shape[:2]) > 4 * min(item.shape[:2]):
        return None
    return item
