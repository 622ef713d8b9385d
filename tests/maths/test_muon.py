"""Muon: orthogonal steps of the size that was asked for."""

from __future__ import annotations

import pytest
import torch

from tersor.maths.muon import VECTORS, Muon, directions, directions_together, orthogonal


@pytest.mark.parametrize("shape", [(6, 30), (30, 6), (8, 8), (1, 5)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]):
    torch.manual_seed(0)
    m = torch.randn(*shape)
    u, _, v = torch.linalg.svd(m, full_matrices=False)
    found = u.T @ orthogonal(m) @ v.T
    torch.testing.assert_close(found, torch.diag(found.diag()), atol=1e-3, rtol=0)
    assert 0.6 < float(found.diag().min()) <= float(found.diag().max()) < 1.3


def test_a_matrix_moves_by_a_share_of_its_norm_and_a_vector_by_the_gradient():
    torch.manual_seed(0)
    kernel, bias = (torch.nn.Parameter(torch.randn(*shape)) for shape in ((8, 4, 3, 3), (8,)))
    before = kernel.detach().clone(), bias.detach().clone()
    muon = Muon([{"params": [kernel], "matrices": True}, {"params": [bias]}], lr=0.01, momentum=0.0)
    kernel.grad, bias.grad = torch.randn(8, 4, 3, 3) * 1e-6, torch.ones(8)
    muon.step()
    torch.testing.assert_close((kernel - before[0]).norm(), 0.01 * before[0].norm())
    torch.testing.assert_close(bias.detach(), before[1] - 0.01 * VECTORS)


def test_matrices_of_many_shapes_turn_together_as_one_by_one():
    torch.manual_seed(0)
    shapes = [(16, 27), (13, 144), (16, 130), (64, 9), (100, 5), (1, 5), (300, 400)]
    headings, like = ([torch.randn(*shape) for shape in shapes] for _ in range(2))
    headings.append(torch.zeros(13, 144))  # which stays where it is
    like.append(torch.ones(13, 144))
    for ours, theirs in zip(directions_together(headings, like), directions(headings, like), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_matrices_and_tables_decay_by_their_share():
    parameters = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    parts = [
        {"params": [p], "matrices": m, "weight_decay": 0.5} for p, m in zip(parameters, (True, False), strict=True)
    ]
    muon = Muon(parts, lr=0.1)
    for p in parameters:
        p.grad = torch.zeros(3, 3)
    muon.step()
    for p in parameters:
        torch.testing.assert_close(p.detach(), torch.full((3, 3), 0.95))


def test_an_empty_gradient_moves_nothing():
    kernel = torch.nn.Parameter(torch.ones(3, 3))
    muon = Muon([{"params": [kernel], "matrices": True}], lr=0.1)
    kernel.grad = torch.zeros(3, 3)
    muon.step()
    assert torch.equal(kernel, torch.ones(3, 3))


def test_a_least_squares_problem_of_bad_condition_is_solved_in_fewer_steps_than_by_sgd():
    torch.manual_seed(0)
    x = torch.randn(256, 12) * torch.logspace(0, -2, 12)
    target = torch.randn(5, 12)

    def left(rate: float, muon: bool) -> float:
        w = torch.nn.Parameter(target + 1.0)
        part = [{"params": [w], "matrices": True}]
        optimiser = Muon(part, rate) if muon else torch.optim.SGD([w], rate, momentum=0.9, nesterov=True)
        for step in range(60):
            optimiser.param_groups[0]["lr"] = rate * (1 - step / 60)
            optimiser.zero_grad()
            (x @ (w - target).T).square().mean().backward()
            optimiser.step()
        return float((w.detach() - target).norm())

    assert left(0.2, True) < 0.5 * min(left(rate, False) for rate in (0.03, 0.1, 0.3, 1.0, 2.0))
