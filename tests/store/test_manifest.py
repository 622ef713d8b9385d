"""The manifest: round trip, the machine's warning, what may not be sealed. Damage: tests/attacks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.errors import ArtifactError
from tersor.measuring.machine import folder_bytes, machine, versions
from tersor.store import manifest
from tersor.store.manifest import check, not_ours, other_cpu, read, seal


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights.bin").write_bytes(os.urandom(5000))
    (folder / "übung.txt").write_text("grün")
    seal(folder, {"seeds": {"split": 0}, "score": 0.91, "plan": [{"name": "a", "bits": 8}]})
    return folder


def test_what_was_sealed_is_read(artifact: Path) -> None:
    found = check(artifact)
    assert found.fields == {"seeds": {"split": 0}, "score": 0.91, "plan": [{"name": "a", "bits": 8}]}
    assert set(found.files) == {"model/weights.bin", "übung.txt"}
    assert found.nbytes == 5005
    assert found.nbytes + (artifact / "manifest.json").stat().st_size == folder_bytes(artifact)
    assert found.machine == machine()
    assert found.versions == versions()
    assert "numpy" in found.versions
    assert read(artifact) == found


def test_sealing_again_gives_the_new_files(artifact: Path) -> None:
    (artifact / "more").write_text("more")
    seal(artifact, {})
    assert "more" in check(artifact).files


def test_fields_that_the_manifest_writes_itself_are_refused(artifact: Path) -> None:
    with pytest.raises(ValueError, match="files"):
        seal(artifact, {"files": {}})
    with pytest.raises(ValueError, match="JSON compliant"):
        seal(artifact, {"damage": float("nan")})


def test_another_machine_is_a_warning(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(artifact)
    assert other_cpu(found) is None
    there = {**machine(), "cpu": "Imaginary 9000", "flags": [*machine()["flags"], "amx_imaginary"], "cores": 99}
    said = other_cpu(replace(found, machine=there))
    assert said is not None
    assert "instead of Imaginary 9000" in said
    assert "it lacks amx_imaginary" in said
    assert "instead of 99" in said
    monkeypatch.setattr(manifest, "machine", lambda: there)
    assert "Imaginary 9000 instead of" in (other_cpu(found) or "")


def test_a_later_schema_says_so(artifact: Path) -> None:
    path = artifact / "manifest.json"
    content = json.loads(path.read_text())
    content["schema"]["version"] = 2
    path.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")
    with pytest.raises(ArtifactError, match="version 2 and this Tersor reads version 1"):
        check(artifact)


def test_ours_or_not(artifact: Path, tmp_path: Path) -> None:
    assert not_ours(artifact) is None
    assert "is no artifact" in (not_ours(tmp_path) or "")
    (artifact / "model" / "weights.bin").write_bytes(b"damaged")
    assert not_ours(artifact) is None


@pytest.mark.parametrize(("make", "said"), [(None, "is not a folder"), ("folder", "holds no manifest.json")])
def test_what_is_no_artifact(tmp_path: Path, make: str | None, said: str) -> None:
    path = tmp_path / "x"
    if make:
        path.mkdir()
    with pytest.raises(ArtifactError, match=said):
        check(path)
