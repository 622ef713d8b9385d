"""Hostile and damaged artifacts: every change is refused, in one sentence, before any content is trusted."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tersor.delivery import verify
from tersor.errors import ArtifactError
from tersor.store.manifest import check, seal


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder, number = tmp_path / "artifact", random.Random(0)
    (folder / "model").mkdir(parents=True)
    for name, size in {"model/net.onnx": 4000, "model/net.bin": 9000, "report.html": 3000, "README.md": 500}.items():
        (folder / name).write_bytes(number.randbytes(size))
    (folder / "plan.yaml").write_text("layers: []\n")
    seal(folder, {"plan": [{"name": f"layer{i}", "bits": 8, "damage": 0.1 * i} for i in range(9)], "score": 0.91})
    return folder


def corrupt(folder: Path, number: random.Random) -> str:
    """One random change to a copy of an artifact; says what it was."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = number.choice([*files, folder / "manifest.json", folder / "report.html"])
    kind = number.choice(["flip", "flip", "truncate", "delete", "grow", "swap", "add", "copy", "insert", "zero"])
    data = bytearray(path.read_bytes())
    at = number.randrange(len(data))
    if kind == "flip":
        data[at] ^= 1 << number.randrange(8)
    elif kind == "truncate":
        data = data[:at]
    elif kind == "grow":
        data += number.choice([b"\n", b" ", b"\0", number.randbytes(50)])
    elif kind == "insert":
        data[at:at] = number.choice([b" ", b"\n", b"0"])
    elif kind == "zero":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    if kind == "delete":
        path.unlink()
    elif kind == "add":
        (folder / number.choice(["extra", "model/extra.bin", "manifest.json.bak", ".hidden"])).write_bytes(b"x")
    elif kind == "copy":
        shutil.copy(path, path.with_suffix(".copy"))
    elif kind == "swap":
        other = number.choice([p for p in files if p != path])
        other_data = other.read_bytes()
        other.write_bytes(data)
        path.write_bytes(other_data)
    else:
        path.write_bytes(data)
    return f"{kind} {path.relative_to(folder)} at {at}"


def refused(folder: Path) -> bool:
    try:
        check(folder)
    except ArtifactError as refusal:
        return str(refusal).endswith(".")
    return False


def unseen_corruptions(artifact: Path, times: int, seed: int) -> list[str]:
    number, unseen = random.Random(seed), []
    for i in range(times):
        copy = artifact.with_name(f"copy{i}")
        shutil.copytree(artifact, copy)
        what = corrupt(copy, number)
        if not refused(copy):
            unseen.append(what)
        shutil.rmtree(copy)
    return unseen


def test_200_random_corruptions_are_refused(artifact: Path) -> None:
    assert unseen_corruptions(artifact, 200, 0) == []
    check(artifact)


@pytest.mark.slow
def test_5000_random_corruptions_are_refused(artifact: Path) -> None:
    assert unseen_corruptions(artifact, 5000, 1) == []


def test_every_byte_of_the_manifest_counts(artifact: Path) -> None:
    path = artifact / "manifest.json"
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        with pytest.raises(ArtifactError):
            check(artifact)


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest as an attacker would who computes its checksums again."""
    from tersor.store import manifest

    content = json.loads((folder / "manifest.json").read_text())
    content.pop("sha256")
    change(content)
    own = manifest._own_hash(content)
    (folder / "manifest.json").write_bytes(manifest._spelled(content | {"sha256": own}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["files"].update({"../../etc/passwd": {"nbytes": 1, "sha256": "0"}}), "no path inside the folder"),
        (lambda c: c["files"].update({"/etc/passwd": {"nbytes": 1, "sha256": "0"}}), "no path inside the folder"),
        (lambda c: c["files"].update({"model\\..\\x": {"nbytes": 1, "sha256": "0"}}), "no path inside the folder"),
        (lambda c: c["files"].update({"": {"nbytes": 1, "sha256": "0"}}), "no path inside the folder"),
        (lambda c: c["files"].update({"a\0b": {"nbytes": 1, "sha256": "0"}}), "no path inside the folder"),
        (lambda c: c["files"]["README.md"].update(nbytes=10**15), "README.md has 500 bytes and its manifest says"),
        (lambda c: c["files"]["README.md"].update(nbytes=-1), "lists no size or checksum"),
        (lambda c: c["files"]["README.md"].update(nbytes=500.0), "lists no size or checksum"),
        (lambda c: c["files"]["README.md"].update(nbytes="500"), "lists no size or checksum"),
        (lambda c: c["files"]["README.md"].update(sha256=None), "lists no size or checksum"),
        (lambda c: c["files"]["README.md"].pop("sha256"), "lacks a field"),
        (lambda c: c["files"].pop("README.md"), "README.md is not in its manifest"),
        (lambda c: c.update(files=[]), "lacks a field"),
        (lambda c: c.pop("machine"), "lacks a field"),
        (lambda c: c["schema"].update(version=99), "use the Tersor that wrote it"),
        (lambda c: c["schema"].update(name="other"), "is not a manifest of Tersor"),
        (lambda c: c.pop("schema"), "is not a manifest of Tersor"),
    ],
)
def test_manifests_that_lie_are_refused(artifact: Path, change: Callable[[dict], object], said: str) -> None:
    rewrite(artifact, change)
    with pytest.raises(ArtifactError) as caught:
        check(artifact)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": 1, "a": 1}',
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        '{"schema": "tersor"}',
        "\ufeff{}",
        "{'a': 1}",
    ],
)
def test_texts_that_are_no_manifest_are_refused(artifact: Path, text: str) -> None:
    (artifact / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        check(artifact)


def test_a_name_that_occurs_twice_is_refused(artifact: Path) -> None:
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace('"score": 0.91', '"score": 0.99,\n "score": 0.91'))
    with pytest.raises(ArtifactError, match="a name occurs twice"):
        check(artifact)


def test_links_and_devices_are_refused(artifact: Path, tmp_path: Path) -> None:
    target = artifact / "README.md"
    moved = tmp_path / "elsewhere"
    os.rename(target, moved)
    target.symlink_to(moved)
    with pytest.raises(ArtifactError, match=r"README\.md is a link or a device"):
        check(artifact)
    target.unlink()
    os.mkfifo(target)
    with pytest.raises(ArtifactError, match=r"README\.md is a link or a device"):
        check(artifact)
    target.unlink()
    os.rename(moved, target)
    check(artifact)
    (artifact / "model" / "up").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="model/up is a link"):
        check(artifact)


def test_a_manifest_that_is_a_link_or_a_folder_or_huge_is_refused(artifact: Path, tmp_path: Path) -> None:
    path = artifact / "manifest.json"
    os.rename(path, tmp_path / "m")
    path.symlink_to(tmp_path / "m")
    with pytest.raises(ArtifactError):
        check(artifact)
    path.unlink()
    path.mkdir()
    with pytest.raises(ArtifactError):
        check(artifact)
    path.rmdir()
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room, and must not be read
    with pytest.raises(ArtifactError, match="more than a manifest may have"):
        check(artifact)


def test_a_huge_file_is_refused_by_its_size(artifact: Path) -> None:
    os.truncate(artifact / "model" / "net.bin", 1 << 40)
    with pytest.raises(ArtifactError, match=r"model/net\.bin has 1099511627776 bytes"):
        check(artifact)


def test_an_empty_folder_is_refused(artifact: Path) -> None:
    (artifact / "model" / "empty").mkdir()
    with pytest.raises(ArtifactError, match="the empty folder model/empty"):
        check(artifact)


def made_of(folder: Path, place: str, example: np.ndarray) -> Path:
    """A sealed artifact whose ONNX model has its weights in the file `place`."""
    (folder / "model").mkdir(parents=True)
    weights = onnx.numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": place, "offset": "0", "length": "32"}.items():
        weights.external_data.add(key=key, value=value)
    shapes = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 4), ("y", 2))
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", shapes[:1], shapes[1:], [weights]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model" / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model" / "model.onnx.data").write_bytes(np.ones((4, 2), np.float32).tobytes())
    np.savez(folder / "probe.npz", in_000=example, out_000=np.full((2, 2), 4.0, np.float32))
    seal(folder, {"target": {"file": "onnxruntime", "precision": "fp32"}})
    return folder


def test_weights_in_other_peoples_files_are_refused(tmp_path: Path) -> None:
    secret, example = tmp_path / "secret", np.ones((2, 4), np.float32)
    secret.write_bytes(bytes(32))
    for i, place in enumerate((str(secret), "../../secret", "../probe.npz", "/dev/zero")):
        with pytest.raises(ArtifactError, match=r"only model\.onnx\.data beside it was wanted"):
            verify(made_of(tmp_path / str(i), place, example))
    assert verify(made_of(tmp_path / "own", "model.onnx.data", example)).difference == 0


@pytest.mark.parametrize(
    "example",
    [
        np.array([["a"] * 4] * 2),
        np.zeros((2, 4), "datetime64[s]"),
        np.ones((2, 3), np.float32),
        np.ones((), np.float32),
    ],
)
def test_examples_that_are_none_are_one_sentence(tmp_path: Path, example: np.ndarray) -> None:
    with pytest.raises(ArtifactError, match="recorded example"):
        verify(made_of(tmp_path / "a", "model.onnx.data", example))
