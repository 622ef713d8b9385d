"""The commands, and what becomes of an error."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tersor import __version__
from tersor.cli.archives import distil, prune, quantize
from tersor.cli.console import hush, results, write_json
from tersor.cli.options import (
    BUDGET,
    RUN,
    TRAINING,
    Augment,
    Batch,
    Data,
    EvalData,
    Exclude,
    Folder,
    Json,
    Loss,
    MemoryLimit,
    Metric,
    Model,
    Rate,
    Seed,
    Sensitivity,
    Threads,
    TimeLimit,
    Training,
)
from tersor.cli.places import default
from tersor.cli.progress import Stages
from tersor.errors import TersorError


class Command(TyperCommand):
    """A command whose help does not call its flags values."""

    def get_help_option(self, ctx: Any) -> Any:
        return _no_value(super().get_help_option(ctx))


class Commands(TyperGroup):
    """All of them, with such a help."""

    def get_help_option(self, ctx: Any) -> Any:
        return _no_value(super().get_help_option(ctx))


def _no_value(option: Any) -> Any:
    if option is not None:
        option.metavar = ""
    return option


app = typer.Typer(
    name="tersor",
    cls=Commands,
    help="Compress a trained neural network for the machine where it will run, and prove the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", metavar="", help="Show the version and exit.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", metavar="", help="Show the whole traceback of an error.")
    ] = False,
) -> None:
    if version:
        print(f"tersor {__version__}")
        raise typer.Exit


@app.command(cls=Command)
def compress(
    model: Model,
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder to write the artifact to; an existing artifact there is replaced as a whole. Default: the model's "
            "name plus -small.",
            show_default=False,
        ),
    ] = None,
    eval_data: EvalData = None,
    metric: Metric = "accuracy",
    max_drop: Annotated[
        str,
        typer.Option(
            metavar="DROP",
            help="Maximum allowed metric drop: 0.5% or 0.005 (half a point of accuracy; relative for errors such as mse).",
            rich_help_panel=BUDGET,
        ),
    ] = "0.5%",
    target: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Runtimes to choose from, separated by commas: eager, inductor, onnxruntime, openvino, each optionally with "
            "a precision (onnxruntime:int8), or auto for all that are installed.",
        ),
    ] = "auto",
    batch: Batch = 1,
    threads: Threads = 0,
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
    exclude: Exclude = None,
    time_limit: TimeLimit = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="PLAN", help="Apply the plan.yaml of an earlier run instead of searching.", show_default=False
        ),
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", metavar="", help="Allow --recipe to run the Python functions that PLAN names."),
    ] = False,
    recover: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="Fine-tune candidates that exceed the allowed drop, for this long each, with the original model as the "
            "teacher: 2epochs, 10m. Default: no training.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    loss: Loss = "auto",
    rate: Rate = None,
    augment: Augment = "",
    training: Training = None,
    sensitivity: Sensitivity = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar="", help="Search and measure, but write nothing.", rich_help_panel=RUN),
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the fastest version of a model within the allowed metric drop, verify it, and write it to a folder."""
    from tersor.inputs import amounts
    from tersor.store.files import refuse_folder
    from tersor.targets import refuse_strangers

    amounts.drop(max_drop)  # words and places are judged before anything is loaded, torch included
    limit = amounts.deadline(time_limit)
    if memory_limit is not None:
        amounts.nbytes(memory_limit)
    refuse_strangers(target)
    out = out or default(model, "-small")
    if not dry_run:
        refuse_folder(out)
    with results(as_json) as stream, Stages() as progress:
        from tersor.cli.training import recovery
        from tersor.pipeline import compress as run_pipeline

        report = run_pipeline(
            model,
            data,
            metric=metric,
            max_drop=max_drop,
            target=target,
            out=out,
            eval_data=eval_data,
            batch=batch,
            threads=threads,
            memory_limit=memory_limit,
            seed=seed,
            exclude=exclude or (),
            time_limit=limit,
            recipe=recipe,
            allow_code=allow_code,
            recover=recovery(recover, loss, rate, augment, training),
            sensitivity=sensitivity,
            dry_run=dry_run,
            progress=progress,
        )
        written = None if dry_run else out
        if as_json:
            write_json(stream, {"out": written, "report": report.to_json()})
    if not as_json:
        from tersor.cli.shown import show_report

        show_report(report, written)


for _makes_an_archive in (prune, quantize, distil):
    app.command(cls=Command)(_makes_an_archive)


@app.command(cls=Command)
def sensitivity(
    model: Model,
    data: Data,
    metric: Metric = "accuracy",
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What to reduce: channels, bits or weights. Can be repeated. Default: all three.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HTML page with plots to write. Default: no page.", show_default=False),
    ] = None,
    items: Annotated[int, typer.Option(min=1, metavar="COUNT", help="Number of held-out items to evaluate on.")] = 256,
    threads: Threads = 0,
    time_limit: TimeLimit = None,
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Show how much the metric drops when each layer alone is pruned or quantized."""
    from tersor.inputs import amounts
    from tersor.sensed import GRANULARITIES, is_page
    from tersor.store.files import atomic_write, refuse_foreign, refuse_unwritable

    if out is not None:  # judged before anything is loaded, torch included
        refuse_foreign(out, is_page)
        refuse_unwritable(out)
    limit = amounts.deadline(time_limit)
    with results(as_json) as stream, Stages() as progress:
        from tersor.probing import sensitivity as measure

        found = measure(
            model,
            data,
            metric=metric,
            granularities=granularity or GRANULARITIES,
            items=items,
            threads=threads,
            time_limit=limit,
            memory_limit=memory_limit,
            seed=seed,
            exclude=exclude or (),
            progress=progress,
        )
        if out is not None:
            atomic_write(out, found.to_html().encode())
        if as_json:
            write_json(stream, found.to_json())
    if not as_json:
        from tersor.cli.sensitivity import show

        show(found)
        if out is not None:
            print(f"written   {out}")


@app.command(cls=Command)
def inspect(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Data to summarize: shapes, types, ranges, labels. Its first batch is the example input of a model that "
            "comes without one.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show layers, parameters and multiply-adds, and which axes can be pruned and why others cannot."""
    with results(as_json) as stream:
        from tersor.inspection import inspect as look

        found = look(model, data)
        if as_json:
            write_json(stream, found)
    if not as_json:
        from tersor.cli.inspect import show

        show(found)


@app.command(cls=Command)
def benchmark(
    folder: Folder,
    vs: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Another artifact to time side by side. Can be repeated."),
    ] = None,
    batch: Batch = 1,
    threads: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="COUNT",
            help="Number of CPU threads to use; 0 uses as many as the first artifact was measured with.",
        ),
    ] = 0,
    rounds: Annotated[int, typer.Option(min=5, metavar="COUNT", help="Number of timing rounds.")] = 50,
    as_json: Json = False,
) -> None:
    """Time an artifact in its own runtime, next to a second copy of itself (the noise) and to other artifacts."""
    folders = [folder, *(vs or [])]
    with results(as_json) as stream:
        from tersor.benchmarking import benchmark as time_them
        from tersor.cli.shown import race_record, show_race

        race = time_them(folders, batch, threads, rounds)
        if as_json:
            write_json(stream, race_record(race, folders, batch))
    if not as_json:
        show_race(race, folders, batch)


@app.command(cls=Command)
def verify(
    folder: Folder,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Data to evaluate the metric on.", show_default=False)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Metric to evaluate on --data. Default: the recorded one.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Original model, for metrics that compare with it.", show_default=False),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Check every file of an artifact, run its recorded example, and, with --data, evaluate the metric again."""
    with results(as_json) as stream:
        from tersor.cli.verify import verified

        record, sentence = verified(folder, data, metric, model, threads)
        if as_json:
            write_json(stream, record)
    if not as_json:
        print(sentence)


@app.command(cls=Command)
def report(
    folder: Folder,
    browse: Annotated[bool, typer.Option("--open", metavar="", help="Open the report in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Show the report of an artifact."""
    with results(as_json) as stream:
        from tersor.cli.shown import show_report
        from tersor.report import Report
        from tersor.store.manifest import check

        found = check(folder).section("report")
        if as_json:
            write_json(stream, {"path": folder / "report.html", "report": found})
    if not as_json:
        show_report(Report.from_json(found), folder)
    if browse:
        import webbrowser

        webbrowser.open((folder / "report.html").resolve().as_uri())


@app.command(cls=Command)
def doctor(as_json: Json = False) -> None:
    """Show which runtimes work on this machine, what is missing, and what would disturb measurements."""
    with results(as_json) as stream:
        from tersor.cli.doctor import examine, show, usable

        found = examine()
        if as_json:
            write_json(stream, {"usable": usable(found), "findings": found})
    if not as_json:
        show(found)
    if not usable(found):
        raise typer.Exit(4)


@app.command(cls=Command)
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write the artifact to.")] = Path("demo-out"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a small residual network on scanned handwritten digits, and compress it."""
    from tersor.store.files import refuse_folder

    refuse_folder(out)
    with results(as_json) as stream, Stages() as progress:
        from tersor.cli.demo import demo as show_off

        made = show_off(out, seed=seed, progress=progress)
        if as_json:
            write_json(stream, {"out": out, "report": made.to_json()})
    if not as_json:
        from tersor.cli.shown import show_report

        show_report(made, out)


def run(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0, the error's code, 130 on Ctrl-C, 143 on SIGTERM."""
    given = sys.argv[1:] if arguments is None else arguments
    traceback = "--traceback" in given
    given = [a for a in given if a != "--traceback"]  # taken wherever it stands
    if not traceback:
        hush()
    _unwind_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        app(given, prog_name="tersor")
    except _Stopped as stopped:
        _say_what_is_kept("interrupted" if stopped.signal == signal.SIGINT else f"stopped by {stopped.signal.name}")
        sys.exit(128 + stopped.signal)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except Exception as error:
        if traceback:
            raise
        sys.exit(_explain(error, "--json" in given))


class _Stopped(BaseException):
    """Another program ended this one, with a signal that leaves time to clean up."""

    def __init__(self, signal: signal.Signals):
        self.signal = signal


def _unwind_on(*numbers: signal.Signals) -> None:
    """Let these signals end the command as Ctrl-C does, so that its processes and scratch folders go with it."""

    def stop(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)  # a second one does not wait; the next start cleans up
        raise _Stopped(signal.Signals(number))

    for each in numbers:
        if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler):  # nohup has some ignored
            signal.signal(each, stop)


def _say_what_is_kept(how: str) -> None:
    said = f"{how}; nothing was replaced."
    cache = sys.modules.get("tersor.store.cache")
    if cache is not None:  # else nothing was begun that could be kept
        said += f" Intermediate results are kept in {cache.default_folder()}; run the same command again to resume."
    print(said, file=sys.stderr)


def _explain(error: Exception, as_json: bool) -> int:
    if isinstance(error, TersorError):
        message, code = str(error), error.exit_code
    else:
        text = " ".join(str(error).split())[:500]
        message = (
            f"{type(error).__name__}: {text} (unexpected; --traceback shows where)"
            if text
            else (f"{type(error).__name__} (unexpected; --traceback shows where)")
        )
        code = 1
    print(f"error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"type": type(error).__name__, "message": message, "exit_code": code}}))
    return code
