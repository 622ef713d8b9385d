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
    """How a user wants a network to be trained. `seconds`, where given, are the length; else `how.epochs`. enough: the drop on
    held-out data at which the training stops, after an epoch."""

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
        """A training from words; None if `length` is None or "none". Raises `InputError` for what cannot be meant.

        "auto" is chosen for the model that is trained: the loss on everything that the teacher computes (`standard`); norms
        frozen if the weights were corrected before, and moving if they have few bits or the student is new; the optimizer muon,
        or adamw with rank or sharded. rate: peak learning rate; None: the default for optimizer, loss and student.
        average: decay of a moving average of the parameters, which is then the result; 0: none. accumulate: batches per step.
        clip: largest norm of the gradient, 0: no clipping. warm_up: share of the steps in which the learning rate rises.
        workers: threads that prepare batches. enough: early stopping after the epoch whose drop on held-out data is at most
        this (0.2% or 0.002). save_every: seconds (or 5m) between two checkpoints. keep: the result is the "best" state on
        held-out data, of those after each epoch and before the first, or the "last". sharded: each process that torchrun
        started holds a part of the student's parameters, their gradients and the optimizer's state.
        """
        if length is None or str(length).strip() == "none":
            return None
        amounts.finite(rate=rate, average=average, decay=decay, clip=clip, warm_up=warm_up)
        epochs, seconds = amounts.training(length)
        for name, word, known in (
            ("schedule", schedule, RATES),
            ("optimizer", optimiser, (AUTO, *OPTIMISERS)),
            ("precision", precision, ("fp32", "bf16")),
            ("kind of norms", norms, (AUTO, "moving", "frozen")),
            ("device", device, ("auto", "cpu", "cuda")),
            ("state to keep", keep, (BEST, LAST)),
        ):
            if word not in known:
                raise InputError(f"There is no {name} {word!r}; choose one of {', '.join(known)}.")
        if (rate is not None and rate <= 0) or min(batch, accumulate, workers) < 1:
            raise InputError(
                f"rate ({rate}), batch ({batch}), accumulate ({accumulate}) and workers ({workers}) must be above 0."
            )
        if not (0 <= average < 1 and 0 <= warm_up < 1) or min(decay, clip) < 0:
            raise InputError(
                f"average ({average:g}) and warm_up ({warm_up:g}) must be in [0, 1), decay ({decay:g}) and clip ({clip:g}) "
                "must not be negative."
            )
        if optimiser == AUTO:
            optimiser = "adamw" if rank or sharded else "muon"
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("The device is cuda, but torch finds no GPU here; choose auto or cpu.")
        if sharded and processes() < 2:
            raise InputError(
                "sharded=True divides the parameters among processes, but there is only one; start several with torchrun "
                "--nproc-per-node, or leave it out."
            )
        if rank and optimiser == "muon":
            raise InputError(
                "The optimizer muon does not work with rank, whose matrices start at 0; choose adamw or sgd."
            )
        if sharded and optimiser == "muon":
            raise InputError(
                "The optimizer muon needs whole matrices, but sharded=True divides them; choose adamw or sgd."
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
