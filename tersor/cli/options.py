"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL = (
    "Trained model: path/to/file.py:function or package.module:function that returns a torch.nn.Module or (module, "
    "example input), or a torch.export archive (.pt2)."
)
DATA = (
    "Calibration data: path/to/file.py:function that returns batches of inputs or (inputs, labels), or an .npz file with "
    "arrays x and y."
)
# Panels of the help.
BUDGET, TRAINING, RUN = "Budget and evaluation", "Training", "Execution"

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)]
ModelOrFolder = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=MODEL
        + " Or a language model's folder (config.json and safetensors); --data is then token ids, or the word itself for "
        "text that the model generates.",
        show_default=False,
    ),
]
Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Artifact folder written by `tersor compress`.", show_default=False)
]
Data = Annotated[str, typer.Option(metavar="DATA", help=DATA, show_default=False)]
EvalData = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Data to evaluate on, in the same form as --data. Default: a held-out part of --data.",
        show_default=False,
        rich_help_panel=BUDGET,
    ),
]
Metric = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Metric to evaluate: accuracy, top5, iou, mse, r2, psnr, cosine, agreement (with the original), ..., or "
        "path/to/file.py:function.",
        rich_help_panel=BUDGET,
    ),
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="LAYER", help="Name of a layer to leave unchanged. Can be repeated.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="INTEGER", help="Random seed.", rich_help_panel=RUN)]


def archive(ending: str) -> Any:
    """The option that names the file to write, which is otherwise called after the model with `ending`."""
    said = f"Path of the .pt2 or .onnx file to write. Default: the model's name plus {ending}."
    return typer.Option(metavar="FILE", help=said, show_default=False)


Json = Annotated[
    bool,
    typer.Option(
        "--json", metavar="", help="Print the result as one JSON object; progress goes to stderr.", rich_help_panel=RUN
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0, metavar="COUNT", help="Number of CPU threads to use; 0 uses torch's default.", rich_help_panel=RUN
    ),
]
Loss = Annotated[
    str,
    typer.Option(
        metavar="LOSS",
        help="Training loss: auto, or a weighted sum such as '0.9*kl(temperature=4) + 0.1*cross_entropy'.",
        rich_help_panel=TRAINING,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        help="Peak learning rate. Default: chosen from the loss and the optimizer.",
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]
Augment = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Data augmentation for images, separated by commas: flip, crop, or path/to/file.py:function. Default: none.",
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]
Training = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SETTING=VALUE",
        help="Further training settings: batch=64, norms=moving, optimizer=sgd, average=0.99, precision=bf16, ... Can be "
        "repeated.",
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]
Sensitivity = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Output of `tersor sensitivity --json`, used to correct the predicted loss of each prunable group.",
        show_default=False,
    ),
]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Maximum time for the whole command: 90s, 10m, 1.5h. The best result verified by then is delivered, by commands "
        "that have one before they end; else the command fails. Default: no limit.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Maximum memory to use, for example 2GB or 800MB. Default: the limit of the container or machine.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
Batch = Annotated[
    int, typer.Option(min=1, metavar="ITEMS", help="Batch size to optimize latency for.", rich_help_panel=BUDGET)
]
