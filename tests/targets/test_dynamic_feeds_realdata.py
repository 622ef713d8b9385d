"""A trained decoder in int8 with feeds made at run time: every linear layer in integers, next to no loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tersor.fitting import Decisions, fit
from tersor.graph.model import capture
from tersor.profile import measure
from tersor.rewrites.fold_norms import fold_norms
from tersor.search import mostly_linear, technique
from tersor.site import matrices
from tersor.targets.onnxruntime import OnnxRuntime

pytestmark = pytest.mark.realdata
WINDOW = 64


def windows(loaders: ModuleType, which: slice) -> torch.Tensor:
    """(windows, WINDOW + 1) tokens of some of the stories."""
    _, tokens = loaders.stories260k()
    stories = [tokens.encode(story) for story in loaders.tinystories()[which]]
    starts = [(ids, i) for ids in stories for i in range(0, len(ids) - WINDOW, WINDOW)]
    return torch.tensor([ids[i : i + WINDOW + 1] for ids, i in starts])


def loss(logits: np.ndarray, ids: torch.Tensor) -> float:
    """Nats a token."""
    return F.cross_entropy(torch.from_numpy(logits).flatten(0, 1), ids[:, 1:].flatten()).item()


@pytest.mark.slow
def test_a_decoder_runs_all_linears_in_integers(
    loaders: ModuleType, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    calibration, test = (windows(loaders, slice(start, None, 2)) for start in (0, 1))
    batches = [(calibration[:, :-1].contiguous(),)]
    model = fold_norms(capture(loaders.stories260k()[0], (batches[0][0][:2],)))
    assert mostly_linear(model)
    decisions = Decisions(techniques={m.name: technique() for m in matrices(model)}, feeds="dynamic")
    target = OnnxRuntime("int8")
    target.export(fit(model, batches, measure(model, batches), decisions), tmp_path)
    runner = target.load(tmp_path, threads=1)

    executed = {o.name: (o.precision, o.reason) for o in runner.audit().operators}
    linears = {m.name for m in matrices(model)}
    assert len(linears) == 36
    assert {executed.pop(name) for name in linears} == {("i8", "")}
    assert set(executed.values()) == {("f32", "both factors are activations")}

    ids = test[:, :-1].contiguous()
    wanted, (seen,) = model.run(ids)[0].numpy(), runner.predict(ids.numpy())
    agreement = float(np.mean(seen.argmax(-1) == wanted.argmax(-1)))
    more = loss(seen, test) - loss(wanted, test)
    record_property("agreement", agreement)
    record_property("loss increase", more)
    assert more < 0.05
    assert agreement > 0.9
    fidelity = target.fidelity(tmp_path, [ids.numpy()])
    # They part where an exponential's last bit moves a code by one step.
    assert fidelity.parts is None or fidelity.parts.steps == 1.0
