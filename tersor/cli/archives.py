"""The commands that take a model one step further and write it as an archive, which `compress` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.console import results, write_json
from tersor.cli.options import (
    BUDGET,
    MODEL,
    TRAINING,
    Augment,
    Data,
    EvalData,
    Exclude,
    Json,
    Loss,
    MemoryLimit,
    Metric,
    Model,
    ModelOrFolder,
    Rate,
    Seed,
    Sensitivity,
    Threads,
    TimeLimit,
    Training,
    archive,
)
from tersor.cli.places import default, refuse_early
from tersor.cli.progress import Stages


def prune(
    model: Model,
    data: Data,
    out: Annotated[Path | None, archive("-pruned.pt2")] = None,
    macs: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Multiply-adds to keep, by removing channels: 2x (half of them) or 50%.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Weights to keep; the others are set to zero: 5x (a fifth of them) or 20%.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="With --macs: kinds of prunable groups to use, separated by commas: channels, neurons, heads, head_width, "
            "residual. Default: all.",
            show_default=False,
        ),
    ] = None,
    branches: Annotated[
        str,
        typer.Option(
            metavar="COUNT",
            help="Number of residual branches (blocks, layers) to remove, or auto together with --macs.",
        ),
    ] = "0",
    pattern: Annotated[
        str,
        typer.Option(
            metavar="PATTERN",
            help="Sparsity pattern: anywhere, rows (the same share of each row), n:m such as 2:4, or tiles such as 16x1.",
        ),
    ] = "anywhere",
    criterion: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Pruning criterion: best (the most accurate for what is removed), magnitude, wanda, obs, taylor, ...",
        ),
    ] = "best",
    schedule: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Schedule of the pruned share over --steps: geometric, linear, cosine or cubic."
        ),
    ] = "geometric",
    steps: Annotated[
        int,
        typer.Option(
            min=1, metavar="COUNT", help="Number of pruning steps; calibration statistics are collected again for each."
        ),
    ] = 1,
    multiple: Annotated[
        str,
        typer.Option(
            metavar="COUNT",
            help="Channel alignment: keep a multiple of this many channels, or auto to time which multiple the installed "
            "runtimes run fastest.",
        ),
    ] = "1",
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="DROP",
            help="Maximum allowed metric drop: 0.5% or 0.005 (half a point of accuracy). Pruning stops before exceeding it.",
            show_default=False,
            rich_help_panel=BUDGET,
        ),
    ] = None,
    recover: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="Fine-tune for this long after each step, with the original model as the teacher: 2epochs, 10m. Default: no "
            "training.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    loss: Loss = "auto",
    rate: Rate = None,
    augment: Augment = "",
    training: Training = None,
    rewind: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="With --recover: restart training from this earlier checkpoint of the model (lottery ticket rewinding).",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    sensitivity: Sensitivity = None,
    metric: Metric = "accuracy",
    eval_data: EvalData = None,
    threads: Threads = 0,
    time_limit: TimeLimit = None,
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Prune channels, weights or both, and correct the remaining weights; needs no labels, and trains only on request."""
    from tersor.inputs import amounts

    limit = amounts.deadline(time_limit)
    out = refuse_early(out or default(model, "-pruned.pt2"))
    with results(as_json) as stream, Stages() as progress:
        from tersor.cli.training import recovery
        from tersor.pruning import prune as run_pruning

        found = run_pruning(
            model,
            data,
            macs=macs,
            weights=weights,
            only=[kind.strip() for kind in only.split(",")] if only else (),
            branches=branches,
            pattern=pattern,
            criterion=criterion,
            schedule=schedule,
            steps=steps,
            multiple=multiple,
            max_drop=max_drop,
            recover=recovery(recover, loss, rate, augment, training),
            rewind=rewind,
            sensitivity=sensitivity,
            metric=metric,
            eval_data=eval_data,
            threads=threads,
            time_limit=limit,
            memory_limit=memory_limit,
            seed=seed,
            exclude=exclude or (),
            out=out,
            progress=progress,
        )
        if as_json:
            write_json(stream, {"out": out, **found.to_json()})
    if not as_json:
        from tersor.cli.prune import show

        show(found, out)


def quantize(
    model: ModelOrFolder,
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Path of the .pt2 or .onnx file to write; for a language model's folder, the folder to write. Default: the "
            "model's name plus -quantized.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Weight format: 1 to 8 (bits), ternary, binary, codebook16, nf4, fp4, fp8, mxfp4, log4, bf16, ...",
        ),
    ] = "4",
    activations: Annotated[
        str,
        typer.Option(
            metavar="BITS",
            help="Activation bits: 2 to 8 (4 to 8 for a language model's folder), or none to keep them in float.",
        ),
    ] = "none",
    kv_cache: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Format of the KV cache (language model's folder only): 8 (bits), fp8, or none to keep it in float.",
        ),
    ] = "none",
    edges: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Weight format of the first and the last layer; auto is 8 bits where the others have fewer.",
        ),
    ] = "auto",
    embeddings: Annotated[
        str, typer.Option(metavar="FORMAT", help="Weight format of embeddings, or none to keep them in float.")
    ] = "none",
    groups: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="COUNT",
            help="Group size: number of consecutive weight columns that share a scale; 0 uses the format's default.",
        ),
    ] = 0,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Rounding method: gptq, or rounding (to nearest).")
    ] = "gptq",
    ranges: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Observer of activation ranges: best, minmax, average, percentile, mse or entropy.",
        ),
    ] = "best",
    polish: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="STEPS",
            help="Optimization steps per block for rounding and scales, as in AdaRound and SignRound (language model's folder "
            "only).",
        ),
    ] = 0,
    recover: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="Quantization-aware training for this long, with the original model as the teacher: 2epochs, 10m. Default: "
            "no training.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    loss: Loss = "auto",
    rate: Rate = None,
    augment: Augment = "",
    training: Training = None,
    metric: Metric = "accuracy",
    eval_data: EvalData = None,
    threads: Threads = 0,
    time_limit: TimeLimit = None,
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Quantize weights and activations to few bits; needs no labels, and trains only on request."""
    from tersor.inputs import amounts

    limit = amounts.deadline(time_limit)
    out = out or default(model, "-quantized" if Path(model).is_dir() else "-quantized.pt2")
    out = out if Path(model).is_dir() else refuse_early(out)
    with results(as_json) as stream, Stages() as progress:
        from tersor.cli.training import recovery
        from tersor.quantising import quantize as run_quantising

        found = run_quantising(
            model,
            data,
            weights=weights,
            activations=activations,
            kv_cache=kv_cache,
            edges=edges,
            embeddings=embeddings,
            groups=groups,
            method=method,
            ranges=ranges,
            polish=polish,
            recover=recovery(recover, loss, rate, augment, training),
            metric=metric,
            eval_data=eval_data,
            threads=threads,
            time_limit=limit,
            memory_limit=memory_limit,
            seed=seed,
            exclude=exclude or (),
            out=out,
            progress=progress,
        )
        if as_json:
            write_json(stream, {"out": out, **found.to_json()})
    if not as_json:
        from tersor.cli.quantize import show

        show(found, out)


def distil(
    teacher: Annotated[str, typer.Option(metavar="MODEL", help=MODEL, show_default=False)],
    data: Data,
    student: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDENT",
            help="Student model to train, in the form of --teacher. Default: a smaller teacher, by --width and --depth.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        str, typer.Option(metavar="SHARE", help="Without STUDENT: share of the teacher's channels to keep.")
    ] = "100%",
    depth: Annotated[
        str, typer.Option(metavar="SHARE", help="Without STUDENT: share of the teacher's residual branches to keep.")
    ] = "100%",
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse", metavar="", help="Initialize the student with the teacher's weights where layers agree."
        ),
    ] = False,
    out: Annotated[Path | None, archive("-distilled.pt2")] = None,
    recover: Annotated[
        str, typer.Option(metavar="LENGTH", help="Length of the training: 2epochs or 10m.", rich_help_panel=TRAINING)
    ] = "2epochs",
    loss: Loss = "auto",
    rate: Rate = None,
    augment: Augment = "",
    training: Training = None,
    metric: Metric = "accuracy",
    eval_data: EvalData = None,
    threads: Threads = 0,
    time_limit: TimeLimit = None,
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a student model to give the outputs of a teacher (knowledge distillation)."""
    from tersor.inputs import amounts

    limit = amounts.deadline(time_limit)
    out = refuse_early(out or default(student or teacher, "-distilled.pt2"))
    with results(as_json) as stream, Stages() as progress:
        from tersor.cli.training import recovery
        from tersor.distilling import distil as run_distilling

        found = run_distilling(
            student,
            data,
            teacher=teacher,
            width=width,
            depth=depth,
            reuse=reuse,
            recover=recovery(recover, loss, rate, augment, training) or "none",
            metric=metric,
            eval_data=eval_data,
            threads=threads,
            time_limit=limit,
            memory_limit=memory_limit,
            seed=seed,
            out=out,
            progress=progress,
        )
        if as_json:
            write_json(stream, {"out": out, **found.to_json()})
    if not as_json:
        from tersor.cli.distil import show

        show(found, out)
