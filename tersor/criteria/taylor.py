"""What removing a weight does to the loss, to first order, squared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.errors import InputError
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class Taylor(Criterion):
    """`w_ij^2 E[(dL/dw_ij)^2]`, over items, each with a label that the model draws from its own prediction.

    Where inputs and output gradients are independent it is `g_i H_jj w_ij^2`, twice `OBD`. Costs a pass and its backward for
    every item alone. Source: Molchanov et al. 2019, arXiv:1906.10771.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        if facts.gradient is None:
            raise InputError(
                'The criterion taylor needs the gradients of weights; measure with needs that hold "gradient".'
            )
        return facts.gradient.double().reshape(w.shape) * w.double().square()
