"""Archives made hostile at random, in numbers: nothing may run, be written, or take more than 2 seconds or 500 MB.

python -m tests.attacks.fuzz --cases 100000 --seed 0

Real archives are changed in their JSON, their example inputs, and as zip files. Each is loaded as Tersor loads it in a child
that watches itself (`sys.addaudithook`: files opened for writing, processes, sockets, folders made or removed; what kernels of
torch would do is seen by the files that a payload names), and what is accepted is called. A case is its seed and number: the
same again with `--only NUMBER`.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from programs import GRAPH, SAMPLE, WEIGHTS, argument, called, described, first, graph, written

CPU_SECONDS, GROWTH = 2.0, 500 << 20
STUCK = 120.0  # seconds without a word from a child
CHUNK = 2000  # cases of one child
Members = dict[str, bytes]


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x)[:, :, ::2].mean((2, 3)))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.words(ids)).reshape(ids.shape[0], -1)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            y = self.linear(x)
        return {"a": torch.cond(y.sum() > 0, lambda a: a.sin(), lambda a: a.cos(), (y,)), "b": y}


def bases(folder: Path) -> list[Members]:
    """Real archives, member by member."""
    made = [
        written(folder / "small.pt2"),
        written(folder / "convolutional.pt2", Convolutional(), torch.randn(2, 3, 8, 8)),
        written(folder / "attending.pt2", Attending(), torch.zeros(2, 3, dtype=torch.long)),
        written(folder / "recurrent.pt2", Recurrent(), torch.randn(2, 5, 3)),
        written(folder / "branching.pt2", Branching(), torch.randn(2, 4)),
    ]
    found = []
    for path in made:
        with zipfile.ZipFile(path) as archive:
            found.append({i.filename.partition("/")[2]: archive.read(i) for i in archive.infolist()})
    return found


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0][:, -1]


# -- hostile values: what they name would show as RAN or a changed victim beside them


def strings(place: Path) -> list[str]:
    ran, victim = place / "RAN", place / "victim"
    return [
        f"__import__('os').mkdir('{ran}')",
        f"torch.os.mkdir('{ran}')",
        f"x=__import__('os').mkdir('{ran}')",
        f"x): __import__('os').mkdir('{ran}') #",
        f'a"]+str(__import__("os").mkdir("{ran}"))+["',
        "torch.os.system, command",
        f"mkdir {ran}",
        str(victim),
        "../../../../etc/passwd",
        "x y",
        "x,y",
        "x:int",
        "class",
        "",
        "\x1b[31m",
        "x\ny",
        "9**9**9**9",
        "Pow(Integer(9), Integer(99999999))",
        "Symbol('u999999999')",
        "((((s0+s1)*(s0+s2))**9)**9)**9",
        "s77",
        "u0",
        "x" * 100_000,
        '[1, {"type": "builtins.tuple", "children_spec": [], '
        '"context": "{\\"__enum__\\": true, \\"fqn\\": \\"antigravity:x\\", \\"name\\": \\"y\\"}"}]',
        "torch.hub.load",
        "torch.load",
        "_operator.methodcaller",
        "os.system",
        "torch.ops.load_library",
        "#aoti:x",
    ]


NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2,
    7,
    63,
    10**6,
    10**10,
    2**31,
    2**62,
    2**63,
    2**64,
    10**400,
    -(2**63),
    0.5,
    1e308,
    "NaN",
    "Infinity",
]
ODD: list[Any] = [None, True, [], {}, [[]], {"a": 1}, [None], {"as_int": 10**12}, {"as_name": "x"}]


def targets() -> list[str]:
    """Every operator that torch knows, and some things that are none."""
    found = {
        f"torch.ops.{s.name.replace('::', '.')}.{s.overload_name or 'default'}" for s in torch._C._jit_get_all_schemas()
    }
    hops = (
        "cond",
        "scan",
        "while_loop",
        "map_impl",
        "wrap_with_set_grad_enabled",
        "auto_functionalized",
        "triton_kernel_wrapper",
    )
    return sorted(found) + [f"torch.ops.higher_order.{name}" for name in hops]


TARGETS = targets()
PLAIN = [t for t in TARGETS if t.startswith("torch.ops.aten.") and ".out" not in t]


def places(value: Any, under: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside JSON, without the traces of where it was made."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key == "metadata":
            continue
        yield (*under, key)
        yield from places(item, (*under, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def change_json(value: Any, number: random.Random, place: Path) -> str:
    """One change somewhere in JSON; says which."""
    everywhere = list(places(value))
    if not everywhere:
        return "nothing"
    path = number.choice(everywhere)
    holder, key = at(value, path[:-1]), path[-1]
    old = holder[key]
    kind = number.choice(("string", "string", "number", "odd", "delete", "swap", "again", "key"))
    if isinstance(old, str) and number.random() < 0.8:
        kind = "string"
    elif isinstance(old, int | float) and number.random() < 0.7:
        kind = "number"
    if kind == "string":
        holder[key] = number.choice(strings(place))
    elif kind == "number":
        holder[key] = number.choice(NUMBERS)
    elif kind == "odd":
        holder[key] = copy.deepcopy(number.choice(ODD))
    elif kind == "delete":
        del holder[key]
    elif kind == "swap":
        holder[key] = copy.deepcopy(at(value, number.choice(everywhere)))
    elif kind == "again" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(old))
    elif isinstance(holder, dict):
        holder[number.choice([*strings(place)[:12], "surprise", "as_operator", "as_graph"])] = copy.deepcopy(old)
    return f"{kind} at {'/'.join(str(k) for k in path[-3:])}"[:60]


def add_call(program: Any, number: random.Random, place: Path) -> str:
    """A call before all others: any operator of torch's, with arguments that fit its schema more or less."""
    target = number.choice(TARGETS if number.random() < 0.4 else PLAIN)
    inputs: list[dict[str, Any]] = []
    namespace, _, rest = target.removeprefix("torch.ops.").partition(".")
    name, _, overload = rest.partition(".")
    names = list(graph(program)["tensor_values"])
    x = {"as_tensor": {"name": number.choice(names) if names else "x"}}
    try:
        schema = torch._C._get_schema(f"{namespace}::{name}", "" if overload == "default" else overload)
    except RuntimeError:
        inputs = [
            argument("", as_bool=True),
            argument("", as_operator="torch.os.system"),
            argument("", as_string="true"),
        ]
    else:
        for each in schema.arguments:
            kind = str(each.real_type)
            if each.has_default_value() and number.random() < 0.7:
                continue
            size = number.choice((0, 1, 2, 3, 4, 10**4, 10**9, 10**12))
            if "List[Tensor]" in kind:
                value: dict[str, Any] = {"as_tensors": [x["as_tensor"]]}
            elif "Tensor" in kind:
                value = x
            elif "List[int]" in kind:
                value = {"as_ints": [size] * number.randrange(4)}
            elif "str" in kind:
                value = {"as_string": number.choice(strings(place))}
            elif "bool" in kind:
                value = {"as_bool": number.random() < 0.5}
            elif "ScalarType" in kind or "Device" in kind or "Layout" in kind:
                value = {"as_scalar_type": 7}
            else:
                value = number.choice(({"as_int": size}, {"as_float": 0.5}, {"as_float": float(size)}))
            inputs.append(argument(each.name, number.choice((1, 1, 1, 2)), **value))
    call = called(target, *inputs)
    call["is_hop_single_tensor_return"] = number.choice((None, True, False))
    first(program, call, q=described(*number.choice(((2, 4), (1,), (12,)))))
    if number.random() < 0.5:  # so that the result is used
        for node in graph(program)["nodes"][1:3]:
            for each in node["inputs"][:1]:
                each["arg"] = {"as_tensor": {"name": "q"}}
    return f"call of {target.removeprefix('torch.ops.')}"[:60]


class Bomb:
    def __init__(self, place: Path):
        self._place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._place / "RAN"),)


class Large:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**11,)


def change_sample(data: bytes, number: random.Random, place: Path) -> tuple[bytes, str]:
    kind = number.choice(("bomb", "large", "inner", "flip", "bytes", "torch"))
    if kind == "bomb":
        return pickle.dumps(Bomb(place), 2), "sample: a pickle that runs"
    if kind == "torch":
        out = io.BytesIO()
        torch.save(((Bomb(place),), {}), out)
        return out.getvalue(), "sample: a torch file that runs"
    if kind in ("large", "inner"):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                content = bytearray(old.read(info))
                if info.filename.endswith("data.pkl"):
                    if kind == "large":
                        content = bytearray(pickle.dumps(Large(), 2))
                    else:
                        for _ in range(number.randrange(1, 4)):
                            content[number.randrange(len(content))] = number.randrange(256)
                new.writestr(info.filename, bytes(content))
        return out.getvalue(), f"sample: {kind}"
    changed = bytearray(data)
    for _ in range(number.randrange(1, 9)):
        changed[number.randrange(len(changed))] ^= 1 << number.randrange(8)
    return bytes(changed), "sample: bits"


def zipped(members: Members, number: random.Random, kind: str) -> bytes:
    """A zip of the members; `kind` says what is wrong with it as a zip."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED) as new:
            for name, data in members.items():
                folder = number.choice(("a", "b", "A")) if kind == "folders" else "a"
                new.writestr(f"{folder}/{name}", data)
                if kind == "twice" and number.random() < 0.3:
                    new.writestr(f"a/{name}", data[::-1])
            if kind == "foreign":
                name = number.choice(
                    (
                        "data/aotinductor/model/x.so",
                        "data/weights/model.pt",
                        "../../x",
                        "/x",
                        "models/other.json",
                        "extra/../x",
                    )
                )
                new.writestr(f"a/{name}", b"\x7fELF")
    data = bytearray(out.getvalue())
    if kind == "bits":
        for _ in range(number.randrange(1, 6)):
            data[number.randrange(len(data))] ^= 1 << number.randrange(8)
    elif kind == "cut":
        data = data[: number.randrange(len(data))]
    elif kind == "before":
        data = bytearray(number.randbytes(number.randrange(1, 200))) + data
    elif kind == "after":
        data += number.randbytes(number.randrange(1, 200))
    elif kind == "directory":  # sizes, offsets and flags that lie
        start = data.rfind(b"PK\x01\x02")
        at_ = start + number.choice((8, 10, 16, 20, 24, 28, 30, 42))
        data[at_ : at_ + 2] = struct.pack("<H", number.choice((0, 1, 8, 255, 65535)))
    return bytes(data)


ZIPS = ("compressed", "folders", "twice", "foreign", "bits", "cut", "before", "after", "directory")


def made(base: Members, number: random.Random, place: Path) -> tuple[bytes, str]:
    """A hostile archive, and what was done to it."""
    members = dict(base)
    way = number.random()
    if way < 0.55:
        program = json.loads(members[GRAPH])
        what = "; ".join(change_json(program, number, place) for _ in range(number.choice((1, 1, 1, 2, 3))))
        members[GRAPH] = json.dumps(program).encode()
    elif way < 0.78:
        program = json.loads(members[GRAPH])
        what = add_call(program, number, place)
        members[GRAPH] = json.dumps(program).encode()
    elif way < 0.85:
        config = json.loads(members[WEIGHTS])
        what = f"weights: {change_json(config, number, place)}"
        members[WEIGHTS] = json.dumps(config).encode()
    elif way < 0.92:
        members[SAMPLE], what = change_sample(members[SAMPLE], number, place)
    else:
        kind = number.choice(ZIPS)
        return zipped(members, number, kind), f"zip: {kind}"
    return zipped(members, number, ""), what


# -- the child


class Watch:
    """Notes what this process does to the world while it is armed."""

    def __init__(self) -> None:
        self.armed = False
        self.events: list[str] = []
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            mode, flags = args[1], args[2] or 0
            writes = any(letter in str(mode or "") for letter in "wax+") or flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            )
            if writes and str(args[0]) != os.devnull:
                self.events.append(f"open {args[0]} for writing")
        elif event.startswith(_WATCHED):
            self.events.append(f"{event} {str(args)[:80]}")


_WATCHED = (
    *(
        "subprocess.",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.mkdir",
        "os.rename",
        "os.remove",
    ),
    *(
        "os.rmdir",
        "os.symlink",
        "os.link",
        "os.chmod",
        "os.putenv",
        "os.kill",
        "os.truncate",
        "socket.",
        "shutil.",
        "pty.",
    ),
    *("ctypes.dlopen", "webbrowser.", "urllib.", "ftplib.", "smtplib.", "sqlite3.", "winreg.", "mmap."),
)


@dataclass
class Seen:
    """What a case did."""

    case: int
    what: str
    verdict: str
    seconds: float
    growth: int
    events: list[str] = field(default_factory=list)


def _memory(word: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))


def reason(text: str) -> str:
    """The kind of a refusal: its text without what is quoted and counted."""
    text = text.partition(" holds ")[2] or text.partition(".pt2 ")[2]
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", text.partition(". Such a file")[0])
    return re.sub(r"[\d.]+(e[+-]?\d+)?", "N", text)[:70]


def one(case: int, seed: int, archives: list[Members], place: Path, watch: Watch) -> Seen:
    """Make a case, load it as Tersor does, and call it where it is accepted."""
    from tersor.errors import ArtifactError
    from tersor.hub.archive import load_program

    number = random.Random(f"{seed}/{case}")
    data, what = made(number.choice(archives), number, place)
    path = place / "case.pt2"
    path.write_bytes(data)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the highest memory so far
    before, begin = _memory("VmRSS"), time.process_time()
    watch.events, watch.armed = [], True
    try:
        program, _ = load_program(path)
        args, kwargs = program.example_inputs or ((), {})
        try:
            with torch.no_grad():
                program.module(check_guards=False)(*args, **kwargs)
            verdict = "accepted and called"
        except Exception as cause:
            verdict = f"accepted, its call raises {type(cause).__name__}"
    except ArtifactError as cause:
        verdict = f"refused: {reason(str(cause))}"
    except BaseException as cause:  # anything else is a fault of the screen
        verdict = f"UNFORESEEN {type(cause).__name__}: {str(cause)[:200]}"
    finally:
        watch.armed = False
    seen = Seen(case, what, verdict, time.process_time() - begin, max(0, _memory("VmHWM") - before), watch.events)
    if (place / "RAN").exists():
        seen.events.append("RAN was made")
        (place / "RAN").rmdir()
    if (place / "victim").read_bytes() != bytes(64):
        seen.events.append("the victim was written")
        (place / "victim").write_bytes(bytes(64))
    return seen


def child(cases: range, seed: int, archives: list[Members], to: Any) -> None:
    os.nice(10)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place = Path(folder)
        os.chdir(place)
        (place / "victim").write_bytes(bytes(64))
        watch = Watch()
        _warm(archives, place)
        for case in cases:
            to.send(one(case, seed, archives, place, watch))
            if extra := set(os.listdir(place)) - {"victim", "case.pt2"}:
                to.send(Seen(case, "", "", 0.0, 0, [f"{sorted(extra)} appeared"]))
                for name in extra:
                    shutil.rmtree(place / name, ignore_errors=True)
    to.send(None)


def _warm(archives: list[Members], place: Path) -> None:
    """Load each archive as it is: what torch imports and keeps the first time is no case's doing."""
    from tersor.hub.archive import load_program

    for members in archives:
        (place / "case.pt2").write_bytes(zipped(members, random.Random(0), ""))
        program, _ = load_program(place / "case.pt2")
        args, kwargs = program.example_inputs or ((), {})
        program.module(check_guards=False)(*args, **kwargs)


# -- the parent


@dataclass
class Summary:
    """What all cases did."""

    verdicts: Counter[str] = field(default_factory=Counter)
    cases: int = 0
    slowest: tuple[float, int] = (0.0, -1)
    largest: tuple[int, int] = (0, -1)
    faults: list[str] = field(default_factory=list)

    def add(self, seen: Seen) -> None:
        if seen.verdict:
            self.cases += 1
            self.verdicts[seen.verdict] += 1
        self.slowest = max(self.slowest, (seen.seconds, seen.case))
        self.largest = max(self.largest, (seen.growth, seen.case))
        said = f"case {seen.case} ({seen.what}): "
        self.faults += [f"{said}{event}" for event in seen.events]
        if seen.verdict.startswith("UNFORESEEN"):
            self.faults.append(said + seen.verdict)
        if seen.seconds > CPU_SECONDS:
            self.faults.append(f"{said}{seen.seconds:.1f} s of the processor; {seen.verdict}")
        if seen.growth > GROWTH:
            self.faults.append(f"{said}{seen.growth >> 20} MB; {seen.verdict}")

    def text(self) -> str:
        refused = sum(count for verdict, count in self.verdicts.items() if verdict.startswith("refused"))
        accepted = sum(count for verdict, count in self.verdicts.items() if verdict.startswith("accepted"))
        lines = [f"{count:8d}  {verdict}" for verdict, count in self.verdicts.most_common(40)]
        return "\n".join(
            (
                f"{self.cases} cases: {refused} refused, {accepted} accepted",
                *lines,
                f"slowest: {self.slowest[0]:.2f} s of the processor (case {self.slowest[1]})",
                f"largest: {self.largest[0] >> 20} MB more than before (case {self.largest[1]})",
                f"{len(self.faults)} faults",
                *self.faults[:50],
            )
        )


def fuzz(
    cases: range, seed: int, workers: int = 1, until: float = float("inf"), log: Callable[[str], None] = print
) -> Summary:
    """Run `cases` in children, `CHUNK` in each; ends early after `until` (time.monotonic())."""
    summary = Summary()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        archives = bases(Path(folder))
    waiting = [cases[i : i + CHUNK] for i in range(0, len(cases), CHUNK)][::-1]
    running: list[tuple[Any, Any, range, list[float]]] = []
    spoken = time.monotonic()
    while waiting or running:
        while waiting and len(running) < workers and time.monotonic() < until:
            ours, theirs = context.Pipe(duplex=False)
            chunk = waiting.pop()
            process = context.Process(target=child, args=(chunk, seed, archives, theirs))
            process.start()
            theirs.close()
            running.append((process, ours, chunk, [time.monotonic(), chunk.start]))
        if not running:
            break
        for entry in list(running):
            process, ours, chunk, state = entry
            try:
                over = False
                while ours.poll(0.02):
                    seen = ours.recv()
                    state[0] = time.monotonic()
                    if seen is None:
                        over = True
                        break
                    summary.add(seen)
                    state[1] = seen.case + 1
                over = over or time.monotonic() > until
            except EOFError:  # it died
                process.join()
                summary.faults.append(f"case {int(state[1])}: the process ended with {process.exitcode}")
                if int(state[1]) + 1 < chunk.stop:
                    waiting.append(range(int(state[1]) + 1, chunk.stop))
                over = True
            if not over and time.monotonic() - state[0] > STUCK + 120:
                summary.faults.append(f"case {int(state[1])}: no word for {STUCK + 120:.0f} s")
                if int(state[1]) + 1 < chunk.stop:
                    waiting.append(range(int(state[1]) + 1, chunk.stop))
                over = True
            if over:
                process.kill()
                process.join()
                running.remove(entry)
        if time.monotonic() - spoken > 30:
            spoken = time.monotonic()
            log(f"... {summary.cases} cases, {len(summary.faults)} faults, slowest {summary.slowest[0]:.2f} s")
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many minutes")
    parser.add_argument("--only", type=int, default=None, help="the number of one case")
    given = parser.parse_args()
    cases = range(given.cases) if given.only is None else range(given.only, given.only + 1)
    summary = fuzz(cases, given.seed, given.workers, time.monotonic() + 60 * given.minutes)
    sys.stdout.write(f"seed {given.seed}\n{summary.text()}\n")
    return 1 if summary.faults else 0


if __name__ == "__main__":
    sys.exit(main())
