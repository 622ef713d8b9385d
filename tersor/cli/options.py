"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = (
    "path/to/file.py:function or package.module:function returning a module or (module, example), or a .pt2 archive."
)
DATA = "path/to/file.py:function returning an iterable of (inputs, labels) batches, or an .npz with x and y."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)]
ModelOrFolder = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=MODEL + " Or the folder of a language model (config.json, safetensors); --data is then token ids.",
        show_default=False,
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that compress wrote.", show_default=False)]
Data = Annotated[str, typer.Option(metavar="DATA", help=DATA, show_default=False)]
EvalData = Annotated[
    str | None, typer.Option(metavar="DATA", help="Judge on this data; else on a part of --data.", show_default=False)
]
Metric = Annotated[str, typer.Option(help="accuracy, top5, mse, ..., agreement, or file.py:function.")]
Exclude = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave this layer alone; repeatable.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Archive = Annotated[Path | None, typer.Option(help="The .pt2 archive to write.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout, progress to stderr.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the runtime; 0 leaves it to torch.")]
Loss = Annotated[str, typer.Option(help="Of the training: auto, 0.9*kl(temperature=4) + 0.1*cross_entropy, ...")]
Rate = Annotated[float | None, typer.Option(help="The highest learning rate of the training.", show_default=False)]
Augment = Annotated[str, typer.Option(help="Of images while training: flip, crop, or file.py:function; by commas.")]
Training = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SETTING=VALUE",
        help="Of the training: batch=64, norms=moving, optimiser=sgd, average=0.99, precision=bf16, ...; repeatable.",
        show_default=False,
    ),
]
Sensitivity = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What sensitivity --json wrote: it proposes widths, too.", show_default=False),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory to hold at most: 2GB, 800MB. Default: what the container has.", show_default=False
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Items a call, for which the speed counts.")]
