"""The clock: right order, no false difference, no orphan, a sentence for every failure."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tersor.deadline import Deadline, TimeUp, until
from tersor.errors import InputError, TargetError
from tersor.measuring.clock import AGAIN, Contender, Race, race
from tersor.memory import Room, held

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


def contender(name: str, **arguments: object) -> Contender:
    return Contender(name, f"contenders:{name.split()[0]}", arguments)


def test_three_times_the_work_is_slower() -> None:
    result = race([contender("adder 1", n=20_000), contender("adder 3", n=60_000)], rounds=25, control="adder 1")
    assert set(result.samples) == {"adder 1", "adder 3", "adder 1" + AGAIN}
    assert result.rounds == 25
    assert 1.5 < result.ratio("adder 3", "adder 1").value < 6
    noise = result.noise()
    assert noise is not None
    assert noise.low <= noise.value <= noise.high
    assert all(4e6 < m < 1e9 for m in result.memory.values())
    assert len(result.load) == 2


def test_who_is_far_behind_is_soon_out() -> None:
    result = race(
        [contender("adder 1", n=2_000), contender("adder 9", n=90_000)], rounds=9, control="adder 1", behind=8
    )
    assert {name: len(seen) for name, seen in result.samples.items()} == {
        "adder 1": 9,
        "adder 1" + AGAIN: 9,
        "adder 9": 5,
    }
    assert result.rounds == 9
    slow = result.ratio("adder 9", "adder 1")
    assert 8 < slow.low <= slow.value <= slow.high
    assert result.median("adder 9") == pytest.approx(result.seconds("adder 9").value)


def test_no_two_are_in_memory_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    crowd = [contender(f"alone {n}", path=path, n=2_000 * n) for n in (1, 3)]
    result = race(crowd, rounds=12, control="alone 1", starts=2, apart=True)
    assert {name: len(seen) for name, seen in result.samples.items()} == dict.fromkeys(
        ("alone 1", "alone 3", "alone 1" + AGAIN), 12
    )
    assert result.ratio("alone 3", "alone 1").value > 1.5
    failures: dict[str, str] = {}
    result = race([contender("raising"), *crowd], rounds=6, control="raising", apart=True, failures=failures)
    assert list(failures) == ["raising"]
    assert result.control in {"alone 1", "alone 3"}
    with pytest.raises(TargetError, match="the weights are not here"):
        race([contender("raising"), *crowd], rounds=6, apart=True)


def test_several_starts_make_one_race() -> None:
    result = race(
        [contender("adder 1", n=2_000), contender("adder 3", n=6_000)], rounds=12, control="adder 1", starts=3
    )
    assert result.rounds == 12
    assert result.starts == 3
    assert result.ratio("adder 3", "adder 1").low > 1


def test_the_interval_knows_that_starts_differ() -> None:
    """Every start is a tenth off, the same way for all its rounds."""
    rng = np.random.default_rng(0)
    off = np.repeat([1.0, 1.1, 0.9], 20)
    samples = {"a": tuple(off * (1 + 0.001 * rng.standard_normal(60))), "b": tuple(np.ones(60))}
    one, three = (Race(samples, None, (0, 0), 1, starts=starts).ratio("a", "b") for starts in (1, 3))
    assert three.low < 0.91 < 1.09 < three.high
    assert one.high - one.low < three.high - three.low


def test_noise_on_stdout_stays_off_the_protocol() -> None:
    assert race([contender("noisy")], rounds=5).rounds == 5


def test_a_budget_of_seconds_ends_the_race() -> None:
    assert 5 <= race([contender("adder", n=10)], rounds=100_000, seconds=0.5).rounds < 100_000
    assert race([contender("adder", n=10)], rounds=100_000, seconds=0).rounds == 5


def test_threads_are_pinned() -> None:
    race([contender("threads_of_openmp", wanted="3")], rounds=1, threads=3)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("raising", {}, "raising could not be started: ValueError: the weights are not here"),
        ("crashing", {}, "SIGSEGV. Its last output: about to touch address zero"),
        ("leaving", {}, "SystemExit: left on its own account"),
        ("dying_later", {"calls": 60}, "dying_later failed while it was timed: its process ended with exit code 7"),
        ("absent", {}, "has no attribute 'absent'"),
        ("raising", {"unknown": 1}, "unexpected keyword argument 'unknown'"),
    ],
)
def test_a_failure_is_a_sentence(name: str, arguments: dict, said: str) -> None:
    with pytest.raises(TargetError) as caught:
        race([contender("adder", n=10), Contender(name, f"contenders:{name}", arguments)], rounds=100)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("raising", {}, "the weights are not here"),
        ("crashing", {}, "signal SIGSEGV"),
        ("dying_later", {"calls": 45}, "exit code 7"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_others_go_on(name: str, arguments: dict, said: str, first: bool) -> None:
    """Also where the one that fails was the control."""
    failing, failures = Contender(name, f"contenders:{name}", arguments), dict[str, str]()
    sound = [contender("adder 1", n=10), contender("adder 2", n=20)]
    contenders = [failing, *sound] if first else [*sound, failing]
    result = race(contenders, rounds=30, control=contenders[0].name, starts=2, failures=failures)
    assert list(failures) == [name]
    assert said in failures[name]
    assert {"adder 1", "adder 2"} <= set(result.samples) <= {"adder 1", "adder 2", "adder 1" + AGAIN}
    assert result.noise() is not None
    assert result.ratio("adder 2", "adder 1").value > 0


def test_nobody_left_is_an_error() -> None:
    failures: dict[str, str] = {}
    with pytest.raises(TargetError, match="the weights are not here"):
        race([contender("raising 1"), contender("raising 2")], failures=failures)
    assert list(failures) == ["raising 1", "raising 2"]


def test_a_contender_that_hangs_is_ended() -> None:
    with pytest.raises(TargetError, match=r"no answer in 1 s"):
        race([contender("hanging")], timeout=1)


def test_names_must_differ_and_the_control_must_run() -> None:
    with pytest.raises(InputError, match="different names"):
        race([contender("adder", n=1), contender("adder", n=2)])
    with pytest.raises(InputError, match="none of the contenders"):
        race([contender("adder", n=1)], control="other")


@pytest.mark.skipif(sys.platform != "linux", reason="children are stopped on Linux only")
def test_spinning_threads_do_not_run_out_of_turn(tmp_path: Path) -> None:
    """A thread that never rests is silent during the long turns of the other contender."""
    log = tmp_path / "log"
    slow = Contender("slow", "contenders:dying_later", {"calls": 10_000})
    race([contender("counting", path=str(log)), slow], rounds=8, turn=0.1)
    beats = np.array([float(line) for line in log.read_text().split()])
    assert (np.diff(beats) > 0.08).sum() >= 5


@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_parent_leaves_no_orphan(tmp_path: Path, stopped: bool) -> None:
    script = (
        f"import sys; sys.path.insert(0, {HERE!r})\n"
        "from tersor.measuring.clock import Contender, race\n"
        f"a = Contender('a', 'contenders:writing_pid', {{'path': {str(tmp_path / 'a')!r}}})\n"
        f"b = Contender('b', 'contenders:{'hanging' if stopped else 'adder'}', {{}} if {stopped} else {{'n': 9}})\n"
        "race([a, b], rounds=10**9)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    child = _pids(tmp_path / "a")[0]
    time.sleep(0.3)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 10
    while _alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _alive(child)
    for worker in _pids(tmp_path / "a")[1:]:
        os.kill(worker, signal.SIGKILL)


def test_workers_of_a_contender_end_with_the_race(tmp_path: Path) -> None:
    race([contender("writing_pid", path=str(tmp_path / "a"))], rounds=2)
    end = time.monotonic() + 5
    while any(_alive(p) for p in _pids(tmp_path / "a")) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_alive(p) for p in _pids(tmp_path / "a"))


def _pids(path: Path) -> list[int]:
    end = time.monotonic() + 20
    while not (path.exists() and " " in path.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    return [int(p) for p in path.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def made(**samples: list[float]) -> Race:
    return Race({k.replace("_again", AGAIN): tuple(v) for k, v in samples.items()}, None, (0.0, 0.0), 2)


def test_the_interval_covers_the_true_ratio() -> None:
    """Of 100 races with a true ratio of 1.1, about 95 % of the intervals must hold it."""
    g = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        drift = 1 + 0.3 * g.random(50)  # rounds share the machine's mood
        a, b = (drift * x * np.exp(0.05 * g.standard_normal(50)) for x in (1.1, 1.0))
        ratio = made(a=a.tolist(), b=b.tolist()).ratio("a", "b")
        inside += ratio.low <= 1.1 <= ratio.high
    assert 89 <= inside <= 100


def test_faster_is_said_only_beyond_the_clocks_own_error() -> None:
    g = np.random.default_rng(1)
    base = 1 + 0.01 * g.standard_normal(60)
    slow, fast, again = 1.20 * base, 0.90 * base, 1.15 * base
    quiet = made(a=base.tolist(), slow=slow.tolist(), fast=fast.tolist())
    assert quiet.verdict("fast", "a") == "faster"
    assert quiet.verdict("slow", "a") == "slower"
    assert quiet.verdict("a", "a") == "no difference"
    samples = {"a": tuple(base), "a" + AGAIN: tuple(again), "fast": tuple(fast), "fastest": tuple(0.5 * base)}
    noisy = Race(samples, "a", (0.0, 0.0), 2)
    assert noisy.verdict("fast", "a") == "no difference"
    assert noisy.verdict("fastest", "a") == "faster"


def test_who_takes_more_memory_than_there_is_is_out_with_the_reason() -> None:
    failures: dict[str, str] = {}
    room = Room(held() + (150 << 20))
    result = race(
        [contender("adder", n=2000), contender("hungry", nbytes=2 << 30)], rounds=5, failures=failures, room=room
    )
    assert list(failures) == ["hungry"]
    assert "MB of memory, but only" in failures["hungry"]
    assert "were left, and was stopped" in failures["hungry"]
    assert list(result.samples) == ["adder"]


def test_memory_that_is_there_is_no_reason() -> None:
    failures: dict[str, str] = {}
    room = Room(held() + (1 << 30))
    race([contender("adder", n=2000), contender("hungry", nbytes=1 << 26)], rounds=5, failures=failures, room=room)
    assert not failures


def test_a_process_that_cannot_be_started_is_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    started, begun = subprocess.Popen, []

    def limited(*given: object, **more: object) -> object:
        begun.append(1)
        if len(begun) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return started(*given, **more)

    monkeypatch.setattr(subprocess, "Popen", limited)
    failures: dict[str, str] = {}
    result = race([contender("adder 1", n=200), contender("adder 3", n=600)], rounds=5, failures=failures)
    assert set(result.samples) == {"adder 1"}
    assert "could not be started" in failures["adder 3"]


def test_what_must_be_left_may_grow_while_one_is_waited_for() -> None:
    """The longer a race lasts, the more time must be left for the last one."""
    begin = time.monotonic()
    with pytest.raises(TimeUp), until(Deadline.after(6).sooner(lambda: time.monotonic() - begin)):
        race([contender("hanging")], rounds=5)
    assert time.monotonic() - begin < 5
