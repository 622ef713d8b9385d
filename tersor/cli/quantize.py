"""What `quantize` made, as a table."""

from __future__ import annotations

from pathlib import Path

from tersor.cli.console import say, table
from tersor.cli.left_alone import show_left_alone
from tersor.cli.training import course
from tersor.quantising import Quantized
from tersor.report import faster
from tersor.streaming import QuantizedFolder
from tersor.units import count, number


def show(found: Quantized | QuantizedFolder, out: Path | None) -> None:
    """Bits and bytes, the training where there was one, and the score before and after."""
    if isinstance(found, QuantizedFolder):
        _show_folder(found)
        return
    bits = sorted(set(found.weights.values()), reverse=True)
    rows = [
        ("weights", "32 bits", f"{', '.join(map(str, bits))} bits"),
        ("activations", "32 bits", f"{found.activations} bits"),
        ("bytes", *map(count, found.bytes)),
    ]
    table(found.name, ("", "original", "quantised"), rows, numbers=(1, 2))
    if found.trained is not None:
        print(course(found.trained, found.drop.relative))
    show_left_alone(found.left_alone)
    print(found.drop.text)
    say(output.words(found.metric) for output in found.outputs)
    if out is not None:
        kind = "ONNX file" if out.suffix == ".onnx" else "archive  "
        if found.ratio is not None:
            print(f"time in ONNX Runtime, beside the same model in float: {faster(found.ratio, found.verdict)}")
        print(f"\n{kind} {out}   (computes in float; `tersor compress` makes int8 files that are fast)")


def _show_folder(found: QuantizedFolder) -> None:
    bits = sorted(set(found.weights.values()), reverse=True)
    grain = f", {found.groups} columns a scale" if found.groups else ""
    rows = [
        (f"{len(found.weights)} matrices", "float", f"{', '.join(map(str, bits))} bits{grain}"),
        ("what they read", "float", "float" if found.activations == 32 else f"{found.activations} bits, by position"),
        *([("key/value cache", "float", found.kv_cache)] if found.kv_cache else []),
        ("bytes", *map(count, found.bytes)),
        ("loss of the next token", number(found.before), number(found.after)),
        ("perplexity", *map(number, found.perplexity)),
    ]
    table(found.name, ("", "original", "quantised"), rows, numbers=(1, 2))
    show_left_alone(found.left_alone)
    print(f"judged on {found.windows} windows of text that nothing was fitted to; fitted to {found.calibrated}")
    if found.out is not None:
        print(f"\nfolder    {found.out}   (compressed-tensors; transformers loads it)")
