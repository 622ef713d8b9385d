"""What outputs mean: class scores where each token has them, else real numbers, complex ones as two."""

from __future__ import annotations

import pytest
import torch

from tersor.graph.likelihood import categorical, divergence, sampled_loss

TOKENS, MASK = torch.randint(0, 9, (4, 6)), torch.rand(4, 6) < 0.5
IMAGES, STEPS = torch.randn(4, 3, 6, 6), torch.randint(0, 9, (4,))
SERIES = torch.randn(4, 6, 2)


@pytest.mark.parametrize(
    ("shape", "inputs", "classes"),
    [
        ((4, 5), (SERIES,), True),
        ((4, 1), (SERIES,), False),
        ((4, 6, 5), (TOKENS,), True),
        ((4, 6, 5), (TOKENS, MASK), True),
        ((4, 6, 2), (SERIES, MASK), False),
        ((4, 3, 6, 6), (IMAGES, STEPS), False),
        ((4, 7, 5), (TOKENS,), False),
    ],
    ids=["classes", "a number", "tokens", "tokens and a mask", "a series and a mask", "noise and its step", "spans"],
)
def test_classes_are_those_of_items_and_of_tokens(shape, inputs, classes):
    assert categorical(torch.randn(shape), inputs) == classes


def test_complex_outputs_count():
    out = torch.randn(4, 5, dtype=torch.complex64, requires_grad=True)
    loss = sampled_loss([out], (SERIES,), torch.Generator().manual_seed(0))
    assert loss is not None
    assert torch.autograd.grad(loss, out)[0].abs().min() > 0
    assert divergence([torch.tensor([[1 + 1j]])], [torch.tensor([[0 + 0j]])], (SERIES,)) == pytest.approx(1.0)
