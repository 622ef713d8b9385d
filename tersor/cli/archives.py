"""The commands that take a model one step further and write it as an archive, which `compress` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.console import results, write_json
from tersor.cli.options import (
    MODEL,
    Archive,
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
    Training,
)
from tersor.cli.progress import Stages


def prune(
    model: Model,
    data: Data,
    out: Archive = None,
    macs: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Multiply-adds to be left by removing channels: 2x, 50%.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Single weights that stay: 5x, 20%.", show_default=False)
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="With --macs: of channels, neurons, heads, head_width, residual.",
            show_default=False,
        ),
    ] = None,
    branches: Annotated[
        str, typer.Option(help="Residual branches (blocks, layers) to leave out, or, with --macs, auto.")
    ] = "0",
    pattern: Annotated[
        str, typer.Option(help="Of the zeros: anywhere, rows, n:m, or a tile such as 16x1.")
    ] = "anywhere",
    criterion: Annotated[str, typer.Option(help="What stays: best, or magnitude, wanda, obs, ...")] = "best",
    schedule: Annotated[str, typer.Option(help="geometric, linear, cosine or cubic.")] = "geometric",
    steps: Annotated[int, typer.Option(min=1, help="Each measures anew what the last one left.")] = 1,
    multiple: Annotated[str, typer.Option(help="Of channels: 8, or auto: what runtimes here reward.")] = "1",
    max_drop: Annotated[
        str | None, typer.Option(help="Go only as far as this holds: 0.5%.", show_default=False)
    ] = None,
    recover: Annotated[
        str | None,
        typer.Option(metavar="LENGTH", help="Train after each step: 2epochs, 10m.", show_default=False),
    ] = None,
    loss: Loss = "auto",
    rate: Rate = None,
    augment: Augment = "",
    training: Training = None,
    rewind: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With --recover: train from these early values.", show_default=False),
    ] = None,
    sensitivity: Sensitivity = None,
    metric: Metric = "accuracy",
    eval_data: EvalData = None,
    threads: Threads = 0,
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Remove channels, zero weights, or both, and repair what stays: no labels, and no training unless asked for."""
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
        typer.Option(help="The .pt2 or .onnx file, or for a folder the folder to write.", show_default=False),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(metavar="BITS", help="1 to 8, ternary, binary, codebook16, nf4, fp8, mxfp4, log4, bf16, ..."),
    ] = "4",
    activations: Annotated[
        str, typer.Option(metavar="BITS", help="2 to 8 (of a language model 4 to 8), or none: float.")
    ] = "none",
    kv_cache: Annotated[
        str, typer.Option(metavar="KIND", help="Of a language model: 8, fp8, or none: float.")
    ] = "none",
    edges: Annotated[
        str, typer.Option(metavar="BITS", help="Of the first and last matrix; auto: 8 where others have fewer.")
    ] = "auto",
    embeddings: Annotated[str, typer.Option(metavar="BITS", help="Of embeddings, or none: float.")] = "none",
    groups: Annotated[int, typer.Option(min=0, help="Columns that share a scale; 0: what is usual.")] = 0,
    method: Annotated[str, typer.Option(help="gptq, or rounding integers to nearest.")] = "gptq",
    ranges: Annotated[
        str, typer.Option(help="Of activations: best, minmax, average, percentile, mse, entropy.")
    ] = "best",
    polish: Annotated[
        int,
        typer.Option(min=0, metavar="STEPS", help="Of a language model: choose each block's codes again, together."),
    ] = 0,
    recover: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Train afterwards: 2epochs, 10m.", show_default=False)
    ] = None,
    loss: Loss = "auto",
    rate: Rate = None,
    augment: Augment = "",
    training: Training = None,
    metric: Metric = "accuracy",
    eval_data: EvalData = None,
    threads: Threads = 0,
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Put weights and activations on grids of few bits: no labels, and no training unless asked for."""
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
        typer.Argument(metavar="STUDENT", help=MODEL + " Or none: --width, --depth.", show_default=False),
    ] = None,
    width: Annotated[str, typer.Option(metavar="SHARE", help="Without STUDENT: of each axis of the teacher.")] = "100%",
    depth: Annotated[
        str, typer.Option(metavar="SHARE", help="Without STUDENT: of the teacher's residual branches.")
    ] = "100%",
    reuse: Annotated[bool, typer.Option("--reuse", help="Begin with the teacher's early layers.")] = False,
    out: Archive = None,
    recover: Annotated[str, typer.Option(metavar="LENGTH", help="How long: 2epochs, 10m.")] = "2epochs",
    loss: Loss = "auto",
    rate: Rate = None,
    augment: Augment = "",
    training: Training = None,
    metric: Metric = "accuracy",
    eval_data: EvalData = None,
    threads: Threads = 0,
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train one model to answer as another does."""
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
