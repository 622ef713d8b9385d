"""What every criterion promises, and what each one is."""

from __future__ import annotations

import pkgutil
from dataclasses import replace

import pytest
import torch
from laws import LAYOUTS, make

from tersor import criteria
from tersor.criteria import criterion_called
from tersor.criteria.activation import Activation
from tersor.criteria.batch_norm import BatchNorm
from tersor.criteria.feature_map import FeatureMap
from tersor.criteria.geometric_median import GeometricMedian
from tersor.criteria.magnitude import Magnitude
from tersor.criteria.movement import Movement
from tersor.criteria.obd import OBD
from tersor.criteria.obs import OBS
from tersor.criteria.random import Random
from tersor.criteria.share_of_zeros import ShareOfZeros
from tersor.criteria.taylor import Taylor
from tersor.criteria.wanda import Wanda
from tersor.criterion import Criterion
from tersor.errors import InputError
from tersor.graph.model import capture
from tersor.maths.unfold import to_matrix
from tersor.profile import Facts, measure
from tersor.rewrites.fold_norms import fold_norms
from tersor.site import matrices

CRITERIA = (
    *(Activation(), BatchNorm(), FeatureMap(), GeometricMedian(), Magnitude(), Magnitude(2)),
    *(Movement(), OBD(), OBS(), Random(1), ShareOfZeros(), Taylor(), Wanda()),
)


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_finite_repeatable_and_not_negative(criterion: Criterion, layout: str):
    case = make(layout, 1)
    w = to_matrix(case.w, case.matrix.groups, case.matrix.transposed).double()
    dead = Facts(*(torch.zeros_like(fact) for fact in (case.facts.gram, case.facts.fisher, case.facts.activity)))
    for facts in (
        replace(case.facts, movement=w.sin()),
        replace(dead, movement=torch.zeros_like(w), gradient=torch.zeros_like(w)),
    ):
        scores = criterion.scores(case.matrix, w, facts)
        assert scores.shape == w.shape
        assert scores.dtype == torch.float64
        assert torch.isfinite(scores).all()
        assert (scores >= 0).all()
        assert torch.equal(scores, criterion.scores(case.matrix, w, facts))
    name = {type(criterion).__name__: type(criterion)}
    assert eval(repr(criterion), name) == criterion


@pytest.mark.parametrize("biased", [True, False])
def test_obd_is_the_damage_of_zeroing_one_weight(biased: bool):
    case = make("linear", 2, biased)
    scores = OBD().scores(case.matrix, case.w[None].double(), case.facts)
    v = case.w.clone()
    v[3, 5] = 0
    assert case.damage(v) == pytest.approx(float(scores[0, 3, 5]), rel=1e-5)


def test_obs_is_the_damage_after_the_others_have_made_up_for_it():
    case = make("linear", 2, biased=False)
    scores = OBS(damping=0.0).scores(case.matrix, case.w[None].double(), case.facts)
    h, others = case.facts.gram[0, :-1, :-1], [j for j in range(12) if j != 5]
    v = case.w.double()
    v[3, 5] = 0
    v[3, others] = torch.linalg.solve(h[others][:, others], h[others] @ case.w[3].double())
    assert case.damage(v) == pytest.approx(float(scores[0, 3, 5]), rel=1e-3)


def test_wanda_and_taylor_by_hand():
    case = make("linear", 4)
    w = case.w[None].double()
    power = case.facts.gram[0].diagonal()[:-1]
    torch.testing.assert_close(Wanda().scores(case.matrix, w, case.facts), w.abs() * power.sqrt())
    torch.testing.assert_close(Taylor().scores(case.matrix, w, case.facts), case.facts.gradient * w.square())


def test_the_mean_absolute_input_and_the_share_of_inputs_that_are_not_zero():
    module = torch.nn.Linear(3, 2)
    x = torch.tensor([[1.0, 0.0, -1.0], [-3.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.0, 4.0, 0.0]])
    model = capture(module, (x[:2],))
    (matrix,) = matrices(model)
    facts = measure(model, [(x[:1],), (x[1:],)], frozenset({"gram"})).facts[matrix.name]
    w = module.weight.detach().double()[None]
    wanted = torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64).expand(1, 2, 3)
    torch.testing.assert_close(Activation().scores(matrix, w, facts), wanted)
    wanted = torch.tensor([0.75, 0.25, 0.5], dtype=torch.float64).expand(1, 2, 3)
    torch.testing.assert_close(ShareOfZeros().scores(matrix, w, facts), wanted)


def test_the_scale_of_a_folded_batch_norm_is_found_again():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(6)
    torch.nn.init.uniform_(norm.weight, -2.0, 2.0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1, bias=False), norm)
    x = torch.randn(64, 3, 4, 4) * torch.tensor([1.0, 3.0, 9.0]).reshape(3, 1, 1)
    norm.momentum = None
    module(x)  # estimates the statistics
    model = fold_norms(capture(module.eval(), (x[:2],)))
    (matrix,), facts = matrices(model), measure(model, [(x,)], frozenset({"gram"})).facts["0"]
    scores = BatchNorm().scores(matrix, to_matrix(model.tensor(matrix.weight), 1), facts)
    torch.testing.assert_close(scores[0, :, 0].float(), norm.weight.detach().abs(), rtol=2e-3, atol=1e-3)


def test_the_row_amid_the_others_is_worth_least():
    w = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]])
    case = make("linear", 0)
    assert int(GeometricMedian().scores(case.matrix, w, case.facts)[0, :, 0].argmin()) == 0


def test_every_file_is_a_word():
    words = [module.name for module in pkgutil.iter_modules(criteria.__path__)]
    assert {type(criterion_called(word)) for word in words} == {type(c) for c in CRITERIA}


def test_what_grew_is_worth_more_than_what_shrank_whatever_its_size():
    case = make("linear", 1)
    w = case.w[None].double()
    facts = replace(case.facts, movement=-w.abs())
    scores = Movement().scores(case.matrix, w, facts)
    assert int(scores.argmax()) == int(w.abs().argmin())
    with pytest.raises(InputError, match="scores what training does to weights; give recover, for example 1epochs"):
        Movement().scores(case.matrix, w, case.facts)


def test_taylor_needs_gradients_of_weights():
    case = make("linear", 1)
    with pytest.raises(InputError, match='measure with needs that hold "gradient"'):
        Taylor().scores(case.matrix, case.w[None].double(), replace(case.facts, gradient=None))
