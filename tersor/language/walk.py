"""The streamed fit: block after block, two streams of hidden states, the original's and the quantised network's.

Within a block its linear layers are fitted in execution order. With inputs x of the quantised network as it is now, outputs
t that the original gave (for a layer that is added to a residual stream also what has gone wrong on that stream), and
`T = E[t x~^T]`, `H = E[x~ x~^T]`: the target is `T H^-1`, with a ridge towards W that is chosen on pieces of text that
nothing is fitted to; then the technique chooses grid and codes near the target. Every output counts alike (no Fisher).
Memory: two copies of one block in float32, a few 8 c^2 bytes for Gram matrices, and the two streams.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.errors import ModelError
from tersor.forms.affine import Affine
from tersor.language import kv_cache
from tersor.language.decoder import Decoder
from tersor.language.easing import ease
from tersor.language.pack import Chosen, Scheme
from tersor.language.polishing import Goal, polished
from tersor.language.reading import Site, seen, sites
from tersor.language.rotating import rotate
from tersor.maths.damage import best_bias, quadratic
from tersor.maths.gptq import polish
from tersor.maths.points import Lattice, by_column
from tersor.maths.ranges import by_position, passing
from tersor.maths.regression import RIDGES, Moments, best_ridge, moments, optimum
from tersor.maths.rounding import WIDE
from tersor.profile import Facts
from tersor.site import Matrix
from tersor.technique import Technique

TOGETHER = 4096  # positions of which moments are taken at once
JUDGED = 512  # rows of a wide matrix by which its ridge is chosen

Part = Literal["fit", "check", "judge"]


@dataclass
class Piece:
    """Some windows of text on their way through the network: `ids` (windows, positions), and the hidden states that the
    original and the quantised network have for them, block after block."""

    ids: Tensor
    part: Part
    original: Tensor
    now: Tensor


@dataclass(frozen=True)
class Fitted:
    """A block, by names in the model: its `matrices`, parameters of norms that took new values (float32), and scales of its
    cache (1,), as they are stored."""

    matrices: Mapping[str, Chosen]
    norms: Mapping[str, Tensor]
    caches: Mapping[str, Tensor]


@dataclass(frozen=True)
class Wanted:
    """How one matrix is to be stored and found: its scheme, the technique, and the type of its scales and bias."""

    scheme: Scheme
    technique: Technique
    dtype: torch.dtype


class Walk:
    """One walk of `pieces` of ids through `decoder`. wanted: by name of the matrix in the model. aimed: whether scale moves
    to where it costs less, and targets are refitted to what has drifted; else each matrix is quantised as it is. cache: of
    `kv_cache.KINDS`, None where keys and values stay float. steps: in which the codes of each block are polished."""

    def __init__(
        self,
        decoder: Decoder,
        ids: Sequence[tuple[Tensor, Part]],
        wanted: Mapping[str, Wanted],
        aimed: bool,
        cache: str | None = None,
        steps: int = 0,
    ):
        self._decoder, self._wanted, self._aimed, self._cache = decoder, wanted, aimed, cache
        self._steps = steps
        entered = [(piece, part, decoder.enter(piece)) for piece, part in ids]
        self._pieces = [Piece(piece, part, hidden, hidden) for piece, part, hidden in entered]

    def blocks(self) -> Iterator[Fitted]:
        """Fit one block after the other; what was chosen in each."""
        for index in range(len(self._decoder.blocks)):
            yield self._block(index)

    def losses(self) -> tuple[Tensor, Tensor]:
        """Nats a token of each judged window, of the original and of the quantised network; after `blocks`."""
        judged = [p for p in self._pieces if p.part == "judge"]
        return torch.cat([self._loss(p.ids, p.original) for p in judged]), torch.cat(
            [self._loss(p.ids, p.now) for p in judged]
        )

    def _loss(self, ids: Tensor, hidden: Tensor) -> Tensor:
        scores = self._decoder.leave(ids, hidden)[:, :-1].float()
        return F.cross_entropy(scores.mT, ids[:, 1:], reduction="none").mean(1)

    def _block(self, index: int) -> Fitted:
        original = self._decoder.block(index)
        place = f"{self._decoder.place}.{index}."
        inside = [name.removeprefix(place) for name in self._wanted if name.startswith(place)]
        run = self._run(index, self._pieces[0].original)
        found = sites(original, run, inside) if inside else []
        if self._aimed:
            rotate(original, run, found, {name: self._wanted[place + name].scheme for name in inside})
        now = copy.deepcopy(original)
        chosen: dict[str, Chosen] = {}
        norms: dict[str, Tensor] = {}
        caches = self._cached(index, now) if self._cache else {}
        for site in found:
            if self._aimed:
                norms |= self._ease(index, now, site, chosen)
            for name in site.names:
                _read_on_grids(now.get_submodule(name), self._wanted[place + name].scheme.reads)
            fit, check = self._moments(index, original, now, site)
            chosen |= self._fit(place, now, site, fit, check)
        if self._steps and chosen:
            chosen |= self._polish(index, original, now, chosen)
        for piece in self._pieces:
            piece.original = self._decoder.run(original, index, piece.original)
            piece.now = self._decoder.run(now, index, piece.now)
        return Fitted(chosen, norms, caches)

    def _polish(
        self, index: int, original: nn.Module, now: nn.Module, chosen: Mapping[str, Chosen]
    ) -> dict[str, Chosen]:
        """The codes chosen again by what the block gives; they are put into `now`."""
        place = f"{self._decoder.place}.{index}."
        inside = {name.removeprefix(place): found for name, found in chosen.items()}
        goals: dict[Part, list[Goal]] = {"fit": [], "check": [], "judge": []}
        for piece in self._pieces:
            if piece.part != "judge":
                goals[piece.part].append(Goal(piece.now, self._decoder.run(original, index, piece.original)))
        found = polished(
            partial(self._decoder.through, now, index),
            inside,
            goals["fit"],
            goals["check"] or goals["fit"],
            self._steps,
        )
        for name, each in found.items():
            now.get_submodule(name).weight.data = each.value
        return {place + name: each for name, each in found.items()}

    def _cached(self, index: int, now: nn.Module) -> dict[str, Tensor]:
        """Put what attention keeps on grids, for good; their scales."""
        assert self._cache is not None
        grids = {name: kv_cache.Grids(self._cache) for name in kv_cache.caches(now)}
        for name, each in grids.items():
            kv_cache.put(now.get_submodule(name), each)
        for piece in self._pieces:
            if piece.part == "fit":
                self._decoder.run(now, index, piece.now)
        dtype = next(iter(self._wanted.values())).dtype
        scales: dict[str, Tensor] = {}
        for name, each in grids.items():
            each.settle(dtype)
            for word, scale in zip(("k_scale", "v_scale"), each.scales, strict=True):
                scales[f"{self._decoder.place}.{index}.{name}.{word}"] = scale
        return scales

    def _ease(self, index: int, now: nn.Module, site: Site, chosen: dict[str, Chosen]) -> dict[str, Tensor]:
        """Move scale before `site`: layers that were chosen already take their share in `chosen`, what norms have is given."""
        place = f"{self._decoder.place}.{index}."
        wanted = self._wanted[place + site.names[0]]
        fitted = {name.removeprefix(place): found.by_row for name, found in chosen.items()}
        run = self._run(index, self._pieces[0].now)
        move = ease(now, run, site, fitted, wanted.scheme.kind, wanted.scheme.reads, wanted.dtype)
        if move is None:
            return {}
        if move.giver in fitted:
            chosen[place + move.giver] = chosen[place + move.giver].divided(move.scale)
            return {}
        own = now.get_submodule(move.giver).named_parameters(recurse=False)
        return {f"{place}{move.giver}.{leaf}": value.detach() for leaf, value in own}

    def _run(self, index: int, hidden: Tensor) -> Any:
        return partial(self._decoder.run, index=index, hidden=hidden)

    def _moments(self, index: int, original: nn.Module, now: nn.Module, site: Site) -> tuple[Moments, Moments]:
        """Of all layers of the site, outputs side by side: of the pieces fitted to, and of those that check."""
        parts = {"fit": _Sums(), "check": _Sums()}
        for piece in self._pieces:
            if piece.part == "judge":
                continue
            then = seen(original, self._run(index, piece.original), site, outputs=True)
            here = seen(now, self._run(index, piece.now), site, outputs=False)
            goal = then.gave
            if then.stream is not None and here.stream is not None:
                goal = goal + (then.stream - here.stream)
            if not bool(torch.isfinite(here.read).all()):
                name = f"{self._decoder.place}.{index}.{site.names[0]}"
                raise ModelError(
                    f"What '{name}' reads is NaN or Inf on the given text; the model overflows there in float32."
                )
            parts[piece.part].add(here.read, goal)
        fit, check = parts["fit"].moments(), parts["check"].moments()
        assert fit is not None  # some piece is fitted to
        return fit, fit if check is None else check

    def _fit(self, place: str, now: nn.Module, site: Site, fit: Moments, check: Moments) -> dict[str, Chosen]:
        chosen: dict[str, Chosen] = {}
        start = 0
        for name in site.names:
            layer = now.get_submodule(name)
            assert isinstance(layer, nn.Linear)  # only those are wanted
            rows = slice(start, start := start + layer.out_features)
            aim = self._target(layer, _rows(fit, rows), _rows(check, rows))
            found = choose(aim, layer.bias is not None, fit.gram, self._wanted[place + name])
            layer.weight.data = found.value
            if found.bias is not None:
                layer.bias.data = found.bias.float()
            chosen[place + name] = found if self._steps else replace(found, aim=None)
        return chosen

    def _target(self, layer: nn.Linear, fit: Moments, check: Moments) -> Tensor:
        """(1, r, c + 1) float64, the bias (or zeros) last."""
        biased = layer.bias is not None
        bias = layer.bias if biased else torch.zeros(layer.out_features)
        w = torch.cat([layer.weight, bias[:, None]], 1).double()[None]
        if not self._aimed:
            return w
        ridges: Sequence[float] = RIDGES
        some = slice(None)
        if w.shape[2] > WIDE:  # c^3 operations each: half the time in float32, and what comes out is checked
            w, fit, check = w.float(), fit.to(torch.float32), check.to(torch.float32)
            ridges = RIDGES[1:4]
            some = slice(None, None, -(-w.shape[1] // JUDGED))  # one ridge for all rows: some of them tell which
        part = w[:, some]
        weigh = torch.ones(part.shape[:2], dtype=torch.float64)
        ridge = best_ridge(part, _rows(fit, some), _rows(check, some), weigh, biased, ridges)
        return w if ridge is None else optimum(w, fit, ridge, biased)


def _read_on_grids(layer: nn.Module, bits: int) -> None:
    """From now on each position of what `layer` reads is on a grid of its own; `bits` 0: nothing happens."""
    if bits:
        layer.register_forward_pre_hook(lambda _, args: (passing(by_position(args[0], bits), args[0]), *args[1:]))


def choose(aim: Tensor, biased: bool, gram: Tensor, wanted: Wanted) -> Chosen:
    """The quantised matrix for the target `aim` (1, r, c + 1), inputs with the Gram matrix `gram` (1, c + 1, c + 1)."""
    rows, columns = aim.shape[1], aim.shape[2] - 1
    w = aim[0, :, :-1].float()
    matrix = Matrix("linear", "linear", "linear.weight", "linear.bias" if biased else None, (rows, columns))
    facts = Facts(gram, torch.ones(rows, dtype=torch.float64), torch.zeros(1, 2, columns))
    found = wanted.technique.fit(matrix, w, facts)
    if not isinstance(found, Affine):
        raise TypeError(f"{wanted.technique} gave {type(found).__name__}; folders hold affine grids.")
    q = quadratic(gram, free_bias=biased).gram
    codes, scale = _stored(found, w, q.float() if columns >= WIDE else q, wanted)
    chosen = Chosen(codes, scale, wanted.scheme, None, w)
    if not biased:
        return chosen
    bias = aim[:, :, -1] + best_bias(aim[:, :, :-1], chosen.value.double()[None], gram)
    return replace(chosen, bias=bias[0].to(wanted.dtype))


def _stored(found: Affine, w: Tensor, gram: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """Codes and scales, these in the stored type; where that rounds them, codes take their best values again."""
    if wanted.dtype == torch.float32:
        return found.codes, found.scale
    scale = found.scale.clamp_min(torch.finfo(wanted.dtype).tiny).to(wanted.dtype)
    kept = by_column(scale.double(), 1, len(w))
    points = Lattice(kept, found.run, torch.zeros_like(kept), found.low, -found.low)
    codes = polish(found.codes[None], w[None], gram, points, sweeps=1)
    return codes[0].to(torch.int8), scale


def _rows(m: Moments, rows: slice) -> Moments:
    return Moments(m.gram, m.cross[:, rows], m.power[:, rows], m.count)


class _Sums:
    """Moments of piece after piece, many positions at a time: c^2 values each time are most of the work otherwise."""

    def __init__(self) -> None:
        self._sum: Moments | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, read: Tensor, goal: Tensor) -> None:
        """read: (positions, c); goal: (positions, r)."""
        self._waiting.append((read, goal))
        if sum(len(x) for x, _ in self._waiting) >= TOGETHER:
            self._flush()

    def moments(self) -> Moments | None:
        """Of all that was added; None where there was nothing."""
        if self._waiting:
            self._flush()
        return self._sum

    def _flush(self) -> None:
        x, t = (torch.cat(some)[None] for some in zip(*self._waiting, strict=True))
        self._waiting = []
        more = moments(x, t)
        self._sum = more if self._sum is None else self._sum + more
