"""Archives that would run code, touch files or have no end: each is refused by name, before anything of it happens."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import GRAPH, SAMPLE, WEIGHTS, argument, called, described, edited, first, graph, replaced, written
from torch import Tensor, nn

from tersor.errors import ArtifactError
from tersor.hub import allowed, schema
from tersor.hub.archive import load_program
from tersor.inputs.models import bring, captured


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("attacks") / "plain.pt2")


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load_program(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_plain_one_passes(plain: Path) -> None:
    program, _ = load_program(plain)
    assert program.module(check_guards=False)(torch.zeros(5, 4)).shape == (5, 3)


def test_a_keyword_that_becomes_source_is_refused(plain: Path, tmp_path: Path) -> None:
    ran = tmp_path / "RAN"
    call = called(
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        argument("", as_bool=True),
        argument("torch.os.system, command", 2, as_string=f"mkdir {ran}"),
    )
    assert "holds name 'torch.os.system, command'" in refusal(
        edited(plain, tmp_path / "a.pt2", lambda p: first(p, call, q=described(12)))
    )
    assert not ran.exists()


def test_an_operator_given_as_an_argument_is_refused(plain: Path, tmp_path: Path) -> None:
    ran = tmp_path / "RAN"
    for given in ("torch.os.system", "torch.ops.aten.save.default", "torch.ops.aten.add.Tensor"):
        call = called(
            "torch.ops.higher_order.wrap_with_set_grad_enabled",
            argument("", as_bool=True),
            argument("", as_operator=given),
            argument("", as_string=f"mkdir {ran}"),
        )
        path = edited(plain, tmp_path / "a.pt2", lambda p, c=call: first(p, c, q=described(12)))
        assert f"holds as_operator '{given}'" in refusal(path)
    assert not ran.exists()


def test_a_file_that_is_mapped_and_written_is_refused(plain: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim.bin"
    victim.write_bytes(bytes(48))
    nodes = (
        called(
            "torch.ops.aten.from_file.default",
            argument("filename", as_string=str(victim)),
            argument("shared", as_bool=True),
            argument("size", as_int=12),
            out="f",
        ),
        called(
            "torch.ops.aten.copy_.default",
            argument("self", as_tensor={"name": "f"}),
            argument("src", as_tensor={"name": "p_linear_weight"}),
        ),
    )
    path = edited(plain, tmp_path / "a.pt2", lambda p: first(p, *nodes, f=described(12), q=described(12)))
    assert "aten.from_file.default', which is not in the list of operators that only compute" in refusal(path)
    assert victim.read_bytes() == bytes(48)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("torch.ops.aten._print.default", "is not in the list"),
        ("torch.ops.aten.save.default", "is not in the list"),
        ("torch.ops.aten.set_.source_Tensor", "is not in the list"),
        ("torch.ops.aten.resize_.default", "is not in the list"),
        ("torch.ops.aten.record_stream.default", "is not in the list"),
        ("torch.ops.aten.to_sparse.default", "is not in the list"),
        ("torch.ops.aten.quantize_per_tensor.default", "is not in the list"),
        ("torch.ops.aten.bincount.default", "is not in the list"),
        ("torch.ops.aten.add.out", "writes into its argument out"),
        ("torch.ops.aten.sort.str", "writes into its argument self"),
        ("torch.ops.aten.add.str", "has nothing to do with tensors"),
        ("torch.ops.aten.rand.default", "draws random numbers"),
        ("torch.ops.aten.bernoulli_.float", "draws random numbers"),
        ("torch.ops.aten.add.Nothing", "is unknown to torch"),
        ("torch.ops.c10d.send.default", "is not in the list"),
        ("torch.ops.profiler._record_function_enter.default", "is not in the list"),
        ("torch.ops.inductor._alloc_from_pool.default", "is not in the list"),
        ("torch.ops.higher_order.while_loop", "is a loop whose end depends on values"),
        ("torch.ops.higher_order.auto_functionalized", "is not in the list"),
        ("torch.ops.load_library", "is not in the list"),
        ("torch.ops.aten.add.Tensor.__class__", "is unknown to torch"),
        ("_operator.lshift", "is not in the list"),
        ("math.factorial", "is not in the list"),
        ("torch.hub.load", "is not in the list"),
    ],
)
def test_operators_that_do_more_than_compute(plain: Path, tmp_path: Path, target: str, said: str) -> None:
    path = edited(plain, tmp_path / "a.pt2", lambda p: graph(p)["nodes"][0].update(target=target))
    assert f"holds target '{target}', which {said}" in refusal(path)


def test_every_operator_that_passes_only_computes() -> None:
    """The rule against torch's whole registry: whatever its name, what passes has no way to anything but its tensors."""
    passed = set()
    for found in torch._C._jit_get_all_schemas():
        namespace, _, name = found.name.partition("::")
        target = f"torch.ops.{namespace}.{name}.{found.overload_name or 'default'}"
        if allowed.why_not(target) is not None:
            continue
        assert name != "set_"
        passed.add(name)
        for place, each in enumerate(found.arguments):
            kind = str(each.real_type)
            assert not any(word in kind for word in ("Storage", "Stream", "Any", "class", "Dict", "Future")), target
            writes = each.alias_info is not None and each.alias_info.is_write
            assert not writes or place == 0 or each.name in ("running_mean", "running_var"), target
            assert not each.is_out, target
    words = "save file print set_ data resize stream sparse quant rand normal_ uniform pin share foreach record out"
    assert not [n for n in passed for word in words.split() if word in n.split("_")]
    assert {"conv2d", "linear", "lstm", "scaled_dot_product_attention", "relu_", "dropout", "einsum"} <= passed


def test_arguments_are_held_to_the_schema(plain: Path, tmp_path: Path) -> None:
    def changed(*inputs: dict[str, Any], target: str = "torch.ops.aten.div.Tensor_mode") -> str:
        call = called(target, *inputs)
        return refusal(edited(plain, tmp_path / "a.pt2", lambda p: first(p, call, q=described(2, 4))))

    x = argument("self", as_tensor={"name": "x"})
    y = argument("other", as_tensor={"name": "x"})
    assert "is given the words" in changed(x, y, argument("rounding_mode", 2, as_string="a;b"))
    assert "has no argument 'command'" in changed(x, y, argument("command", 2, as_string="floor"))
    assert "is given one argument twice" in changed(x, x, y)
    assert "of the kind as_strings" in changed(x, y, argument("rounding_mode", 2, as_strings=["floor"]))
    scale = argument("scales", 2, as_float=1e-300)
    size = argument("output_size", as_ints=[2])
    corners = argument("input", as_tensor={"name": "x"})
    assert "has no argument 'input'" in changed(
        corners, size, scale, target="torch.ops.aten.upsample_nearest1d.default"
    )
    assert "is given the scale 1e-300" in changed(x, size, scale, target="torch.ops.aten.upsample_nearest1d.default")


def _rename_input(program: Any, name: str) -> None:
    text = json.dumps(program).replace('{"name": "x"}', json.dumps({"name": name}))
    program.clear()
    program.update(json.loads(text))


def _spec(program: Any, change: Callable[[Any], object]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    spec = json.loads(signature["in_spec"])
    change(spec[1])
    signature["in_spec"] = json.dumps(spec)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: _rename_input(p, "x: torch.os.system('true')"), "holds name"),
        (lambda p: _rename_input(p, "x, y"), "holds name"),
        (lambda p: _rename_input(p, "x=[print(1)]"), "holds name"),
        (lambda p: _rename_input(p, "class"), "holds name 'class'"),
        (lambda p: _rename_input(p, "x\ny"), "holds name"),
        (lambda p: graph(p)["nodes"][0].update(name="a b"), "holds name 'a b'"),
        (lambda p: graph(p)["nodes"][-1]["outputs"][0]["as_tensor"].update(name="a;b"), "holds name 'a;b'"),
        (lambda p: graph(p)["tensor_values"].update({"a(": described(1)}), "holds name 'a('"),
        (
            lambda p: p["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name='a.b"+c'),
            "holds parameter_name",
        ),
        (lambda p: p["graph_module"]["module_call_graph"][0].update(fqn="a b"), "holds fqn"),
        (
            lambda p: p["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=["x=print(1)"]),
            "holds forward_arg_names",
        ),
        (lambda p: p["range_constraints"].update({"u999999999999": {"min_val": 0, "max_val": 1}}), "holds name"),
        (lambda p: p["range_constraints"].update({"s1": {"min_val": 0, "max_val": 10**30}}), "holds"),
        (lambda p: p.update(verifiers=["EDGE"]), "holds verifiers 'EDGE'"),
        (lambda p: p.update(surprise=1), "holds 'surprise' in a ExportedProgram"),
        (lambda p: graph(p)["nodes"][0].update(surprise=1), "holds 'surprise' in a Node"),
        (lambda p: graph(p)["nodes"][0].pop("inputs"), "holds a Node without inputs"),
        (lambda p: p["schema_version"].update(major=99), "the schema version 99"),
        (lambda p: graph(p).update(custom_obj_values={"a": {"name": "a", "class_fqn": "b"}}), "holds name 'a'"),
        (lambda p: graph(p)["inputs"].append({"as_custom_obj": {"name": "a", "class_fqn": "b"}}), "CustomObjArgument"),
        (lambda p: graph(p)["tensor_values"]["x"]["device"].update(type="privateuseone"), "holds type 'privateuseone'"),
        (lambda p: graph(p)["tensor_values"]["x"].update(dtype=99), "TensorMeta.dtype 99"),
        (lambda p: graph(p)["nodes"][0]["metadata"].update(run="this"), "holds name 'run'"),
        (lambda p: graph(p)["nodes"][0]["metadata"].update(source_fn_stack="a,b(c)"), "holds source_fn_stack"),
        (lambda p: _spec(p, lambda s: s.update(context='{"__enum__": true, "fqn": "antigravity:x"}')), "holds in_spec"),
        (
            lambda p: _spec(p, lambda s: s["children_spec"][1].update(context='[{"__enum__": 1, "fqn": "this:x"}]')),
            "holds in_spec",
        ),
        (
            lambda p: _spec(
                p,
                lambda s: s["children_spec"][1].update(
                    context='["a=1) or print(2"]', children_spec=[{"type": None, "context": None, "children_spec": []}]
                ),
            ),
            "holds in_spec with an argument called",
        ),
        (lambda p: _spec(p, lambda s: s.update(type="collections.namedtuple")), "holds in_spec of the type"),
    ],
)
def test_strings_that_become_source_or_imports(
    plain: Path, tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    assert said in refusal(edited(plain, tmp_path / "a.pt2", change))


def test_a_string_without_a_rule_is_refused(plain: Path, tmp_path: Path) -> None:
    """A field that a later torch adds is refused until somebody has said what it may hold."""
    rules = dict(schema._STRINGS)
    try:
        del schema._STRINGS["TensorArgument.name"]
        assert "holds name" in refusal(plain)
    finally:
        schema._STRINGS.update(rules)


def _full(program: Any, target: str, *inputs: dict[str, Any], shape: tuple[int, ...] = (2, 4)) -> None:
    first(program, called(target, *inputs), q=described(*shape))


X = argument("self", as_tensor={"name": "x"})


def _squared(program: Any) -> None:
    """A column times a row, and that again: no number in the file is large."""
    nodes, made, last = [], {}, "x"
    for turn in range(6):
        for kind, sizes in (("column", [-1, 1]), ("row", [1, -1])):
            given = (argument("self", as_tensor={"name": last}), argument("shape", as_ints=sizes))
            nodes.append(called("torch.ops.aten.reshape.default", *given, out=f"{kind}{turn}"))
        pair = (
            argument("self", as_tensor={"name": f"column{turn}"}),
            argument("other", as_tensor={"name": f"row{turn}"}),
        )
        last = f"product{turn}"
        nodes.append(called("torch.ops.aten.mul.Tensor", *pair, out=last))
        made |= {f"{kind}{turn}": described(2, 4) for kind in ("column", "row", "product")}
    first(program, *nodes, **made)


def _multiplied(program: Any) -> None:
    """Products of large matrices, one after the other, held one at a time."""
    size = argument("size", as_ints=[4096, 4096])
    nodes = [called("torch.ops.aten.full.default", size, argument("fill_value", as_float=0.5), out="m0")]
    for turn in range(200):
        pair = (argument("self", as_tensor={"name": f"m{turn}"}), argument("mat2", as_tensor={"name": "m0"}))
        nodes.append(called("torch.ops.aten.mm.default", *pair, out=f"m{turn + 1}"))
    first(program, *nodes, **{f"m{turn}": described(4096, 4096) for turn in range(201)})


def _counted(program: Any) -> None:
    """9 ** 9 ** 9 ** 9, by calls."""
    nodes = []
    for turn in range(4):
        last = {"as_int": 9} if turn == 0 else {"as_sym_int": {"as_name": f"n{turn - 1}"}}
        nodes.append(called("_operator.pow", argument("a", as_int=9), argument("b", **last), out=None))
        nodes[-1].update(name=f"n{turn}", outputs=[{"as_sym_int": {"as_name": f"n{turn}"}}])
        graph(program)["sym_int_values"][f"n{turn}"] = {"as_int": 9}
    first(program, *nodes)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: _full(
            p, "torch.ops.aten.full.default", argument("size", as_ints=[10**12]), argument("fill_value", as_int=0)
        ),
        lambda p: _full(p, "torch.ops.aten.arange.default", argument("end", as_int=10**11)),
        lambda p: _full(p, "torch.ops.aten.repeat.default", X, argument("repeats", as_ints=[10**5, 10**5])),
        lambda p: _full(p, "torch.ops.aten.eye.default", argument("n", as_int=10**6)),
        lambda p: _full(p, "torch.ops.aten.constant_pad_nd.default", X, argument("pad", as_ints=[0, 10**10])),
        lambda p: _full(p, "torch.ops.aten.new_empty.default", X, argument("size", as_ints=[10**10])),
        _squared,
        _multiplied,
        _counted,
    ],
)
def test_no_file_takes_memory_or_time_out_of_proportion(
    plain: Path, tmp_path: Path, change: Callable[[Any], object]
) -> None:
    said = refusal(edited(plain, tmp_path / "a.pt2", change))
    assert "more than a file of this size warrants" in said or "a power of a size" in said or "64 bits" in said


def test_sizes_that_depend_on_values_are_refused(plain: Path, tmp_path: Path) -> None:
    repeats = argument("repeats", as_tensor={"name": "x"})
    path = edited(plain, tmp_path / "a.pt2", lambda p: _full(p, "torch.ops.aten.repeat_interleave.Tensor", repeats))
    assert "nothing bounds it" in refusal(path) or "cannot be" in refusal(path)


class _Bytes:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**13,)


def _sample(payload: bytes, storage: bytes = b"") -> bytes:
    import io

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as inner:
        inner.writestr("archive/data.pkl", payload)
        inner.writestr("archive/byteorder", "little")
        inner.writestr("archive/version", "3")
        inner.writestr("archive/data/0", storage)
    return out.getvalue()


def _tensor(values: int, size: tuple[int, ...]) -> bytes:
    """The pickle of a tensor over a record of `values` values, by hand."""

    def word(text: str) -> bytes:
        return b"X" + struct.pack("<I", len(text)) + text.encode()

    number = b"J" + struct.pack("<i", values)
    sizes = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in size) + b"t"
    steps = b"(" + b"".join(b"J" + struct.pack("<i", 1) for _ in size) + b"t"
    storage = b"(" + word("storage") + b"ctorch\nFloatStorage\n" + word("0") + word("cpu") + number + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + sizes + steps
    return b"\x80\x02" + tensor + b"\x89ccollections\nOrderedDict\n)RtR\x85}\x86."


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (_sample(pickle.dumps(_Bytes(), 2)), "that name '__builtin__.bytearray'"),
        (_sample(_tensor(10**6, (10**6,)), bytes(16)), "1000000 values in a record of 16 bytes"),
        (_sample(_tensor(4, (40,)), bytes(16)), "that ends at 39 of 4 values"),
        (_sample(b"\x80\x02]q\x00h\x00a."), "more than 10000 example inputs"),
        (_sample(b"\x80\x02ctorch.hub\nload\n."), "that name 'torch.hub.load'"),
        (_sample(b"\x80\x02}X\x01\x00\x00\x00aK\x01sb."), "that are not plain tensors"),
        (b"PK", "that are not plain tensors"),
        (pickle.dumps([1]), "that are not plain tensors"),
    ],
)
def test_example_inputs_that_are_more_than_tensors(plain: Path, tmp_path: Path, sample: bytes, said: str) -> None:
    assert said in refusal(replaced(plain, tmp_path / "a.pt2", SAMPLE, lambda _: sample))


def test_members_that_two_readers_see_differently(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        new.writestr("other/models/MODEL.json", b"{}")
    assert "holds the member" in refusal(path)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for number, info in enumerate(old.infolist()):
            folder = "plain" if number else "PLAIN"
            new.writestr(f"{folder}/{info.filename.partition('/')[2]}", old.read(info))
    assert "folders" in refusal(path)
    path.write_bytes(b"\x00" * 100 + plain.read_bytes())
    assert "damaged" in refusal(path) or "otherwise" in refusal(path)
    data = bytearray(plain.read_bytes())
    with zipfile.ZipFile(plain) as old:
        data[old.start_dir + 8] |= 1  # says that the first member is encrypted
    path.write_bytes(data)
    assert "encrypted" in refusal(path)


def test_tensors_that_lie_about_themselves(plain: Path, tmp_path: Path) -> None:
    def negative(config: Any) -> None:
        config["config"]["linear.bias"]["tensor_meta"]["storage_offset"] = {"as_int": -8}

    def path(config: Any) -> None:
        config["config"]["linear.bias"]["path_name"] = "../../../etc/passwd"

    def named(config: Any) -> None:
        config["config"]["linear.bias') or print('"] = config["config"].pop("linear.bias")

    assert "negative size" in refusal(edited(plain, tmp_path / "a.pt2", negative, WEIGHTS))
    assert "path_name '../../../etc/passwd'" in refusal(edited(plain, tmp_path / "a.pt2", path, WEIGHTS))
    assert "holds name" in refusal(edited(plain, tmp_path / "a.pt2", named, WEIGHTS))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "[]", "null", '{"a": NaN}', '{"a": 1, "a": 2}', "1" * 5000, "\x00"]
)
def test_texts_that_are_no_program(plain: Path, tmp_path: Path, text: str) -> None:
    said = refusal(replaced(plain, tmp_path / "a.pt2", GRAPH, lambda _: text.encode()))
    assert "export" in said


def test_what_torch_cannot_read_is_one_sentence(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def undefined(program: Any) -> None:
        graph(program)["nodes"][-1]["inputs"][0]["arg"] = {"as_tensor": {"name": "nowhere"}}

    assert "cannot be read as an exported program" in refusal(edited(plain, tmp_path / "a.pt2", undefined))
    assert not caplog.records
    assert "Traceback" not in capfd.readouterr().err


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.linear(x)
        y = torch.cond(y.sum() > 0, lambda a: a.sin(), lambda a: a.cos(), (y,))
        z = torch.zeros_like(y)
        z[:, 0] = y[:, 1]
        return z.relu_() + y


def test_branches_and_writes_into_what_is_their_own_pass(tmp_path: Path) -> None:
    path = written(tmp_path / "branching.pt2", _Branching(), torch.randn(2, 4))
    assert captured(bring(str(path))).run(torch.randn(3, 4))[0].shape == (3, 4)


def test_example_inputs_that_take_for_ever_to_hash(plain: Path, tmp_path: Path) -> None:
    """A tuple of two equal tuples, and so on: its hash takes two to the power of its depth steps."""
    nested = b")" + b"2\x86" * 60
    as_key = b"\x80\x02}" + nested + b"K\x01s."
    in_set = b"\x80\x02c__builtin__\nset\n]" + nested + b"a\x85R."
    for name, payload in (("key", as_key), ("set", in_set)):
        found = replaced(plain, tmp_path / f"{name}.pt2", SAMPLE, lambda _, payload=payload: _sample(payload))
        assert "under a tuple" in refusal(found)


def test_more_axes_than_torch_takes(plain: Path, tmp_path: Path) -> None:
    def long(config: Any) -> None:
        config["config"]["linear.bias"]["tensor_meta"]["sizes"] = [{"as_int": 2**62}] * 20_000

    assert "20000 axes of 'linear.bias'" in refusal(edited(plain, tmp_path / "a.pt2", long, WEIGHTS))
