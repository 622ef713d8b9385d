"""The laws of a target: a plug-in's test inherits `TargetLaws` and names its target."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hubzoo import captured, compressed, example

from tersor.errors import ArtifactError, DataError
from tersor.hub.simulate import simulate
from tersor.target import Compressed, Input, Target
from tersor.targets import target_called, target_name


class TargetLaws:
    """Set `target`; `tolerance` (of the largest output) is what its arithmetic may change. What is in int8 is compared with the
    simulation of its own file as `simulated` ("onnxruntime" or "openvino") computes it, else with torch."""

    target: ClassVar[Target]
    tolerance: ClassVar[float] = 1e-4
    simulated: ClassVar[str | None] = None

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The residual network of the hub's zoo, exported."""
        folder = tmp_path_factory.mktemp("exported")
        self.target.export(compressed("residual"), folder)
        return folder

    def test_it_is_found_by_its_name(self):
        assert target_called(*target_name(self.target)) == self.target
        assert self.target.precision in self.target.precisions
        assert self.target.available() is None

    def test_runs_what_it_exported_at_any_batch(self, folder: Path):
        runner = self.target.load(folder, threads=1)
        (wanted,) = self._wanted(folder, "residual", 5)
        assert (runner.inputs, runner.outputs) == (("image",), ("output",))
        for items in (5, 1, 2):
            (seen,) = runner.predict(example("residual", 5, seed=7)[0].numpy()[:items])
            assert seen.dtype == np.float32
            np.testing.assert_allclose(seen, wanted[:items], atol=self.tolerance * np.abs(wanted).max())

    def test_names_of_several_inputs_and_outputs(self, tmp_path: Path):
        self.target.export(Compressed(captured("several")), tmp_path)
        runner = self.target.load(tmp_path, threads=1)
        assert runner.inputs == ("tokens", "shift")
        assert [name.removesuffix("_out") for name in runner.outputs] == ["hidden", "scores", "shift"]
        inputs = [t.numpy() for t in example("several", 3, seed=7)]
        for seen, wanted in zip(runner.predict(*inputs), self._wanted(tmp_path, "several", 3), strict=True):
            np.testing.assert_allclose(seen, wanted, atol=self.tolerance * np.abs(wanted).max())

    def _wanted(self, folder: Path, name: str, items: int) -> Sequence[np.ndarray]:
        if self.simulated is None or self.target.precision != "int8":
            return _outputs(name, items)
        (file,) = folder.glob("*.onnx")
        return simulate(file, [t.numpy() for t in example(name, items, seed=7)], self.simulated)

    def test_outputs_are_the_callers_own_and_inputs_stay(self, folder: Path):
        runner = self.target.load(folder, threads=1)
        given = example("residual", 2, seed=7)[0].numpy()
        before = given.copy()
        (first,) = runner.predict(given)
        kept = first.copy()
        runner.predict(-given)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(given, before)

    def test_takes_read_only_arrays_of_any_size(self, folder: Path):
        runner = self.target.load(folder, threads=1)
        for items in (2, 2000):  # large arrays may be lent to the runtime
            given = np.repeat(example("residual", 2, seed=7)[0].numpy(), items // 2, 0)
            given.setflags(write=False)
            (seen,) = runner.predict(given)
            np.testing.assert_allclose(seen[0], seen[items // 2 - 1], rtol=1e-4, atol=1e-5)

    def test_wrong_inputs_say_so(self, folder: Path):
        runner = self.target.load(folder, threads=1)
        image = example("residual", 1)[0].numpy()
        with pytest.raises(DataError, match=r"takes 1 inputs \(image\) and was given 2"):
            runner.predict(image, image)

    def test_the_audit_lists_every_matrix(self, folder: Path):
        audit = self.target.load(folder).audit()
        assert {o.name for o in audit.operators} == {"stem", "a", "b", "c", "d", "head"}
        assert all(o.precision for o in audit.operators)

    def test_the_same_model_gives_the_same_bytes(self, folder: Path, tmp_path: Path):
        self.target.export(compressed("residual"), tmp_path)
        for path in folder.iterdir():
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()

    def test_truncated_and_missing_files_are_refused(self, folder: Path, tmp_path: Path):
        cut = tmp_path / "cut"
        shutil.copytree(folder, cut)
        for file in list(cut.iterdir()):
            whole = file.read_bytes()
            for size in (0, 100, len(whole) // 2, len(whole) - 1):
                file.write_bytes(whole[:size])
                with pytest.raises(ArtifactError, match=file.name):
                    self.target.load(cut)
            file.unlink()
            with pytest.raises(ArtifactError, match=file.name):
                self.target.load(cut)
            file.write_bytes(whole)

    def test_it_says_how_to_run_without_tersor(self):
        usage = self.target.usage([Input("image", "float32", (1, 3, 8, 8))], ("output",), 1)
        assert "image" in usage
        assert "tersor" not in usage


@cache
def _outputs(name: str, items: int) -> list[np.ndarray]:
    model = compressed(name).model if name == "residual" else captured(name)
    return [t.numpy() for t in model.run(*example(name, items, seed=7))]
