"""What a user wants of a training, from words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tersor.errors import InputError
from tersor.inputs import amounts, augments
from tersor.losses import loss_called
from tersor.maths.augment import Augment
from tersor.maths.rates import RATES
from tersor.recovery.course import BEST, LAST, Training
from tersor.recovery.many import processes
from tersor.recovery.optimisers import OPTIMISERS

AUTO = "auto"


@dataclass(frozen=True)
class Recovery:
    """What a user wants of a training. `seconds`, where given, say how long; else `how.epochs`. enough: what may be lost on
    held-out data; the training ends after the epoch that loses no more."""

    how: Training
    seconds: float | None = None
    batch: int = 32
    augment: Augment | None = None
    workers: int = 1
    rank: int = 0  # of what is added to the weights of linear layers; 0: they move themselves
    norms: str = AUTO  # "moving" with each batch's statistics, or "frozen" with those of calibration
    device: str = "auto"  # "cpu", "cuda", or "auto": a GPU where there is one
    sharded: bool = False  # each process holds a part of the parameters
    enough: float = -math.inf
    written: Mapping[str, Any] = field(default_factory=dict)  # what `of` made it from

    @staticmethod
    def of(
        length: str | float | None,
        loss: str = AUTO,
        rate: float | None = None,
        optimiser: str = AUTO,
        schedule: str = "cosine",
        batch: int = 32,
        augment: str = "",
        average: float = 0.0,
        precision: str = "fp32",
        rank: int = 0,
        norms: str = AUTO,
        decay: float = 0.0,
        device: str = "auto",
        sharded: bool = False,
        accumulate: int = 1,
        clip: float = 1.0,
        warm_up: float = 0.05,
        workers: int = 1,
        enough: str | float | None = None,
        save_every: str | float = 120.0,
        keep: str = BEST,
    ) -> Recovery | None:
        """A recovery from words; None where `length` is None or "none". Raises `InputError` for what cannot be meant.

        What is "auto" is chosen for the model that is trained: the loss of everything that the teacher says (`standard`), norms
        frozen where a network was repaired and moving where weights have few bits or a student begins anew, and the
        optimiser muon, which does not go with rank and sharded: there it is adamw. rate: the highest; None: what is usual
        for optimiser, loss and student.
        average: decay of a moving average of the parameters, which is what comes out; 0: none. accumulate: batches a step.
        clip: the largest norm of the gradient, 0: any. warm_up: share of the steps in which the rate rises. workers: threads
        that make batches ahead. enough: what may be lost on held-out data, 0.2% or 0.002: it ends after the epoch that loses
        no more. save_every: seconds (or 5m) between two states that a killed training goes on from. keep: of the states after
        each epoch the "best" on held-out data comes out, which may be the one before the first, or the "last".
        sharded: each of the processes that torchrun started holds a part of the student's parameters, their gradients and the
        optimiser's state.
        """
        if length is None or str(length).strip() == "none":
            return None
        amounts.finite(rate=rate, average=average, decay=decay, clip=clip, warm_up=warm_up)
        epochs, seconds = amounts.training(length)
        for name, word, known in (
            ("schedule", schedule, RATES),
            ("optimiser", optimiser, (AUTO, *OPTIMISERS)),
            ("precision", precision, ("fp32", "bf16")),
            ("kind of norms", norms, (AUTO, "moving", "frozen")),
            ("device", device, ("auto", "cpu", "cuda")),
            ("state to keep", keep, (BEST, LAST)),
        ):
            if word not in known:
                raise InputError(f"There is no {name} {word!r}; choose of {', '.join(known)}.")
        if (rate is not None and rate <= 0) or min(batch, accumulate, workers) < 1:
            raise InputError(
                f"The rate ({rate}), batch ({batch}), accumulate ({accumulate}) and workers ({workers}) must be above 0."
            )
        if not (0 <= average < 1 and 0 <= warm_up < 1) or min(decay, clip) < 0:
            raise InputError(
                f"The average ({average:g}) and warm_up ({warm_up:g}) must be in [0, 1), decay ({decay:g}) and clip ({clip:g}) "
                "not below 0."
            )
        if optimiser == AUTO:
            optimiser = "adamw" if rank or sharded else "muon"
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("The device is cuda, and torch finds no GPU here; choose auto or cpu.")
        if sharded and processes() < 2:
            raise InputError(
                "sharded=True divides the parameters among processes, and there is one; start several with torchrun "
                "--nproc-per-node, or leave it out."
            )
        if rank and optimiser == "muon":
            raise InputError(
                "The optimiser muon moves a matrix by a share of its norm, and what rank adds begins at 0; choose adamw or sgd."
            )
        if sharded and optimiser == "muon":
            raise InputError(
                "The optimiser muon needs whole matrices, and sharded=True divides them; choose adamw or sgd."
            )
        how = Training(
            loss=Training.loss if loss == AUTO else loss_called(loss),
            epochs=epochs or 1.0,
            optimiser=optimiser,
            rate=rate,
            decay=decay,
            schedule=RATES[schedule],
            average=average,
            precision=precision,
            accumulate=accumulate,
            clip=clip,
            warm_up=warm_up,
            save_every=amounts.seconds(save_every),
            keep=keep,
        )
        written = {
            "length": str(length),
            "loss": loss,
            "optimiser": optimiser,
            "schedule": schedule,
            "batch": batch,
            "augment": augment,
            "average": average,
            "precision": precision,
            "rank": rank,
            "norms": norms,
            "decay": decay,
            "device": device,
            "accumulate": accumulate,
            "clip": clip,
            "warm_up": warm_up,
            "keep": keep,
        }  # not whether it was sharded, its workers or how often it is saved: nothing of what comes out changes
        written |= {name: value for name, value in (("rate", rate), ("enough", enough)) if value is not None}
        return Recovery(
            how,
            seconds,
            batch,
            augments.bring(augment),
            workers,
            rank=rank,
            norms=norms,
            device=device,
            sharded=sharded,
            enough=-math.inf if enough is None else amounts.drop(enough),
            written=written,
        )
