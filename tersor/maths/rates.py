"""How the learning rate goes: a factor for every share of the training that is done, in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

Rate = Callable[[float], float]


def constant(done: float) -> float:
    """The same all the time."""
    return 1.0


def cosine(done: float) -> float:
    """Half a period of a cosine, to zero. Source: Loshchilov and Hutter 2017, arXiv:1608.03983."""
    return (1 + cos(pi * done)) / 2


def linear(done: float) -> float:
    """To zero along a line."""
    return 1 - done


def step(done: float) -> float:
    """A tenth after half of it, a hundredth after three quarters."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def one_cycle(done: float) -> float:
    """Up from 1/25 in the first 30 %, then down to nothing, both by cosines. Source: Smith and Topin 2018, arXiv:1708.07120."""
    peak, start = 0.3, 1 / 25
    if done < peak:
        return start + (1 - start) * (1 - cos(pi * done / peak)) / 2
    return (1 + cos(pi * (done - peak) / (1 - peak))) / 2


RATES: dict[str, Rate] = {each.__name__: each for each in (constant, cosine, linear, one_cycle, step)}


def warmed(rate: Rate, share: float) -> Rate:
    """`rate`, but up along a line from zero over the first `share` of the training."""
    return lambda done: rate(done) * min(1.0, done / share) if share > 0 else rate(done)
