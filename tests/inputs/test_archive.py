"""Archives: what torch.export.save wrote is read; what could run code or take memory is refused unread."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tersor.errors import ModelError
from tersor.hub.expressions import is_arithmetic
from tersor.inputs.models import bring, captured


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding="same")
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        y = torch.einsum("nchw,nc->nc", self.norm(self.convolution(x[:, :, ::2])), scale)
        return {"logits": self.linear(y), "features": y.reshape(y.shape[0] * 2, -1).reshape(y.shape[0], -1)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "net.pt2"
    example = (torch.randn(2, 3, 8, 8), torch.randn(2, 4))
    shapes = ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    torch.export.save(torch.export.export(Net().eval(), example, dynamic_shapes=shapes), str(path))
    return path


def rewritten(source: Path, target: Path, edit: Callable[[str, bytes], bytes | None], **added: bytes) -> str:
    """A copy of an archive with members changed, dropped (None) or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            content = edit(member.partition("/")[2], old.read(member))
            if content is not None:
                new.writestr(member, content)
        for name, content in added.items():
            new.writestr(f"net/{name}", content)
    return str(target)


def edited_json(name: str, change: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def edit(member: str, content: bytes) -> bytes:
        if member != name:
            return content
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return edit


def refusal(path: str) -> str:
    with pytest.raises(ModelError) as raised:
        bring(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code ran')",))


def test_an_archive_comes_back(saved: Path) -> None:
    model = captured(bring(str(saved)))
    assert model.inputs == ("x", "scale")
    assert model.outputs == ("logits", "features")
    assert model.run(torch.randn(5, 3, 8, 8), torch.randn(5, 4))[0].shape == (5, 2)
    assert captured(bring(torch.export.load(str(saved)))).inputs == ("x", "scale")


def test_files_that_are_no_archive(saved: Path, tmp_path: Path) -> None:
    assert "There is no file" in refusal(str(tmp_path / "gone.pt2"))
    (tmp_path / "text.pt2").write_text("hello")
    assert "is damaged or no exported program" in refusal(str(tmp_path / "text.pt2"))
    (tmp_path / "half.pt2").write_bytes(saved.read_bytes()[:5000])
    assert "is damaged or no exported program" in refusal(str(tmp_path / "half.pt2"))
    torch.save(nn.Linear(2, 2).state_dict(), str(tmp_path / "weights.pt2"))
    assert "could run code" in refusal(str(tmp_path / "weights.pt2"))
    assert "export it again" in refusal(
        rewritten(saved, tmp_path / "less.pt2", lambda m, c: None if m.endswith("weight_0") else c)
    )


def test_pickled_payloads_never_run(saved: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb())

    def pickled(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    def custom(config: Any) -> None:
        config["config"]["evil"] = {
            "path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None
        }  # fmt: skip

    weights = edited_json("data/weights/model_weights_config.json", pickled)
    constants = edited_json("data/constants/model_constants_config.json", custom)
    assert "the pickled tensor" in refusal(rewritten(saved, tmp_path / "1.pt2", weights))
    assert "the pickled tensor" in refusal(rewritten(saved, tmp_path / "2.pt2", constants))
    sample = rewritten(saved, tmp_path / "3.pt2", lambda m, c: bomb if m.startswith("data/sample_inputs") else c)
    assert "example inputs that are not plain tensors" in refusal(sample)
    legacy = rewritten(saved, tmp_path / "4.pt2", lambda m, c: c, **{"data/weights/model.pt": bomb})
    assert "holds the member" in refusal(legacy)


def test_a_pickle_hidden_in_a_torch_file_never_runs(saved: Path, tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"x": Bomb()}, content)
    hidden = rewritten(
        saved, tmp_path / "a.pt2", lambda m, c: content.getvalue() if m.startswith("data/sample_inputs") else c
    )
    assert "example inputs that name '__builtin__.exec'" in refusal(hidden)


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.hub.load",
        "torch.ops.load_library",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "_operator.call",
        "os.system",
        "#aoti:x",
        "math.a",
    ],
)
def test_operators_that_are_none(saved: Path, tmp_path: Path, target: str) -> None:
    def change(graph: Any) -> None:
        graph["graph_module"]["graph"]["nodes"][0]["target"] = target

    assert f"holds target '{target}'" in refusal(
        rewritten(saved, tmp_path / "a.pt2", edited_json("models/model.json", change))
    )


def test_expressions_and_names_that_are_code(saved: Path, tmp_path: Path) -> None:
    def expression(graph: Any) -> None:
        values = graph["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0]["as_expr"]["expr_str"] = "__import__('os').system('true')"

    def name(graph: Any) -> None:
        graph["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = "y); import os; (x"

    def structure(graph: Any) -> None:
        signature = graph["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = signature["in_spec"].replace("builtins.dict", "collections.defaultdict")

    for change, said in (
        (expression, "holds expr_str"),
        (name, "holds name"),
        (structure, "holds in_spec"),
    ):
        assert said in refusal(rewritten(saved, tmp_path / "a.pt2", edited_json("models/model.json", change)))


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("Symbol('s35', positive=True, integer=True)", True),
        ("2*s35 + FloorDiv(s1, 2) - Max(1, u0)", True),
        ("Symbol('s0', integer=True)**2 >= 4", True),
        ("s0.__class__", False),
        ("eval('1')", False),
        ("(lambda: 1)()", False),
        ("[x for x in s0]", False),
        ("Symbol('__import__(1)')", False),
        ("exec", False),
        ("Mul(Integer(2), Symbol('s77', positive=True, integer=True))", True),
        ("Float('0.5', precision=53)", True),
        ("2**s0", True),
        ("9**9**9**9", False),
        ("Pow(Integer(9), Integer(999999999))", False),
        ("((s0**9)**9)**9", False),
        ("LShift(1, 9999999999)", False),
        ("Float('1', precision=1000000000)", False),
        ("9" * 4001, False),
        ("*".join(f"(s{i} + s{i + 1} + 1)" for i in range(20)), False),  # 3**20 terms once multiplied out
        ("-" * 3000 + "1", False),
        ("Symbol('s0', commutative=Symbol('s1'))", False),
        ("Symbol(s0)", False),
        ("s0 if s1 else s2", False),
        ("u9999999", False),
    ],
)
def test_shape_expressions(text: str, fine: bool) -> None:
    assert is_arithmetic(text) is fine


def test_declared_sizes_are_checked_before_memory_is_taken(saved: Path, tmp_path: Path) -> None:
    def huge(config: Any) -> None:
        meta = next(iter(config["config"].values()))["tensor_meta"]
        meta["sizes"], meta["strides"] = [{"as_int": 1 << 40}], [{"as_int": 0}]

    path = rewritten(saved, tmp_path / "a.pt2", edited_json("data/weights/model_weights_config.json", huge))
    assert "values for 'convolution.weight' in a file of" in refusal(path)
    packed = tmp_path / "packed.pt2"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
        new.writestr("net/data/weights/weight_99", bytes(50_000_000))
    assert "the compressed member" in refusal(str(packed))


def test_a_quantised_archive_is_refused(tmp_path: Path) -> None:
    class Codes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            codes = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.1, 0, -128, 127, torch.int8)
            return torch.ops.quantized_decomposed.dequantize_per_tensor(codes, 0.1, 0, -128, 127, torch.int8)

    import torch.ao.quantization.fx._decomposed

    path = tmp_path / "q.pt2"
    torch.export.save(torch.export.export(Codes(), (torch.randn(2, 3),), dynamic_shapes=({0: Dim.DYNAMIC},)), str(path))
    with pytest.raises(ModelError, match="already quantized: it applies quantized_decomposed"):
        captured(bring(str(path)))
