import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hubzoo import captured, compressed, example

from tersor.errors import ArtifactError, DataError, MissingRuntime
from tersor.target import Compressed, Input, Target
from tersor.targets import onnxruntime, target_name, timed
from tersor.targets.eager import Eager
from tersor.targets.inductor import Inductor
from tersor.targets.onnxruntime import OnnxRuntime
from tersor.targets.openvino import OpenVINO

FLOAT = [Eager(), OnnxRuntime(), OpenVINO()]
EVERY = [*FLOAT, OnnxRuntime("int8"), OpenVINO("int8")]
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.1}


def folder_of(target: Target, made: Compressed, root: Path) -> Path:
    folder = root / repr(target)
    folder.mkdir()
    target.export(made, folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders of the residual network, by target, made when first asked for."""
    root, made = tmp_path_factory.mktemp("exported"), {}

    def of(target: Target) -> Path:
        if target not in made:
            made[target] = folder_of(target, compressed("residual"), root)
        return made[target]

    return of


def image(items: int) -> np.ndarray:
    return example("residual", items, seed=7)[0].numpy()


@pytest.mark.parametrize("target", EVERY, ids=repr)
def test_runs_what_it_exported_at_any_batch(exported, target):
    runner = target.load(exported(target), threads=1)
    assert runner.inputs == ("image",)
    assert runner.outputs == ("output",)
    (wanted,) = (t.numpy() for t in compressed("residual").model.run(*example("residual", 9, seed=7)))
    for items in (9, 1, 2, 3, 4, 5, 6, 7, 8, 1):  # more sizes than are compiled for
        (seen,) = runner.predict(image(9)[:items])
        assert seen.dtype == np.float32
        np.testing.assert_allclose(seen, wanted[:items], atol=TOLERANCE[target.precision] * np.abs(wanted).max())


@pytest.mark.parametrize("target", EVERY, ids=repr)
def test_outputs_are_the_callers_own(exported, target):
    runner = target.load(exported(target), threads=1)
    (first,) = runner.predict(image(2))
    kept = first.copy()
    runner.predict(image(4)[2:])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("target", EVERY, ids=repr)
def test_takes_arrays_of_any_layout_and_leaves_them_alone(exported, target):
    runner = target.load(exported(target), threads=1)
    x = image(2)
    strided = np.asfortranarray(x)
    strided.setflags(write=False)
    np.testing.assert_allclose(runner.predict(strided)[0], runner.predict(x)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(strided, image(2))


@pytest.mark.parametrize("target", EVERY, ids=repr)
def test_wrong_inputs_say_so(exported, target):
    runner = target.load(exported(target), threads=1)
    with pytest.raises(DataError, match=r"takes 1 inputs \(image\) and was given 2"):
        runner.predict(image(1), image(1))
    with pytest.raises(DataError, match=r"refuses inputs image float32 \[1, 8, 8\]"):
        runner.predict(image(1)[0, :1])
    runner.predict(image(1))  # and goes on


@pytest.mark.parametrize("target", FLOAT, ids=repr)
def test_several_inputs_and_outputs(target, tmp_path):
    made = Compressed(captured("several"))
    runner = target.load(folder_of(target, made, tmp_path), threads=1)
    assert runner.inputs == ("tokens", "shift")
    assert [name.removesuffix("_out") for name in runner.outputs] == ["hidden", "scores", "shift"]
    x = example("several", 3, seed=1)
    for seen, wanted in zip(runner.predict(*(t.numpy() for t in x)), made.model.run(*x), strict=True):
        np.testing.assert_allclose(seen, wanted.numpy(), atol=1e-4)


def test_an_input_that_nothing_reads_is_still_taken(tmp_path):
    import torch
    from torch import nn

    from tersor.graph.model import capture

    class Ignores(nn.Module):
        def forward(self, unused, x):
            return x * 2

    made = Compressed(capture(Ignores().eval(), (torch.randn(2, 4), torch.randn(2, 3))))
    for target in (OnnxRuntime(), OpenVINO()):
        runner = target.load(folder_of(target, made, tmp_path), threads=1)
        assert runner.inputs == ("unused", "x")
        (seen,) = runner.predict(np.zeros((5, 4), np.float32), np.ones((5, 3), np.float32))
        np.testing.assert_array_equal(seen, np.full((5, 3), 2, np.float32))


@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVINO])
def test_int8_is_smaller_and_audited(exported, kind):
    def size(target: Target) -> int:
        return sum(p.stat().st_size for p in exported(target).iterdir())

    assert size(kind("int8")) < size(kind("fp32")) + 6_000  # scales and nodes of a toy weigh more than its weights
    audit = kind("int8").load(exported(kind("int8"))).audit()
    assert audit.count("i8") == len(audit.operators) == 6
    assert {o.name for o in audit.operators} == {"stem", "a", "b", "c", "d", "head"}
    floats = kind("fp32").load(exported(kind("fp32"))).audit()
    assert floats.count("f32") == len(floats.operators) == 6
    assert {o.reason for o in floats.operators} == {"the file was exported in floating point"}
    assert {o.name for o in floats.operators} == {"stem", "a", "b", "c", "d", "head"}


@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVINO])
def test_audit_says_why_a_matrix_stayed_float(kind, tmp_path):
    made = compressed("residual")
    weights = {k: w for k, w in made.weights.items() if k != "b.weight"}
    feeds = {k: g for k, g in made.feeds.items() if k != "image"}
    target = kind("int8")
    audit = target.load(folder_of(target, Compressed(made.model, weights, feeds), tmp_path)).audit()
    reasons = {o.name: o.reason for o in audit.operators if o.precision != "i8"}
    assert reasons == dict.fromkeys(["stem", "b"], "its weight or its input was not quantized")


def test_torch_audits_float():
    assert Eager().available() is None


def test_eager_audit_lists_matrices(exported):
    audit = Eager().load(exported(Eager())).audit()
    assert [o.name for o in audit.operators] == ["stem", "a", "b", "c", "d", "head"]
    assert audit.count("f32") == 6


@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVINO])
def test_fidelity(exported, kind):
    target = kind("int8")
    fidelity = target.fidelity(exported(target), [image(50)])
    assert fidelity.agreement >= 0.98
    assert kind("fp32").fidelity(exported(target), [image(2)]) is None


@pytest.mark.parametrize("target", FLOAT, ids=repr)
def test_every_truncation_is_refused(exported, target, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(exported(target), folder)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for size in sorted({0, 1, 100, len(whole) // 2, len(whole) - 200, len(whole) - 5, len(whole) - 1}):
        file.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=f"{file.name}"):
            target.load(folder)
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{file.name}"):
        target.load(folder)


@pytest.mark.parametrize(
    ("target", "module", "hint"),
    [(OnnxRuntime(), "onnxruntime", "pip install 'onnxruntime"), (OpenVINO(), "openvino", "pip install 'openvino")],
)
def test_missing_runtime_says_what_to_install(exported, target, module, hint, monkeypatch):
    folder = exported(target)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingRuntime, match=hint) as caught:
        target.load(folder)
    assert isinstance(caught.value.__cause__, ImportError)


def test_inductor_without_compiler_says_so(exported, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "no compiler; install g++" in str(Inductor().available())
    with pytest.raises(MissingRuntime, match="g\\+\\+"):
        Inductor().load(exported(Eager()))


def test_unknown_precision_says_which_there_are():
    assert "choose fp32 or int8" in str(OnnxRuntime("int3").available())
    assert "choose fp32, bf16, int8" in str(OpenVINO("int3").available())
    for kind in (OnnxRuntime, OpenVINO):
        assert all(kind(p).available() is None for p in ("fp32", "int8"))


def test_repr_is_the_configuration():
    for target in EVERY:
        assert eval(repr(target)) == target


IMAGE = Input("image", "float32", (3, *example("residual", 1)[0].shape[1:]))


@pytest.mark.parametrize("target", [*EVERY, OpenVINO("bf16"), Inductor()], ids=repr)
def test_usage_is_short_and_names_the_inputs(target):
    text = target.usage([IMAGE, Input("mask", "int64", (3, 7))], ("output",), 2)
    assert len(text.splitlines()) <= 50
    assert re.search(r"# image: (numpy|torch) float32 \[3, ", text)
    assert re.search(r"# mask: (numpy|torch) int64 \[3, 7\]", text)
    assert "threads=2" in text
    assert "tersor" not in text
    compile(text, "usage", "exec")


@pytest.mark.parametrize("target", [*EVERY, OpenVINO("bf16"), Inductor()], ids=repr)
def test_a_name_of_an_input_is_never_code(target):
    """Names come from files that anyone may have written."""
    names = ['x"); import os; ("', "class", "run", "a b", "np"]
    text = target.usage([Input(name, "float32", (1, 2)) for name in names], ('y"]; import os; ["',), 0)
    called = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
    assert "os" not in {alias.name for node in called for alias in node.names}
    assert "(input_0, input_1, input_2, input_3, input_4)" in text or "': input_0, 'class': input_1" in text


@pytest.mark.parametrize("target", EVERY, ids=repr)
def test_a_fresh_process_runs_the_lines_without_tersor(exported, target, tmp_path):
    """And they give what `load` gives."""
    np.save(tmp_path / "image.npy", image(3))
    tensor = "import torch\nimage = torch.from_numpy(image)\n" if isinstance(target, Eager) else ""
    code = (
        "import sys\nsys.modules['tersor'] = None\nimport numpy\n"
        f"image = numpy.load({str(tmp_path / 'image.npy')!r})\n{tensor}"
        f"{target.usage([IMAGE], ('output',), 1)}\n"
        f"outputs = outputs if isinstance(outputs, list) else [outputs]\n"
        f"numpy.save({str(tmp_path / 'seen.npy')!r}, numpy.asarray(outputs[0]))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=exported(target), check=True)
    seen = np.load(tmp_path / "seen.npy")
    np.testing.assert_array_equal(seen, target.load(exported(target), threads=1).predict(image(3))[0])


@pytest.mark.parametrize("target", EVERY, ids=repr)
def test_what_is_timed_is_what_the_lines_show(exported, target, monkeypatch, tmp_path):
    """The function whose source stands in the README makes what is called, with the same shapes and threads."""
    module, asked = importlib.import_module(type(target).__module__), []
    opened, lines = module.opened, target.usage([IMAGE], ("output",), 1)

    def noted(*args, **kwargs):
        made = opened(*args, **kwargs)
        asked.append((args[1:], made))
        return made

    monkeypatch.setattr(module, "opened", noted)
    np.savez(tmp_path / "example.npz", **{"000": image(3)})
    call = timed(str(exported(target)), list(target_name(target)), str(tmp_path / "example.npz"), 1)
    ((given, made),) = asked
    assert inspect.getsource(opened) in lines
    if isinstance(target, OnnxRuntime):
        assert call.func == made.run
        assert call.args[0] == ["output"]
        assert given[0] == 1
    else:
        assert call.func is made
        assert (str(given[1]) if isinstance(target, OpenVINO) else "run = opened(") in lines
    result = call()
    seen = np.asarray(result[0] if isinstance(result, list) else result)
    np.testing.assert_array_equal(seen, target.load(exported(target), threads=1).predict(image(3))[0])


INTERRUPTED = """
import signal
from pathlib import Path

import numpy as np
from tersor.targets import target_called

signal.signal(signal.SIGALRM, lambda *_: print("heard"))
image = np.load({image!r})
first, second = (target_called("openvino", "fp32").load(Path({folder!r}), 1) for _ in range(2))
first.predict(image), second.predict(image[:1]), second.predict(image)
del first
signal.raise_signal(signal.SIGALRM)
del second
signal.raise_signal(signal.SIGALRM)
"""


def test_a_signal_is_heard_after_models_were_closed_in_any_order(exported, tmp_path):
    """In a process of its own: it ended by SIGSEGV when each model had an `openvino.Core` of its own."""
    np.save(tmp_path / "image.npy", image(3))
    code = INTERRUPTED.format(folder=str(exported(OpenVINO())), image=str(tmp_path / "image.npy"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["heard", "heard"]), done.stderr


@pytest.mark.skipif(OpenVINO("bf16").available() is not None, reason="no bfloat16 on this CPU")
def test_bf16_runs_in_bf16(exported):
    target = OpenVINO("bf16")
    runner = target.load(exported(OpenVINO()))
    audit = runner.audit()
    assert audit.count("bf16") >= 5
    np.testing.assert_allclose(
        runner.predict(image(4))[0], OpenVINO().load(exported(OpenVINO())).predict(image(4))[0], atol=0.05
    )


@pytest.mark.slow
@pytest.mark.skipif(Inductor().available() is not None, reason="no C++ compiler")
def test_inductor_runs(exported):
    runner = Inductor().load(exported(Eager()), threads=1)
    (wanted,) = (t.numpy() for t in compressed("residual").model.run(*example("residual", 3, seed=7)))
    for items in (3, 1):
        np.testing.assert_allclose(runner.predict(image(3)[:items])[0], wanted[:items], atol=1e-4)


@pytest.mark.parametrize("bits", [8, 7])
def test_int8_weights_of_another_machine_do_not_overflow(monkeypatch, tmp_path, bits):
    """Where products are added in 16 bits, only weights that are too wide take the slower kernels, and are right."""
    asked = []
    monkeypatch.setattr(onnxruntime, "weight_bits", lambda: 7)
    overflows = onnxruntime._overflows
    monkeypatch.setattr(onnxruntime, "_overflows", lambda path: asked.append(overflows(path)) or asked[-1])
    made = compressed("residual", bits)
    target = OnnxRuntime("int8")
    target.export(made, tmp_path)
    (seen,) = target.load(tmp_path, threads=1).predict(image(9))
    wanted = made.model.run(*example("residual", 9, seed=7))[0].numpy()
    assert asked == [bits == 8]
    np.testing.assert_allclose(seen, wanted, atol=TOLERANCE["int8"] * np.abs(wanted).max())
