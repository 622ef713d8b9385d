"""How wide each group should be: damage-against-width curves, and the least damage at a number of multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from statistics import median

import torch
from torch import Tensor

from tersor import deadline
from tersor.criterion import Criterion
from tersor.errors import BudgetError
from tersor.graph.macs import macs
from tersor.graph.model import Model
from tersor.graph.recurrent import recurrences
from tersor.maths.obs import Reader, Sweep, damped, sweep
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts, Profile
from tersor.site import Group, Matrix, Member, cells, matrices

DAMPING = 1e-2
NAMED = 3  # groups in a message


def curves(model: Model, profile: Profile, groups: Sequence[Group], damping: float = DAMPING) -> dict[str, Sweep]:
    """For each group, the order in which blocks go and the damage of every width, by one structured OBS sweep.

    `sweep.damage[k]` is the damage, in nats, of having removed `k` blocks with the readers repaired. Readers are the
    ungrouped matrices whose columns the group owns, and recurrent layers, which are not repaired. Where there is none, as of
    queries and keys, which only meet each other, each block costs what zeroing its values where they are made does, the mean
    of all places that make them. A group that no gradient reaches either, or whose width counts elsewhere, is not in the
    answer.
    """
    by_weight = {m.weight: m for m in matrices(model)}
    entered = {r.layers[0][0].weights[0] for r in recurrences(model)} & profile.facts.keys()
    found = {}
    for group in (g for g in groups if not g.counted):
        deadline.check()
        readers = [
            _reader(model, profile, by_weight[m.tensor], m.positions, damping)
            for m in group.members
            if m.role == "reads" and m.tensor in by_weight and by_weight[m.tensor].groups == 1
        ]
        readers += [
            _recurrent_reader(profile.facts[m.tensor], m.positions, damping)
            for m in group.members
            if m.role == "reads" and m.tensor in entered and m.axis == 1
        ]
        if readers:
            found[group.name] = sweep(readers)
        else:
            made = [_zeroed(model, profile, by_weight[m.tensor], m) for m in group.members if _makes(m, by_weight)]
            if made and float(sum(w.sum() for w in made)) > 0:
                found[group.name] = _sorted(torch.stack(made).mean(0))
    return found


def ranked(model: Model, profile: Profile, groups: Sequence[Group], criterion: Criterion) -> dict[str, Sweep]:
    """For each group, its blocks from the least to the most worth by `criterion`, in place of a structured OBS sweep.

    What a block is worth is summed over all weights that go with it, rows and columns; "damage" is then what was removed,
    in the criterion's own unit. Groups without a matrix are not in the answer.
    """
    scores = {}
    for m in matrices(model):
        w = to_matrix(model.tensor(m.weight), m.groups, m.transposed).double()
        scores[m.weight] = from_matrix(criterion.scores(m, w, profile.facts[m.name]), m.shape, m.groups, m.transposed)
    found = {}
    for group in groups:
        members = [member for member in group.members if member.tensor in scores]
        if members:
            found[group.name] = _sorted(
                torch.stack([_worth(member, scores[member.tensor]) for member in members]).sum(0)
            )
    return found


def scaled(swept: Mapping[str, Sweep], factors: Mapping[str, float]) -> dict[str, Sweep]:
    """The curves with the damage of each group times its factor (`Sensitivity.factors`), or the median where it has none."""
    usual = median(factors.values())
    return {
        name: Sweep(each.order, tuple(factors.get(name, usual) * lost for lost in each.damage))
        for name, each in swept.items()
    }


def _makes(member: Member, by_weight: Mapping[str, Matrix]) -> bool:
    matrix = by_weight.get(member.tensor)
    if matrix is None or member.role != "produces":
        return False
    return member.axis == 0 if not matrix.transposed else member.axis == 1 and matrix.groups == 1


def _zeroed(model: Model, profile: Profile, matrix: Matrix, member: Member) -> Tensor:
    """(blocks,): the damage of zeroing the outputs of `matrix` that go with each block, `1/2 sum_i g_i E[y_i^2]`."""
    facts = profile.facts[matrix.name]
    w = to_matrix(model.tensor(matrix.weight), matrix.groups, matrix.transposed).double()
    bias = w.new_zeros(w.shape[:2]) if matrix.bias is None else model.tensor(matrix.bias).double().reshape(w.shape[:2])
    whole = torch.cat([w, bias[..., None]], 2)
    power = torch.einsum("grc,gcd,grd->gr", whole, facts.gram, whole).reshape(-1).clamp_min(0)
    worth = 0.5 * facts.fisher * power
    return torch.stack([worth[list(positions)].sum() for positions in member.positions])


def _worth(member: Member, scores: Tensor) -> Tensor:
    along = scores.movedim(member.axis, 0).flatten(1).sum(1)
    return torch.stack([along[list(positions)].sum() for positions in member.positions])


def _sorted(worth: Tensor) -> Sweep:
    order = worth.argsort(stable=True)
    return Sweep(tuple(order.tolist()), (0.0, *worth[order].cumsum(0).tolist()))


def allocate(
    model: Model,
    swept: Mapping[str, Sweep],
    groups: Sequence[Group],
    budget: float,
    least: float = 0.0,
    step: int = 1,
) -> dict[str, tuple[int, ...]]:
    """The blocks to keep, by group, of least summed damage at no more than `budget` multiply-accumulates an item.

    A Lagrangian: each group takes the width that minimises `damage + price * macs`, with the other groups at their
    present widths, and the price is bisected. Every group keeps at least the share `least` of its blocks, and one; widths
    are multiples of `step` where a group has that many. Raises `BudgetError` when even the narrowest are too many.
    """
    counter = _Counter(model, [g for g in groups if g.name in swept])
    offers = {name: _offers(group.blocks, least, step) for name, group in counter.groups.items()}
    narrowest = {name: offer[0] for name, offer in offers.items()}
    if counter.total(narrowest) > budget:
        fewest = "one block per group" if least == 0 else f"{100 * least:.3g} % of the blocks of every group"
        raise BudgetError(_out_of_reach(counter.total(narrowest), budget, fewest, groups, swept))
    low, high = 0.0, 1.0
    while counter.total(_widths(counter, swept, high, offers)) > budget:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        if counter.total(_widths(counter, swept, middle, offers)) > budget:
            low = middle
        else:
            high = middle
    chosen = _widths(counter, swept, high, offers)
    return {name: swept[name].kept(width) for name, width in chosen.items()}


def _out_of_reach(left: float, budget: float, fewest: str, groups: Sequence[Group], swept: Mapping[str, Sweep]) -> str:
    whole = [f"'{g.name}'" for g in groups if g.name not in swept]
    why = f"{', '.join(whole[:NAMED])}{f' and {len(whole) - NAMED} more' if len(whole) > NAMED else ''}"
    if not swept:
        return (
            f"No axis can be pruned: the loss of removing blocks of {why} cannot be predicted, since no linear layer or "
            "convolution reads them. Give weights instead of macs."
        )
    rest = f" {why} cannot be pruned, since no linear layer or convolution reads them." if whole else ""
    return (
        f"Even {fewest} leaves {left:.4g} multiply-adds; the budget is {budget:.4g}.{rest} Give a larger budget, or allow more "
        "groups."
    )


def _offers(blocks: int, least: float, step: int) -> list[int]:
    """The widths that a group of so many blocks may take, ascending."""
    floor = max(1, ceil(least * blocks))
    return [k for k in range(floor, blocks + 1) if k % step == 0 or k == blocks or blocks < step]


def _widths(
    counter: _Counter, swept: Mapping[str, Sweep], price: float, offers: Mapping[str, Sequence[int]], rounds: int = 4
) -> dict[str, int]:
    widths = {name: group.blocks for name, group in counter.groups.items()}
    for _ in range(rounds):
        before = dict(widths)
        for name, offer in offers.items():
            slope = price * counter.per_block(name, widths)
            damage = swept[name].damage
            widths[name] = min(offer, key=lambda k: damage[len(damage) - 1 - k] + slope * k)
        if widths == before:
            break
    return widths


class _Counter:
    """Multiply-accumulates as a function of the widths: each matrix scales with every group that cuts it."""

    def __init__(self, model: Model, groups: Sequence[Group]):
        self.groups = {g.name: g for g in groups}
        self._macs = macs(model)
        by_weight = {m.weight: m.name for m in (*matrices(model), *cells(model))}
        self._touching: dict[str, list[tuple[str, float]]] = {name: [] for name in self._macs}
        for group in groups:
            for member in group.members:
                if member.tensor in by_weight:
                    axis = model.tensor(member.tensor).shape[member.axis]
                    share = sum(len(p) for p in member.positions) / axis
                    self._touching[by_weight[member.tensor]].append((group.name, share))

    def total(self, widths: Mapping[str, int]) -> float:
        return sum(self._of(matrix, widths) for matrix in self._macs)

    def per_block(self, group: str, widths: Mapping[str, int]) -> float:
        """What one block of `group` costs with the other groups as they are."""
        mine = [matrix for matrix, touching in self._touching.items() if any(name == group for name, _ in touching)]
        all_but = [{**widths, group: width} for width in (0, self.groups[group].blocks)]
        none, every = (sum(self._of(matrix, w) for matrix in mine) for w in all_but)
        return (every - none) / self.groups[group].blocks

    def _of(self, matrix: str, widths: Mapping[str, int]) -> float:
        cost = float(self._macs[matrix])
        for name, share in self._touching[matrix]:
            cost *= 1 - share * (1 - widths[name] / self.groups[name].blocks)
        return cost


def _recurrent_reader(facts: Facts, positions: Sequence[Sequence[int]], damping: float) -> Reader:
    """Of what a recurrent layer reads: nothing makes up for a column that goes."""
    gram = damped(facts.gram, damping)[0, :-1, :-1]
    return Reader(torch.eye(len(gram), dtype=gram.dtype), gram, facts.fisher, [list(each) for each in positions])


def _reader(
    model: Model, profile: Profile, matrix: Matrix, positions: Sequence[Sequence[int]], damping: float
) -> Reader:
    facts = profile.facts[matrix.name]
    transposed = matrix.convolution is not None and matrix.convolution.transposed
    w = to_matrix(model.tensor(matrix.weight), 1, transposed)[0].double()
    gram = damped(facts.gram, damping)[0]
    if matrix.bias is None:
        gram = gram[:-1, :-1]
    else:
        w = torch.cat([w, w.new_zeros(len(w), 1)], 1)
    return Reader(w, gram, facts.fisher, _columns(matrix, positions))


def _columns(matrix: Matrix, positions: Sequence[Sequence[int]]) -> list[list[int]]:
    """Columns of the unfolded matrix for positions along the input axis."""
    size = 1 if matrix.convolution is None else prod(matrix.convolution.kernel)
    return [[p * size + k for p in block for k in range(size)] for block in positions]
