"""The loss of a training where the user names none: everything that the teacher says, by what its outputs mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.graph.likelihood import categorical, normalised
from tersor.graph.model import Model
from tersor.loss import scores

FACTOR = 1000
"""Of relative errors, those of residual streams and of outputs that are no class scores: a repair leaves about a thousandth."""


@torch.no_grad()
def standard(teacher: Model, inputs: Sequence[Tensor]) -> str:
    """An expression of losses: of all outputs of real numbers that the teacher gives for `inputs`, and of residual streams.

    Raises `InputError` where the teacher has no such output.
    """
    parts = list(_outputs(teacher, inputs))
    if not parts:
        raise InputError(
            f"The outputs of the model ({', '.join(teacher.outputs)}) are whole numbers, from which nothing can be learned; "
            "give a model that returns scores."
        )
    return " + ".join([*parts, f"{FACTOR}*streams(optional=True)"])


def _outputs(teacher: Model, inputs: Sequence[Tensor]) -> Iterator[str]:
    for name, out in zip(teacher.outputs, teacher.run(*inputs), strict=True):
        which = f"output={name!r}" if len(teacher.outputs) > 1 else ""
        if categorical(out, inputs) and out.ndim < 4:  # of more axes a loss reads the classes on axis 1, as of an image
            kind = "probabilities=True" if normalised(scores(out)) else ""
            yield f"kl({', '.join(filter(None, ('temperature=4', kind, which)))})"
        elif out.is_floating_point():
            yield f"{FACTOR}*logit_mse({', '.join(filter(None, ('relative=True', which)))})"
