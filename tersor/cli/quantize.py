"""What `quantize` made, as a table."""

from __future__ import annotations

from pathlib import Path

from tersor.cli.console import say, table
from tersor.cli.left_alone import show_left_alone
from tersor.cli.training import course
from tersor.quantising import Quantized
from tersor.report import faster
from tersor.streaming import QuantizedFolder
from tersor.units import number, several, size


def show(found: Quantized | QuantizedFolder, out: Path | None) -> None:
    """Bits and bytes, the training where there was one, and the score before and after."""
    if isinstance(found, QuantizedFolder):
        _show_folder(found)
        return
    bits = sorted(set(found.weights.values()), reverse=True)
    rows = [
        ("weights", "32 bits", f"{', '.join(map(str, bits))} bits"),
        ("activations", "32 bits", f"{found.activations} bits"),
        ("size of parameters", *map(size, found.bytes)),
    ]
    table(found.name, ("", "original", "quantized"), rows, numbers=(1, 2))
    if found.trained is not None:
        print(f"Training: {course(found.trained, found.drop.relative)}")
    show_left_alone(found.left_alone)
    print(found.drop.text)
    say(output.words(found.metric) for output in found.outputs)
    if out is not None:
        kind = "ONNX file" if out.suffix == ".onnx" else "archive  "
        if found.ratio is not None:
            print(f"Speed in ONNX Runtime, compared with the float model: {faster(found.ratio, found.verdict)}")
        written = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) if out.is_dir() else out.stat().st_size
        if written >= found.bytes[0]:
            print(
                "The file is not smaller than the original's parameters: it holds the graph as well, and in float what its "
                "format has no fewer bits for."
            )
        print(f"\n{kind} {out}   ({size(written)}; computes in float; for int8 arithmetic use `tersor compress`)")


def _show_folder(found: QuantizedFolder) -> None:
    bits = sorted(set(found.weights.values()), reverse=True)
    grain = f", group size {found.groups}" if found.groups else ""
    rows = [
        (f"weights of {several(len(found.weights), 'layer')}", "float", f"{', '.join(map(str, bits))} bits{grain}"),
        ("activations", "float", "float" if found.activations == 32 else f"{found.activations} bits, per token"),
        *([("KV cache", "float", found.kv_cache)] if found.kv_cache else []),
        ("size of tensors", *map(size, found.bytes)),
        ("next-token loss, nats", number(found.before), number(found.after)),
        ("perplexity", *map(number, found.perplexity)),
    ]
    table(found.name, ("", "original", "quantized"), rows, numbers=(1, 2))
    show_left_alone(found.left_alone)
    print(
        f"Evaluated on {several(found.windows, 'held-out sequence')}; calibrated on {several(found.calibrated, 'other')}."
    )
    if found.out is not None:
        print(f"\nfolder    {found.out}   (compressed-tensors format; transformers loads it)")
