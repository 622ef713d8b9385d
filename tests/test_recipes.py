"""Recipes are files that somebody else may have written: they run nothing, and whatever they are instead is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.errors import InputError, RecipeError
from tersor.pipeline import compress
from tersor.recipe import open_recipe, read_recipe

PLAIN = """
tersor_recipe: 1
target: {file: eager, precision: int8}
seed: 0
calibration_items: 8
threads: 1
feeds: static
techniques: {linear: GPTQ(bits=8)}
keep: {}
"""
CODE = "import pathlib\npathlib.Path(__file__).with_name('RAN').mkdir()\ndef augment(inputs, drawn): return inputs\n"


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(text)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_a_function_in_a_recipe_runs_only_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(CODE)
    recipe = tmp_path / "plan.yaml"
    for spec in (f"{tmp_path}/evil.py:augment", f"flip, {tmp_path}/evil.py:augment", "os:system"):
        recipe.write_text(f"{PLAIN}recover: {{length: 1epochs, augment: '{spec}'}}\n")
        with pytest.raises(RecipeError, match=r"would run that code; read it, and add --allow-code"):
            compress(None, None, recipe=recipe)
    assert not (tmp_path / "RAN").exists()
    recipe.write_text(f"{PLAIN}recover: {{length: 1epochs, augment: '{tmp_path}/evil.py:augment'}}\n")
    assert open_recipe(recipe, allow_code=True).recover is not None
    assert (tmp_path / "RAN").exists()


def test_words_that_are_no_functions_need_no_leave() -> None:
    assert read_recipe(PLAIN + "recover: {length: 1epochs, augment: 'flip,crop'}\n").recover is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no recipe"),
        (b"\xff\xfe\x00\x01", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"a: " + b"{a: " * 100_000, "cannot be read"),
        (b"a: [", "cannot be read"),
        (b"\x00", "cannot be read"),
        (b"!!python/object/apply:os.system ['true']", "cannot be read"),
        (b"", "does not start with tersor_recipe"),
        (b"- 1", "does not start with tersor_recipe"),
        (b"a: &a [1, 2]\nb: &b [*a, *a]\nc: [*b, *b]", "repeats a part of itself by an alias"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "plan.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        open_recipe(path)
    assert said in str(caught.value)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder; bring a plan"):
        open_recipe(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 0", "seed: -1", "seed: -1; expected a whole number"),
        ("seed: 0", "seed: .nan", "seed: nan"),
        ("seed: 0", f"seed: {10**400}", "seed: 1000"),
        ("seed: 0", "seed: true", "seed: True"),
        ("threads: 1", "threads: .inf", "threads: inf"),
        ("calibration_items: 8", "calibration_items: [8]", "calibration_items: [8]"),
        ("target: {file: eager, precision: int8}", "target: eager", "lacks or misstates"),
        ("techniques: {linear: GPTQ(bits=8)}", "techniques: [GPTQ]", "lacks or misstates"),
        ("GPTQ(bits=8)", "GPTQ(bits=1e999)", "is no finite number"),
        ("GPTQ(bits=8)", "GPTQ(rungs=8)", "is no technique"),
        ("GPTQ(bits=8)", '\'__import__("os").system("true")\'', "is no technique"),
        ("GPTQ(bits=8)", "'" + "(" * 5000 + "'", "is no technique"),
        ("keep: {}", "keep: {group: 3}", "lacks or misstates"),
        ("keep: {}", "keep: {}\nrecover: {length: 1epochs, rate: .nan}", "rate: nan under recover"),
        ("keep: {}", "keep: {}\nrecover: {length: 1epochs, batch: many}", "correct what stands under recover"),
        ("keep: {}", "keep: {}\nrecover: {length: 1epochs, surprise: 1}", "correct what stands under recover"),
        ("keep: {}", "keep: {}\nrecover: {length: [1]}", "wanted the settings of a training"),
    ],
)
def test_entries_that_are_wrong_are_named(old: str, new: str, said: str) -> None:
    assert old in PLAIN
    assert said in refused(PLAIN.replace(old, new))


def test_a_loss_that_there_is_not_is_an_input_error() -> None:
    with pytest.raises(InputError, match="There is no loss 'os'"):
        read_recipe(PLAIN + "recover: {length: 1epochs, loss: os}\n")
