"""The machine and the versions that a figure was measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_FLAGS = (
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "avx_vnni_int8", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
"""Processor features that change how fast, or with which rounding, a network runs."""

_PACKAGES = ("tersor", "torch", "numpy", "onnx", "onnxruntime", "openvino", "safetensors")


def machine() -> dict[str, Any]:
    """Processor (model, features that matter, cores that may be used), memory in bytes, operating system."""
    model, flags = _processor()
    return {
        "cpu": model,
        "flags": [f for f in _FLAGS if f in flags],
        "cores": len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, where installed; nothing is imported."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "tersor" not in found:
        from tersor import __version__

        found["tersor"] = __version__
    return found


def folder_bytes(path: Path) -> int:
    """Bytes of all files under `path` (or of the file `path`); links are not followed."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.lstat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())


def weight_bits() -> int:
    """The widest signed weights whose products with unsigned bytes this CPU adds up without overflow.

    An x86 processor without VNNI adds pairs of products in 16 bits, and saturates: 2 * 255 * 127 does not fit,
    2 * 255 * 64 does. Runtimes use these instructions all the same, and give other results without a word.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    return 7 if x86 and not {"avx512_vnni", "avx_vnni", "amx_int8"} & _processor()[1] else 8


def _processor() -> tuple[str, frozenset[str]]:
    source = Path("/proc/cpuinfo")
    if not source.is_file():
        return platform.processor() or platform.machine(), frozenset()
    fields: dict[str, str] = {}
    for line in source.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.processor() or platform.machine()), frozenset(flags.split())
