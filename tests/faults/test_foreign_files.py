"""Files that are damaged, hostile or somebody else's: every reader ends in one sentence that names the file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tersor.cli.app import app
from tersor.errors import ArtifactError, DataError, InputError, ModelError, StorageError
from tersor.graph.model import capture
from tersor.inputs import amounts, arrays
from tersor.inputs.encoder import _pooling, sentence_encoder
from tersor.language.folder import open_folder
from tersor.losses import loss_called
from tersor.recovery.wish import Recovery
from tersor.sensed import Sensitivity
from tersor.store import programs
from tersor.store.cache import Cache
from tersor.store.weights import metadata
from tersor.targets import target_called

DEEP = "[" * 100_000


def npz(path: Path, **made: np.ndarray) -> Path:
    np.savez(path, **made)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", bytes(100), b"PK\x05\x06" + bytes(18)])
def test_arrays_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz") if content[:4] != b"PK\x05\x06" else _nothing():
        arrays.read(path)


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_an_encrypted_npz(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", x=np.zeros((2, 3)))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        data[archive.start_dir + 8] |= 1
    data[6] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.npz' cannot be read .*encrypted"):
        arrays.read(path)


@pytest.mark.parametrize("kind", [">f4", ">i8", ">f8", "<f4", ">u2"])
def test_arrays_of_the_other_byte_order_are_converted(tmp_path: Path, kind: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(kind)
    read = arrays.read(npz(tmp_path / "x.npz", x=values))["x"]
    assert read.dtype.isnative
    assert np.array_equal(read, values)


def test_an_npz_that_would_unpack_without_end_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(DataError, match="declares 40000000000"):
        arrays.read(path)


@pytest.mark.parametrize("text", [DEEP, "", "[", "null", "[1]", '"a"', "\x00", '{"points": 1}'])
def test_a_sensitivity_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"s\.json"):
        Sensitivity.of(path)
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match=r"s\.json.*cannot be read"):
        Sensitivity.of(path)
    with pytest.raises(InputError, match="is a folder"):
        Sensitivity.of(tmp_path)


@pytest.mark.parametrize("text", [DEEP, "[]", "", "3", "\x00", '{"architectures": 3}', '{"architectures": ["X"]}'])
def test_configurations_of_models(tmp_path: Path, text: str) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json|encoder|model"):
        sentence_encoder(tmp_path)
    with pytest.raises(ModelError, match=r"config\.json|holds neither"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "",
        "{}",
        "[1]",
        '[{"type": "a.Pooling", "path": ".."}]',
        '[{"type": "a.Pooling", "path": 7}]',
        '[{"type": "a.Pooling"}]',
        '[{"type": "os.system"}]',
    ],
)
def test_lists_of_modules(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "modules.json").write_text(text)
    with pytest.raises(ModelError):
        _pooling(tmp_path / "inner")


@pytest.mark.parametrize("data", [b"", b"\x08" + bytes(7) + DEEP.encode()[:8], bytes(8), b"\xff" * 16])
def test_headers_of_safetensors(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ArtifactError, match="the file is no safetensors file"):
        metadata(data, "the file")
    cache = Cache(tmp_path)
    (tmp_path / "abc.safetensors").write_bytes(data)
    assert cache.get("abc") is None


@pytest.mark.parametrize("seed", [-1, 2**32, True, 0.5])
def test_seeds_that_no_generator_takes(seed: Any) -> None:
    with pytest.raises(InputError, match=r"The seed is .*; write a whole number from 0 to 4294967295"):
        amounts.seed(seed)


def test_a_seed_below_zero_on_the_command_line() -> None:
    answer = CliRunner().invoke(app, ["compress", "a.py:f", "--data", "a.py:g", "--seed", "-1"])
    assert answer.exit_code == 2
    assert "Invalid value" in answer.output


@pytest.mark.parametrize("name", ["rate", "average", "decay", "clip", "warm_up"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_that_are_no_numbers(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"The setting {name} is (nan|inf)"):
        Recovery.of("1epochs", **{name: value})


@pytest.mark.parametrize("text", ["1e999*kl", "kl(temperature=x)", "(" * 1000, "\x00", "kl" + "*2" * 5000, "kl(**{})"])
def test_losses_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match="The loss "):
        loss_called(text)


@pytest.mark.parametrize("name", ["os", "..store", "eager.x", ""])
def test_a_target_is_one_of_those_there_are(name: str) -> None:
    with pytest.raises(InputError, match="There is no target"):
        target_called(name, "fp32")


def test_a_file_that_tersor_did_not_write_is_not_overwritten(tmp_path: Path) -> None:
    model = capture(nn.Linear(4, 3), (torch.zeros(2, 4),))
    theirs = tmp_path / "mine.py"
    theirs.write_text("print('mine')")
    program = tmp_path / "theirs.pt2"
    torch.export.save(torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),)), program)
    onnx = tmp_path / "theirs.onnx"
    onnx.write_bytes(b"\x08\x0a\x12\x07pytorch" + bytes(50))
    for path in (theirs, program, onnx):
        before = path.read_bytes()
        with pytest.raises(StorageError, match="Tersor did not write it, so it is not overwritten"):
            programs.write_program(path, model)
        assert path.read_bytes() == before
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(StorageError, match="is a folder"):
        programs.write_program(tmp_path / "folder.pt2", model)
    link = tmp_path / "link.pt2"
    link.symlink_to(theirs)
    with pytest.raises(StorageError, match=r"mine\.py exists"):
        programs.write_program(link, model)


def test_what_tersor_wrote_is_replaced(tmp_path: Path) -> None:
    model = capture(nn.Linear(4, 3), (torch.zeros(2, 4),))
    path = tmp_path / "ours.pt2"
    path.touch()  # an empty file is nobody's
    programs.write_program(path, model)
    first = path.read_bytes()
    programs.write_program(path, model)
    assert path.read_bytes() == first
    assert programs._producer(b"\x08\x0a\x12\x06tersor\x22") == b"tersor"
    assert programs._producer(b"") == programs._producer(b"\x08\x0a\x1a\x06tersor") == b""


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "README.md"])
def test_links_of_a_model_folder_are_not_followed(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"secret": 1}')
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(ModelError, match=rf"{name}' is a link to .*secret\.json', outside of its folder"):
        open_folder(folder)


def test_the_links_of_the_hub_are_followed(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    (blobs / "1234").write_text('{"model_type": "x"}')
    (folder / "config.json").symlink_to("../../blobs/1234")
    with pytest.raises(ModelError, match="holds neither"):  # it was read, and has no weights
        open_folder(folder)


def resealed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as an attacker would who computes its checksums again."""
    from tersor.store import manifest

    content = json.loads((folder / "manifest.json").read_text())
    content.pop("sha256")
    change(content)
    (folder / "manifest.json").write_bytes(manifest._spelled(content | {"sha256": manifest._own_hash(content)}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("target"), "no section 'target'"),
        (lambda c: c.update(target=[]), "no section 'target'"),
        (lambda c: c["target"].pop("precision"), "section 'target' has no precision"),
        (lambda c: c["target"].update(file="os"), "made for a target that this version of Tersor lacks"),
        (lambda c: c["target"].update(file=["eager"]), "made for a target that this version of Tersor lacks"),
        (lambda c: c.update(machine=[]), "says nothing of the machine"),
        (lambda c: c["machine"].update(flags=3), "says nothing of the machine"),
        (lambda c: c.update(versions=3), "says nothing of the machine"),
    ],
)
def test_manifests_without_a_section(tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    from tersor.delivery import load
    from tersor.store.manifest import seal

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x").write_text("x")
    seal(tmp_path, {"target": {"file": "eager", "precision": "fp32"}, "report": {}})
    resealed(tmp_path, change)
    with pytest.raises(ArtifactError, match=said):
        _quietly(load, tmp_path)


def _quietly(load: Callable[[Path], object], folder: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(folder)


class _Gives:
    """A runner that gives what it was told."""

    def __init__(self, *given: np.ndarray):
        self._given = given

    def predict(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._given


@pytest.mark.parametrize(
    ("recorded", "given", "said"),
    [
        ([1.0, 2.0], [np.nan, np.nan], "its outputs hold 2 NaN among 2 values"),
        ([1.0, 2.0], [1.0, np.nan], "its outputs hold 1 NaN"),
        ([np.nan, np.nan], [np.nan, np.nan], "2 NaN among 2 values"),
        ([np.nan, 1.0], [1.0, 1.0], "the recorded outputs hold 1 NaN"),
        ([[1.0], [2.0]], [[1.0, 1.0], [2.0, 2.0]], "gives outputs of the shapes"),
    ],
)
def test_verify_takes_no_nan_for_an_answer(tmp_path: Path, recorded: Any, given: Any, said: str) -> None:
    from tersor.delivery import _probe

    npz(tmp_path / "probe.npz", in_000=np.zeros((2, 1)), out_000=np.array(recorded))
    with pytest.raises(ArtifactError, match=said):
        _probe(tmp_path, _Gives(np.array(given)))  # type: ignore[arg-type]


def test_verify_compares_infinities_by_sign(tmp_path: Path) -> None:
    from tersor.delivery import TOLERANCE, _probe

    npz(tmp_path / "probe.npz", in_000=np.zeros((2, 1)), out_000=np.array([-np.inf, 2.0]))
    assert _probe(tmp_path, _Gives(np.array([-np.inf, 2.0]))) == 0.0  # type: ignore[arg-type]
    assert _probe(tmp_path, _Gives(np.array([np.inf, 2.0]))) > TOLERANCE  # type: ignore[arg-type]
    assert _probe(tmp_path, _Gives(np.array([-9.0, 2.0]))) > TOLERANCE  # type: ignore[arg-type]


def test_an_example_that_is_damaged(tmp_path: Path) -> None:
    from tersor.delivery import probe

    with pytest.raises(ArtifactError, match="has no recorded example"):
        probe(tmp_path)
    npz(tmp_path / "probe.npz", other=np.zeros(2))
    with pytest.raises(ArtifactError, match="has no recorded example"):
        probe(tmp_path)
    (tmp_path / "probe.npz").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match="has no recorded example"):
        probe(tmp_path)
