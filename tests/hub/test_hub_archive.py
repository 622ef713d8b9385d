import contextlib
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hubzoo import captured, example

from tersor.errors import ArtifactError
from tersor.hub.archive import load_program, save_program


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "model.pt2"
    save_program(captured("residual").program(), path, {"names.json": "{}"})
    return path


def rewritten(archive: Path, to: Path, change) -> Path:
    """A copy of the archive whose members went through `change(name, bytes) -> bytes | None`."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            data = change(info.filename.partition("/")[2], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return to


def graph_change(edit):
    def change(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        graph = json.loads(data)
        edit(graph)
        return json.dumps(graph).encode()

    return change


def test_there_and_back_and_the_same_bytes(archive, tmp_path):
    program, extra = load_program(archive)
    assert extra == {"names.json": "{}"}
    model = captured("residual")
    (x,) = example("residual", 5)
    torch.testing.assert_close(program.module(check_guards=False)(x), model.run(x)[0])
    save_program(model.program(), tmp_path / "model.pt2", {"names.json": "{}"})
    assert (tmp_path / "model.pt2").read_bytes() == archive.read_bytes()


def test_example_inputs_are_not_shipped(archive):
    program, _ = load_program(archive)
    assert not program.example_inputs[0][0].any()


def test_an_operator_that_is_none_is_refused(archive, tmp_path):
    def edit(graph):
        graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"

    bad = rewritten(archive, tmp_path / "model.pt2", graph_change(edit))
    with pytest.raises(ArtifactError, match=r"target 'torch\.os\.system'.*could run code"):
        load_program(bad)


@pytest.mark.parametrize("text", ["__import__('os').system('true')", "Symbol('s1').__class__", "().__class__"])
def test_an_expression_that_is_no_arithmetic_is_refused(archive, tmp_path, text):
    def edit(graph):
        for value in graph["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    with pytest.raises(ArtifactError, match="expr_str"):
        load_program(rewritten(archive, tmp_path / "model.pt2", graph_change(edit)))


def test_a_name_that_is_code_is_refused(archive, tmp_path):
    def edit(graph):
        graph["graph_module"]["graph"]["nodes"][0]["name"] = 'x"); import os  # '

    with pytest.raises(ArtifactError, match="name 'x"):
        load_program(rewritten(archive, tmp_path / "model.pt2", graph_change(edit)))


def test_pickles_are_refused(archive, tmp_path):
    def weights(name, data):
        if name != "data/weights/model_weights_config.json":
            return data
        config = json.loads(data)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()

    with pytest.raises(ArtifactError, match=r"pickled tensor"):
        load_program(rewritten(archive, tmp_path / "model.pt2", weights))

    def sample(name, data):
        return pickle.dumps(print) if name == "data/sample_inputs/model.pt" else data

    with pytest.raises(ArtifactError, match=r"damaged|example inputs"):
        load_program(rewritten(archive, tmp_path / "sample.pt2", sample))


def test_unknown_and_compressed_members_are_refused(archive, tmp_path):
    bad = rewritten(archive, tmp_path / "model.pt2", lambda name, data: data)
    with zipfile.ZipFile(bad, "a") as file:
        file.writestr("model/data/aotinductor/model/wrapper.so", b"\x7fELF")
    with pytest.raises(ArtifactError, match=r"wrapper\.so"):
        load_program(bad)
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "z.pt2", "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(ArtifactError, match="compressed member"):
        load_program(tmp_path / "z.pt2")


def test_truncated_flipped_and_missing_files_are_refused(archive, tmp_path):
    whole = archive.read_bytes()
    path = tmp_path / "model.pt2"
    for size in (0, 10, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=r"model\.pt2 (is damaged|holds)"):
            load_program(path)
    for at in range(len(whole) // 7, len(whole), len(whole) // 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with contextlib.suppress(ArtifactError):
            load_program(path)  # a bit of padding between members may flip without harm
    with pytest.raises(ArtifactError, match="is missing"):
        load_program(tmp_path / "nowhere" / "model.pt2")
