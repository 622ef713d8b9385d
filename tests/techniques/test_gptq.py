"""Rounding with error feedback."""

from __future__ import annotations

from dataclasses import replace

import torch
from laws import Case, TechniqueLaws, make

from tersor.maths.damage import best_bias
from tersor.maths.grid import PerGroup, PerTensor
from tersor.maths.unfold import to_matrix
from tersor.techniques.gptq import GPTQ
from tersor.techniques.rounding import Rounding


class TestGPTQ(TechniqueLaws):
    instances = (  # type: ignore[assignment]
        GPTQ(),
        GPTQ(4, False),
        GPTQ(2, True, PerTensor()),
        GPTQ(3, False, PerGroup(5)),
        GPTQ(1, True),
    )
    keeps_zeros = instances[:-1]  # type: ignore[assignment]
    nested = tuple(GPTQ(bits) for bits in (2, 4, 8))  # type: ignore[assignment]

    def naive(self, technique, case: Case):
        rounding = Rounding(technique.bits, technique.symmetric, technique.granularity)
        return rounding.fit(case.matrix, case.w, case.facts).dense()


def test_feedback_takes_away_much_of_the_damage_of_three_bits():
    mine = plain = 0.0
    for seed in range(5):
        case = make("convolution", seed)
        mine += case.damage(GPTQ(3).fit(case.matrix, case.w, case.facts).dense())
        plain += case.damage(Rounding(3).fit(case.matrix, case.w, case.facts).dense())
    assert mine < 0.6 * plain


def test_drifted_inputs_are_answered_with_the_original_output():
    """The inputs were scaled by 2 and shifted: the layer must halve its weights and move its bias."""
    case = make("linear", 7)
    gram = case.facts.gram
    moving = torch.eye(gram.shape[1], dtype=torch.float64) * 2
    moving[-1, -1] = 1
    moving[:-1, -1] = 0.3
    facts = replace(case.facts, gram=moving @ gram @ moving.mT, drift=gram @ moving.mT)
    v = GPTQ().fit(case.matrix, case.w, facts).dense()
    old, new = (to_matrix(t, 1).double() for t in (case.w, v))
    shift = best_bias(old, new, facts.gram, facts.drift)
    old, new = (torch.cat([t, b[..., None]], 2) for t, b in ((old, 0 * shift), (new, shift)))
    rest = old @ gram @ old.mT - 2 * old @ facts.drift @ new.mT + new @ facts.gram @ new.mT
    assert (rest.diagonal(dim1=1, dim2=2) < 1e-3 * (old @ gram @ old.mT).diagonal(dim1=1, dim2=2)).all()
