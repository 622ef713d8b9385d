"""What killed processes leave goes at the next start, and nothing else does; a full disk is a sentence."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "store"))
from kills import killed_before_event

from tersor.errors import StorageError
from tersor.scratch import full_disk, room, scratch


@pytest.fixture
def tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def killed(folder: Path) -> None:
    """A process that dies while it uses its scratch folder."""

    def work() -> None:
        with scratch() as mine:
            (mine / "large").mkdir()
            (mine / "large" / "file").write_bytes(b"x" * 1000)
            (folder / "signal").mkdir()  # the event before which it dies

    assert killed_before_event(0, folder / "signal", work)


def test_what_a_killed_process_left_goes_at_the_next_start(tmpdir: Path) -> None:
    killed(tmpdir)
    assert len(list(tmpdir.iterdir())) == 1
    with scratch() as mine:
        assert [*tmpdir.iterdir()] == [mine]
    assert not [*tmpdir.iterdir()]


def test_what_is_in_use_or_not_ours_stays(tmpdir: Path) -> None:
    users = [tmpdir / "tersor-scratch-mine", tmpdir / "tersor-data", tmpdir / "tersor-scratch-0123456789abcdef0"]
    for folder in users:
        folder.mkdir()
    elsewhere = tmpdir / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep").write_text("")
    link = tmpdir / ("tersor-scratch-" + 16 * "a")
    link.symlink_to(elsewhere)
    with scratch() as first, scratch() as second:
        assert first.is_dir()
        assert second.is_dir()
        assert first != second
    assert sorted(tmpdir.iterdir()) == sorted([*users, elsewhere, link])
    assert (elsewhere / "keep").exists()


def test_it_is_removed_when_the_work_fails(tmpdir: Path) -> None:
    with pytest.raises(FileNotFoundError), scratch() as mine:
        (mine / "x" / "y").write_text("x")
    assert not [*tmpdir.iterdir()]


def test_too_little_room_says_how_much_is_needed(tmpdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 3_000_000))
    room(tmpdir, 1_000_000)
    with pytest.raises(StorageError, match=rf"{tmpdir} has 3.0 MB free, and about 301.0 MB are needed there.*TMPDIR"):
        room(tmpdir, 300_000_000)


def test_a_disk_that_fills_meanwhile_is_a_sentence(tmpdir: Path) -> None:
    with (
        pytest.raises(StorageError, match=rf"The disk of {tmpdir}, where intermediate files go, is full; free"),
        scratch(),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmpdir / "x"))
    with pytest.raises(OSError, match="somewhere else"), full_disk(tmpdir):
        raise OSError(errno.ENOSPC, "somewhere else", "/proc/x")
    assert not os.listdir(tmpdir)


def test_no_folder_for_intermediate_files_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    with pytest.raises(StorageError, match="Set TMPDIR to a folder on a disk that has room"), scratch():
        pass


def test_a_folder_that_is_removed_meanwhile_is_a_sentence(tmpdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmpdir / "inner"
    inner.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(inner))

    def write(mine: Path) -> None:
        shutil.rmtree(inner)
        (mine / "x").write_text("x")

    with pytest.raises(StorageError, match="was removed meanwhile"), scratch() as mine:
        write(mine)
