"""Models as users bring them: what is taken, and what each refusal says."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.errors import ModelError
from tersor.graph.model import capture
from tersor.inputs.models import bring, captured


def write(folder: Path, text: str, name: str = "net.py") -> str:
    path = folder / name
    path.write_text("import torch\nfrom torch import nn\n" + text)
    return str(path)


def refusal(model: object, example: object = None) -> str:
    with pytest.raises(ModelError) as raised:
        captured(bring(model), example)  # type: ignore[arg-type]
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith((".", "`)."))
    return message


def test_a_function_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "layers_of_mine.py").write_text("WIDTH = 4\n")
    spec = write(
        tmp_path,
        "from layers_of_mine import WIDTH\ndef make():\n    return nn.Linear(3, WIDTH), torch.zeros(1, 3)\n",
    )
    model = captured(bring(f"{spec}:make"))
    assert model.inputs == ("input",)
    assert model.outputs == ("output",)
    assert model.example[0].shape == (2, 3)
    assert model.run(torch.ones(5, 3))[0].shape == (5, 4)


def test_a_function_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo_of_mine").mkdir()
    (tmp_path / "zoo_of_mine" / "__init__.py").write_text("")
    write(tmp_path / "zoo_of_mine", "def make():\n    return nn.Linear(3, 4), torch.zeros(2, 3)\n", "small.py")
    monkeypatch.chdir(tmp_path)
    assert captured(bring("zoo_of_mine.small:make")).run(torch.ones(1, 3))[0].shape == (1, 4)
    assert "no module 'zoo_of_mine.large'" in refusal("zoo_of_mine.large:make")
    assert "no module 'no_such_package'" in refusal("no_such_package:make")


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    for width in (4, 5):
        spec = write(tmp_path, f"def make():\n    return nn.Linear(3, {width}), torch.zeros(2, 3)\n")
        assert captured(bring(f"{spec}:make")).run(torch.ones(2, 3))[0].shape == (2, width)


def test_specs_that_name_nothing(tmp_path: Path) -> None:
    spec = write(tmp_path, "size = 3\ndef make():\n    return nn.Linear(3, 4)\ndef other():\n    return 1\n")
    assert "names no function; write path/to/file.py:function" in refusal(spec)
    assert f"there is no file '{tmp_path / 'gone.py'}'" in refusal(f"{tmp_path / 'gone.py'}:make")
    message = refusal(f"{spec}:missing")
    assert "no function 'missing'; it has: make, other" in message.replace(
        "has no function 'missing'", "no function 'missing'"
    )
    assert "but a int called 'size'" in refusal(f"{spec}:size")
    assert "returned is a int; expected a torch.nn.Module" in refusal(f"{spec}:other")
    assert "holds no PyTorch program" in refusal(str(tmp_path / "weights.pth"))


def test_an_error_in_the_users_file_names_its_line(tmp_path: Path) -> None:
    spec = write(tmp_path, "def make():\n    width = 1 // 0\n    return nn.Linear(3, width)\n")
    message = refusal(f"{spec}:make")
    assert "ZeroDivisionError" in message
    assert f"line 4 of {spec} (`width = 1 // 0`)" in message
    broken = write(tmp_path, "def make(:\n", "broken.py")
    assert re.search(r"SyntaxError.*line 3 of .*broken\.py", refusal(f"{broken}:make"))
    missing = write(tmp_path, "import no_such_library\n", "missing.py")
    assert "No module named 'no_such_library' at line 3" in refusal(f"{missing}:make")


def test_python_objects_and_examples() -> None:
    linear = nn.Linear(3, 4)
    assert captured(bring(linear), ((torch.zeros(1, 3),), {})).example[0].shape == (2, 3)
    assert captured(bring((linear, (torch.zeros(3, 3),)))).example[0].shape == (3, 3)
    assert captured(bring((linear, {"input": torch.zeros(3, 3)}))).inputs == ("input",)
    assert "came without an example input" in refusal(linear)
    assert "holds int; only tensors" in refusal((linear, (torch.zeros(2, 3), 4)))
    assert "shapes (2, 3), (3, 3); the first axis" in refusal(
        (nn.Bilinear(3, 3, 2), (torch.zeros(2, 3), torch.zeros(3, 3)))
    )
    assert "is a OrderedDict; expected a torch.nn.Module" in refusal(OrderedDict(a=torch.zeros(1)))  # type: ignore[arg-type]


def test_names_of_several_inputs_and_outputs_are_kept() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, image: Tensor, mask: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
            y = self.linear(image) * mask
            return {"logits": y if scale is None else y * scale, "mean": y.mean(1)}

    image, mask, scale = torch.randn(2, 3), torch.randn(2, 2), torch.randn(2, 1)
    model = captured(bring((Two(), {"mask": mask, "image": image})))
    assert sorted(model.inputs) == ["image", "mask"]
    assert model.outputs == ("logits", "mean")
    assert model.run(*(torch.cat([t] * 3) for t in model.example))[0].shape == (6, 2)
    model = captured(bring((Two(), (image, mask, scale))))
    assert model.inputs == ("image", "mask", "scale")


def test_a_dict_as_one_argument_keeps_its_structure() -> None:
    class Dict(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return batch["a"] + 1, batch["b"] * 2

    batch = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
    model = captured(bring((Dict(), (batch,))))
    assert model.outputs == ("output_0", "output_1")
    assert torch.equal(model.run(*model.example)[1], batch["b"] * 2)
    args, kwargs = model.arguments(model.example)
    assert set(args[0]) == {"a", "b"}
    assert kwargs == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight[0, :2] = value
    assert "'1.weight' of model Sequential holds 2 NaN or Inf among 8 values" in refusal((net, torch.zeros(2, 3)))


def test_quantised_models_are_refused() -> None:
    class Fake(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantise = torch.ao.quantization.FakeQuantize()

        def forward(self, x: Tensor) -> Tensor:
            return self.quantise(x)

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.int8), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.float())

    dynamic = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear})
    for model in (Fake(), Codes(), dynamic):
        message = refusal((model, torch.randn(2, 3)))
        assert "already quantized" in message
        assert "float model" in message


def test_parameters_that_are_no_weights_are_no_codes() -> None:
    class Places(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.inner, self.bias = nn.Linear(4, 4), nn.Parameter(torch.randn(7))
            self.places = nn.Parameter((torch.arange(4)[:, None] - torch.arange(4) + 3).to(dtype), requires_grad=False)
            self.kept = nn.Parameter(torch.tensor([True, False, True, True]), requires_grad=False)
            self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex64))
            self.mask = nn.Parameter(torch.full((4, 4), float("-inf")).triu(1), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=4)
            share = (self.bias[self.places.long()] + self.mask).softmax(-1)
            return self.inner(x @ share) * self.kept

    for dtype in (torch.int64, torch.int32, torch.int16):
        net = Places(dtype).eval()
        model = captured(bring((net, torch.randn(2, 4))))
        x = torch.randn(3, 4)
        torch.testing.assert_close(model.run(x)[0], net(x))
        assert all(p.is_floating_point() for p in model.module.parameters())
    broken = Places(torch.int64)
    broken.filter.data[0] = complex("nan")
    assert "'filter' of model Places holds 1 NaN or Inf" in refusal((broken, torch.randn(2, 4)))


def test_training_only_behaviour_is_refused_with_its_line() -> None:
    class Forgetful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    message = refusal((Forgetful(), torch.randn(2, 3)))
    assert "draws random numbers" in message
    assert re.search(r'test_bring_model\.py", line \d+, in forward', message)
    assert "draws random numbers" in refusal((Noisy(), torch.randn(2, 3)))
    batch = nn.BatchNorm1d(3, track_running_stats=False)
    assert "batch statistics" in refusal((batch, torch.randn(2, 3)))


def test_dropout_that_follows_the_mode_is_fine() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    model = captured(bring((net, torch.randn(2, 3))))
    assert torch.equal(model.run(*model.example)[0], model.run(*model.example)[0])
    assert net.training
    assert net[1].training


def test_outputs_without_a_batch_and_nan_outputs() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(-x.abs() - 1)

    assert "the first axis of every output must be the batch" in refusal((Sum(), torch.randn(2, 3)))
    assert "is NaN or Inf on the example input" in refusal((Root(), torch.randn(2, 3)))


def test_a_fixed_batch_and_a_branch_on_values_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1)[:, :2].reshape(2, 2)

    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    assert "works for one batch size only" in refusal((Fixed(), torch.randn(2, 3)))
    assert re.search(r'test_bring_model\.py", line \d+', refusal((Branch(), torch.randn(2, 3))))
    assert "def forward" not in capsys.readouterr().err  # torch prints its graphs


def test_half_and_double_become_float32_on_a_copy() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        net = nn.Linear(3, 4).to(dtype)
        model = captured(bring((net, torch.randn(2, 3, dtype=dtype))))
        assert model.run(*model.example)[0].dtype == torch.float32
        assert net.weight.dtype == dtype


def test_capture_leaves_the_users_module_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    net[1].eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    model = capture(net, (torch.randn(2, 3),))
    with torch.no_grad():
        for _, tensor in model.tensors():
            tensor.zero_()
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    assert (net.training, net[0].training, net[1].training) == (True, True, False)


@pytest.mark.realdata
def test_the_real_models(loaders: ModuleType) -> None:
    for make, shape in ((lambda: loaders.resnet_cifar(20), (3, 32, 32)), (loaders.kws_dscnn, (1, 49, 10))):
        net, x = make(), torch.randn(3, *shape)
        model = captured(bring((net, torch.randn(1, *shape))))
        assert torch.allclose(model.run(x)[0], net(x), atol=1e-5)


def test_a_layer_without_values_is_refused() -> None:
    assert "'0.weight' of model Sequential has no values yet" in refusal(nn.Sequential(nn.LazyLinear(4)).eval())


def test_limits_that_are_infinite_are_no_fault() -> None:
    class Limited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)
            self.register_buffer("most", torch.tensor(float("inf")))

        def forward(self, x: Tensor) -> Tensor:
            return torch.minimum(self.linear(x), self.most)

    assert captured(bring((Limited(), torch.randn(2, 3)))).outputs == ("output",)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_an_archive_of_another_precision(kind: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(kind).eval()
    program = torch.export.export(
        net, (torch.randn(2, 3, dtype=kind),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    model = captured(bring(program))
    assert {t.dtype for _, t in model.tensors()} == {torch.float32} == {t.dtype for t in model.example}
    x = torch.randn(5, 3)
    torch.testing.assert_close(model.run(x)[0], net.float()(x))


@pytest.mark.parametrize("items", [1, 2])
def test_an_archive_of_one_size_of_batch_is_refused(items: int) -> None:
    program = torch.export.export(nn.Linear(3, 4), (torch.randn(items, 3),))
    assert f"The exported archive takes a batch of {items} only; export it with dynamic_shapes" in refusal(program)


def test_weights_that_are_computed_from_codes_are_refused() -> None:
    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randint(-127, 128, (4, 3), dtype=torch.int8))
            self.scale = nn.Parameter(torch.rand(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.codes.float() * self.scale)

    assert "already quantized: it computes a weight from 'codes', which holds int8" in refusal(
        (Coded(), torch.randn(2, 3))
    )
