"""Augmentations as users name them: `flip`, `crop`, `flip,crop`, or `path/to/file.py:function`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.inputs import functions
from tersor.maths.augment import AUGMENTS, Augment


def bring(text: str) -> Augment | None:
    """One augmentation after the other, in the order of the words; None for an empty text.

    A function is called with the inputs (a tuple of tensors) and a `torch.Generator` to draw with, and gives inputs of the
    same number. Raises `InputError`.
    """
    found = [_one(word.strip()) for word in text.split(",") if word.strip()]
    return _chained(found) if found else None


def _one(word: str) -> Augment:
    if ":" not in word:
        if word not in AUGMENTS:
            raise InputError(
                f"There is no augmentation {word!r}; choose one of {', '.join(AUGMENTS)}, or file.py:function."
            )
        return AUGMENTS[word]
    function = functions.named(word, "AUGMENT", InputError)

    def located(inputs: tuple[Tensor, ...], drawn: torch.Generator) -> tuple[Tensor, ...]:
        given = functions.called(function, f"The augmentation '{word}'", InputError, inputs, drawn)
        made = (given,) if isinstance(given, Tensor) else tuple(given)
        if len(made) != len(inputs) or any(len(a) != len(b) for a, b in zip(made, inputs, strict=True)):
            raise InputError(
                f"The augmentation '{word}' gave {len(made)} inputs of {[len(a) for a in made]} items for {len(inputs)} of "
                f"{[len(a) for a in inputs]}; it must keep their number."
            )
        return made

    return located


def _chained(found: Sequence[Augment]) -> Augment:
    def run(inputs: tuple[Tensor, ...], drawn: torch.Generator) -> tuple[Tensor, ...]:
        for each in found:
            inputs = each(inputs, drawn)
        return inputs

    return run
