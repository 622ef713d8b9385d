"""A folder is replaced whole or not at all: at every system call, at random moments, on a broken disk."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from kills import every_event, killed_after

from tersor.errors import StorageError
from tersor.store import files
from tersor.store.files import atomic_write, refuse_folder, repair, staging
from tersor.store.manifest import check, seal


def deliver(out: Path, text: str, parts: int = 3) -> None:
    with staging(out) as folder:
        (folder / "model").mkdir()
        for i in range(parts):
            (folder / "model" / f"part{i}").write_text(text * (i + 1))
        seal(folder, {"text": text})


def content(out: Path) -> str:
    repair(out)
    manifest = check(out)
    assert all((out / name).read_text().startswith(manifest.fields["text"]) for name in manifest.files)
    return manifest.fields["text"]


@pytest.fixture(params=["exchange", "journal"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the system can exchange two names, and where it cannot."""
    if request.param == "journal":
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    elif sys.platform != "linux":
        pytest.skip("no exchange here")
    return request.param


def test_a_folder_appears_and_is_replaced(tmp_path: Path, mode: str) -> None:
    out = tmp_path / "deep" / "er" / "out"
    for text in ("one", "two", "three"):
        deliver(out, text)
        assert content(out) == text
        assert os.listdir(out.parent) == ["out"]


def _fail_halfway(out: Path) -> None:
    with staging(out) as folder:
        (folder / "half").write_text("half")
        raise ZeroDivisionError


def test_an_empty_folder_may_be_taken(tmp_path: Path, mode: str) -> None:
    (tmp_path / "out").mkdir()
    deliver(tmp_path / "out", "one")
    assert content(tmp_path / "out") == "one"


def test_a_failure_leaves_the_old_one(tmp_path: Path, mode: str) -> None:
    out = tmp_path / "out"
    deliver(out, "one")
    with pytest.raises(ZeroDivisionError):
        _fail_halfway(out)
    assert content(out) == "one"
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    deliver(tmp_path / "link", "one")
    deliver(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == "two"


@pytest.mark.parametrize("old", [None, "old"])
def test_killed_before_every_system_call(tmp_path: Path, mode: str, old: str | None) -> None:
    """The old or the new folder is whole, and the next run succeeds and leaves nothing behind."""
    out, kept, kills, seen = tmp_path / "out", tmp_path.with_name("kept"), 0, set()
    deliver(kept, "old")
    if old:
        shutil.copytree(kept, out)
    for kill in every_event(tmp_path, lambda: deliver(out, "new", 1)):
        kills += 1
        repair(out)
        seen.add(content(out) if out.exists() else None)
        if kill % 4 == 0:
            deliver(out, "again", 1)
            assert content(out) == "again"
            assert os.listdir(tmp_path) == ["out"], f"left behind after kill {kill}"
        for path in tmp_path.iterdir():  # every child starts from the same folder, so that its steps are the same
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if old:
            shutil.copytree(kept, out)
    assert kills > 15
    assert seen == {old, "new"}


def test_killed_at_random_moments(tmp_path: Path, mode: str) -> None:
    _random_kills(tmp_path, 25)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path: Path, mode: str) -> None:
    _random_kills(tmp_path, 500)


def _random_kills(folder: Path, kills: int) -> None:
    out, number = folder / "out", random.Random(0)
    deliver(out, "0")

    def replace_for_ever() -> None:
        for i in range(1, 10**9):
            deliver(out, str(i), parts=1)

    for _ in range(kills):
        killed_after(number.uniform(0.002, 0.03), replace_for_ever)
        assert content(out).isdigit()
    deliver(out, "last")
    assert content(out) == "last"
    assert os.listdir(folder) == ["out"]


def test_writers_at_the_same_time_do_not_mix(tmp_path: Path, mode: str) -> None:
    out, failures = tmp_path / "out", []

    def write(text: str) -> None:
        try:
            for _ in range(8):
                deliver(out, text)
        except Exception as cause:
            failures.append(cause)

    threads = [threading.Thread(target=write, args=(t,)) for t in ("a", "b", "c")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
    assert content(out) in "abc"
    assert os.listdir(tmp_path) == ["out"]


def test_the_folder_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging(out) as folder:
        (folder / "file").write_text("mine")
        deliver(out, "other")
        assert (folder / "file").read_text() == "mine"
        seal(folder, {"text": "mine"})
    assert content(out) == "mine"


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="is no artifact of Tersor"):
        deliver(out, "one")
    assert (out / "thesis.tex").read_text() == "years of work"
    (out / "thesis.tex").unlink()
    deliver(out, "one")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"also holds notes\.txt, which the artifact does not list"):
        deliver(out, "two")
    assert (out / "notes.txt").read_text() == "mine"


def test_a_damaged_artifact_may_be_replaced(tmp_path: Path) -> None:
    deliver(tmp_path / "out", "one")
    (tmp_path / "out" / "model" / "part0").write_text("damaged")
    deliver(tmp_path / "out", "two")
    assert content(tmp_path / "out") == "two"


def test_a_file_of_the_users_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StorageError, match="is no artifact"):
        _interfered(out)
    assert (out / "mine").read_text() == "mine"
    assert os.listdir(tmp_path) == ["out"]


def _interfered(out: Path) -> None:
    with staging(out) as folder:
        (folder / "a").write_text("a")
        out.mkdir()
        (out / "mine").write_text("mine")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EIO, "the disk reports an error"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_broken_disk_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, call: str
) -> None:
    deliver(tmp_path / "out", "one")

    def broken(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, broken)
        with pytest.raises(StorageError, match=said) as caught:
            deliver(tmp_path / "out", "two")
    assert "Nothing that was there has changed." in str(caught.value)
    assert content(tmp_path / "out") == "one"
    assert os.listdir(tmp_path) == ["out"]


def test_a_disk_that_fills_while_writing(tmp_path: Path) -> None:
    deliver(tmp_path / "out", "one")
    with pytest.raises(StorageError, match="the disk is full"), staging(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert content(tmp_path / "out") == "one"


def test_other_errors_of_the_writer_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), staging(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "the user's own model file")
    with pytest.raises(RuntimeError, match="own"), staging(tmp_path / "out"):
        raise RuntimeError("own")


def test_a_library_that_hides_the_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="the disk is full"), staging(tmp_path / "out"):
        raise RuntimeError("PytorchStreamWriter failed writing file")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize(("options", "said"), [("size=64k", "the disk is full"), ("ro", "read-only")])
def test_a_real_small_or_read_only_disk(tmp_path: Path, options: str, said: str) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        deliver(tmp_path / "out", "one")
        if options == "ro":
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(StorageError, match=said):
            deliver(tmp_path / "out", "two" * 30_000)
        assert content(tmp_path / "out") == "one"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("out", "said"),
    [("file", "is a file, and a folder was to be written"), ("file/out", "part of its path is a file")],
)
def test_impossible_places(tmp_path: Path, out: str, said: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=said):
        deliver(tmp_path / out, "one")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_journal_of_nothing_is_dropped(tmp_path: Path) -> None:
    deliver(tmp_path / "out", "one")
    for name in (".out.tersor.journal-", ".out.tersor.journal-missing"):
        (tmp_path / name).touch()
        repair(tmp_path / "out")
        assert content(tmp_path / "out") == "one"
        assert os.listdir(tmp_path) == ["out"]


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old" * 1000)
    seen, left = set(), 0
    for _ in every_event(tmp_path, lambda: atomic_write(path, b"new" * 1000)):
        seen.add(path.read_bytes()[:3])
        left += len(os.listdir(tmp_path)) > 1
        assert len(path.read_bytes()) == 3000
        path.write_bytes(b"old" * 1000)
    assert b"old" in seen
    assert left  # which the next writer removed
    atomic_write(path, b"last")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"last"


def test_a_mount_point_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path / "out"))
    with pytest.raises(StorageError, match="is a mount point; choose a folder inside it"):
        refuse_folder(tmp_path / "out")
    refuse_folder(tmp_path / "out" / "small")


def test_the_whole_disk_is_refused() -> None:
    with pytest.raises(StorageError, match="is a mount point"):
        refuse_folder(Path("/"))


def test_a_name_that_leaves_no_room_for_what_is_written_aside(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="its name is too long"):
        refuse_folder(tmp_path / ("a" * 250))
    with pytest.raises(StorageError, match="its name is too long"):
        refuse_folder(tmp_path / "not" / "there" / ("a" * 250))
    refuse_folder(tmp_path / ("a" * 200))


def test_what_is_merely_called_like_ours_stays(tmp_path: Path) -> None:
    mine = tmp_path / ".out.tersor-notes"
    mine.mkdir()
    (mine / "keep").write_text("mine")
    (tmp_path / ".file.tersor-notes").write_text("mine")
    deliver(tmp_path / "out", "one")
    atomic_write(tmp_path / "file", b"new")
    assert (mine / "keep").exists()
    assert (tmp_path / ".file.tersor-notes").exists()


def test_a_place_that_is_removed_meanwhile_is_a_sentence(tmp_path: Path) -> None:
    def write() -> None:
        with staging(tmp_path / "place" / "out") as folder:
            shutil.rmtree(tmp_path / "place")
            (folder / "a").write_text("a")

    with pytest.raises(StorageError, match="was removed or renamed while it was written to"):
        write()


def test_disks_that_cannot_flush_folders_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unable)
    deliver(tmp_path / "out", "one")
    assert content(tmp_path / "out") == "one"
