"""Where a command writes when it is not told."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".pt2", ".onnx")  # of files that hold a model
_ENDINGS = (".py", ".pt2", ".onnx", ".npz", ".safetensors")


def default(model: str, ending: str) -> Path:
    """In the current folder, called after the model's file, folder or module: `nets/resnet.py:build` is `resnet` + ending."""
    named, _, _ = model.rpartition(":")
    place = Path(named or model)
    if place.suffix in _ENDINGS:
        stem = place.stem
    elif named and place.name == named:  # package.module:function
        stem = named.rpartition(".")[2]
    else:
        stem = Path(place.absolute()).name  # also of "."
    return Path((stem or "model") + ending)


def refuse_early(out: Path) -> Path:
    """`out`, where a model can be written to it. Raises a `TersorError`, before anything is loaded."""
    from tersor.store.files import refuse_file

    refuse_file(out, ENDINGS)
    return out
