"""A Hugging Face folder of a language model: its configuration, and its tensors by name.

Tensors are read from memory-mapped safetensors, only those that are asked for; files are closed in between, so that what
was read does not count as memory of this process for longer than it is used.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from tersor import foreign
from tersor.errors import ModelError
from tersor.inputs.encoder import refuse_odd

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OURS = (CONFIG, INDEX)
_COPIED = (".json", ".txt", ".model", ".jinja", ".md")
_LARGEST = 200 << 20  # bytes of a JSON file: more is no configuration, no index and no tokenizer


@dataclass(frozen=True)
class Spec:
    """What a tensor is before it is read: `dtype` as safetensors calls it ("BF16"), and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Folder:
    """path: the folder. config: what its config.json says. files: the file of each tensor, relative to the folder."""

    path: Path
    config: Mapping[str, Any]
    files: Mapping[str, str]

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names, copied. Raises `ModelError` where one is missing or its file is damaged."""
        found: dict[str, Tensor] = {}
        for file, some in self._by_file(names).items():
            with _opened(self.path / file) as tensors:
                found |= {name: tensors.get_tensor(name).clone() for name in some}
        return found

    def specs(self) -> dict[str, Spec]:
        """Type and shape of every tensor, from the headers alone."""
        found: dict[str, Spec] = {}
        for file, some in self._by_file(self.files).items():
            with _opened(self.path / file) as tensors:
                present = set(tensors.keys())
                for name in some:
                    if name not in present:
                        raise ModelError(f"'{self.path / file}' lacks '{name}', which the index places there.")
                    view = tensors.get_slice(name)
                    found[name] = Spec(view.get_dtype(), tuple(view.get_shape()))
        return found

    def copy_rest(self, out: Path) -> None:
        """Copy tokenizer, generation settings and the like to `out`: small text files, none that could be run."""
        for path in _small(self.path):
            if path.name not in _OURS:
                shutil.copyfile(path, out / path.name)

    def _by_file(self, names: Iterable[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in names:
            if name not in self.files:
                raise ModelError(f"{self.path} lacks the weight '{name}', which the architecture needs.")
            found.setdefault(self.files[name], []).append(name)
        return found


def open_folder(path: Path) -> Folder:
    """The folder at `path`. Raises `ModelError` where it has no config.json or no safetensors, or is already quantized."""
    if not (path / CONFIG).is_file():
        raise ModelError(
            f"'{path}' is a folder without config.json; give a folder that `save_pretrained` wrote, or name a function "
            "that returns the model."
        )
    for file in _small(path):
        _refuse_link(file, path)
    config = _json(path / CONFIG)
    refuse_odd(path, config)
    if config.get("quantization_config"):
        raise ModelError(f"'{path}' is already quantized (config.json says how); give the folder of the float model.")
    return Folder(path, config, _files(path))


def _small(folder: Path) -> list[Path]:
    """What is copied along, and what is written anew: small text files, none that could be run."""
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _COPIED)
    return [path for path in found if path.stat().st_size <= _LARGEST]


def _refuse_link(file: Path, folder: Path) -> None:
    """A link would carry any file of this machine into the folder that is written. Those of the hub's cache point to its own
    blobs."""
    if not file.is_symlink():
        return
    end, within = file.resolve(), [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        within.append(folder.resolve().parents[1] / "blobs")
    if not any(end.is_relative_to(each) for each in within):
        raise ModelError(
            f"'{file}' is a link to '{end}', outside of its folder, and would be copied; put the file itself there, or remove "
            "the link."
        )


def _files(path: Path) -> dict[str, str]:
    if (path / INDEX).is_file():
        found = _json(path / INDEX).get("weight_map")
        if not isinstance(found, dict) or not all(_inside(file) for file in found.values()):
            raise ModelError(f"'{path / INDEX}' holds no weight_map from tensors to files of this folder.")
        return dict(found)
    if not (path / WEIGHTS).is_file():
        raise ModelError(
            f"'{path}' holds neither {WEIGHTS} nor {INDEX}; write it again with `save_pretrained`, which makes safetensors."
        )
    with _opened(path / WEIGHTS) as tensors:
        return dict.fromkeys(tensors.keys(), WEIGHTS)


def _inside(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST:
        raise ModelError(f"'{path}' has {path.stat().st_size / 1e6:.0f} MB; that is no configuration or index.")
    with foreign.reading(f"'{path}'", ModelError, "download it again"):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ModelError(f"'{path}' holds a {type(found).__name__}; wanted a JSON object.")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ModelError(f"'{path}' is missing; the index of the folder names it. Download it again.")
    with foreign.reading(f"'{path}'", ModelError, "download it again"), safe_open(str(path), framework="pt") as tensors:
        yield tensors
