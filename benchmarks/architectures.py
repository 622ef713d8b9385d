"""How far dependency analysis reaches: the architecture zoo of the tests, cut by 30 %, beside torch-pruning's generic pruner.

    python -m benchmarks.architectures                               # all of it, one JSON line each
    python -m benchmarks.architectures --only bert,vit --no-peers    # some
    python -m benchmarks.architectures --page docs/architectures.md  # the page, from the newest rows; runs nothing

Weights are random and small: what is judged is structure, not accuracy. Ours: every prunable group is cut; masked against
shrunk at two batch sizes, and the shrunk model in ONNX Runtime. torch-pruning: BasePruner at a ratio of 0.3, the layers that
make the network's outputs ignored, and told the number of heads of projections to queries, keys and values; its result is
compared with the original in which exactly the values that it removed are zero. Each network has a process of its own, which
is stopped after `--limit` seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import environment
from tersor.graph.model import capture
from tersor.site import groups

sys.path[:0] = [str(environment.ROOT / "tests" / "architectures"), str(environment.ROOT / "tests")]
from architecture import Architecture
from verdict import TOLERANCE, difference, judge
from zoo_all import ARCHITECTURES

RESULTS = environment.ROOT / "benchmarks" / "results" / "architectures.jsonl"
OUTPUT = "is an output of the network"
RATIO = 0.3
HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
PROJECTIONS = (
    *("q", "k", "v", "query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin"),
    *("qkv", "in_proj"),
)


def ours(architecture: Architecture) -> dict[str, Any]:
    """Our verdict as plain numbers."""
    with tempfile.TemporaryDirectory() as folder:
        seen = judge(architecture, Path(folder))
    return {
        "groups": len(seen.pruned) + len(seen.left),
        "pruned": len(seen.pruned),
        "refused": seen.reasons,
        "share": round(seen.share, 4),
        "parameters": seen.parameters,
        "macs": seen.macs,
        "difference": seen.difference,
        "equal": seen.difference <= TOLERANCE,
        "sensitivity": seen.sensitivity,
        "exported": seen.exported,
        "refusal": seen.refusal,
    }


def theirs(architecture: Architecture) -> dict[str, Any]:
    """torch-pruning's verdict: did it cut, does forward work, are the outputs those of the masked original."""
    module, example = architecture.built()
    wanted = module(*example)
    try:
        small = cut(module, example)
    except Exception as cause:
        return {"runs": False, "equal": False, "why": f"pruning: {_line(cause)}"}
    before, after = (sum(p.numel() for p in m.parameters()) for m in (module, small))
    if after == before:
        return {"runs": True, "equal": False, "parameters": (before, after), "why": "nothing was cut"}
    try:
        seen = small(*example)
    except Exception as cause:
        return {"runs": False, "equal": False, "parameters": (before, after), "why": f"forward: {_line(cause)}"}
    return {"parameters": (before, after), **_compared(module, example, small, wanted, seen)}


def cut(module: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """A copy that torch-pruning cut; the same random choice every time."""
    import torch_pruning as tp

    network = copy.deepcopy(module).requires_grad_()
    model = capture(module, example)
    outputs = {g.name for g in groups(model) if g.refused and OUTPUT in g.refused}
    ignored = [m for name, m in network.named_modules() if name in outputs]
    torch.manual_seed(0)
    with torch.enable_grad():  # it traces gradients
        pruner = tp.pruner.BasePruner(
            network,
            example,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=RATIO,
            ignored_layers=ignored,
            num_heads=heads_of(network),
        )
        pruner.step()
    return network.eval()


def heads_of(network: nn.Module) -> dict[nn.Module, int]:
    """The heads of each projection to queries, keys and values, as torch-pruning's documentation asks to be told."""
    found: dict[nn.Module, int] = {}
    for module in network.modules():
        counts = [getattr(module, name, None) for name in HEADS]
        heads = next((count for count in counts if isinstance(count, int) and count > 1), None)
        if heads is not None:
            kept = getattr(module, "num_key_value_heads", heads)
            for name, child in module.named_children():
                if isinstance(child, nn.Linear) and name in PROJECTIONS:
                    found[child] = kept if name[0] in "kv" and isinstance(kept, int) else heads
    return found


def masked(module: nn.Module, example: tuple[Tensor, ...], small: nn.Module) -> nn.Module | None:
    """The original with zeros where torch-pruning removed values; None where its choice could not be followed.

    A second network, whose values are their own numbers, is cut in the same way and tells which were kept.
    """
    numbered, zeroed = copy.deepcopy(module), copy.deepcopy(module)
    for tensor in numbered.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    left, values = cut(numbered, example).state_dict(), small.state_dict()
    for name, tensor in zeroed.state_dict().items():
        if not tensor.is_floating_point() or left[name].shape == tensor.shape:
            continue
        kept = left[name].flatten().long()
        flat = tensor.flatten().clone()
        if kept.numel() != values[name].numel() or not torch.equal(flat[kept], values[name].flatten()):
            return None
        tensor.zero_()
        tensor.view(-1)[kept] = flat[kept]
    return zeroed


def _compared(
    module: nn.Module, example: tuple[Tensor, ...], small: nn.Module, wanted: Tensor, seen: Tensor
) -> dict[str, Any]:
    if seen.shape != wanted.shape:
        return {"runs": False, "equal": False, "why": f"outputs are {tuple(seen.shape)}, were {tuple(wanted.shape)}"}
    reference = masked(module, example, small)
    if reference is None:
        return {"runs": True, "equal": False, "why": "its choice could not be repeated on a second copy"}
    apart = difference((reference(*example),), (seen,))
    why = "" if apart <= TOLERANCE else f"outputs differ from masked by {apart:.1g} of the largest"
    return {"runs": True, "equal": apart <= TOLERANCE, "difference": apart, "why": why}


def _line(cause: BaseException) -> str:
    text = (str(cause).strip().splitlines() or [""])[0]
    return f"{type(cause).__name__}: {text[:110]}"


def apart(work: Callable[[Architecture], dict], architecture: Architecture, limit: float) -> dict[str, Any]:
    """`work(architecture)` in a process of its own, stopped after `limit` seconds; in this one where that is 0."""
    if not limit:
        return _tried(work, architecture)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(work, architecture, there))
    process.start()
    there.close()
    try:
        found = here.recv() if here.poll(limit) else {"why": f"stopped after {limit:.0f} s"}
    except EOFError:
        found = {"why": "the process died"}
    process.terminate()
    process.join()
    return found


def _send(work: Callable[[Architecture], dict], architecture: Architecture, there: Connection) -> None:
    there.send(_tried(work, architecture))


def _tried(work: Callable[[Architecture], dict], architecture: Architecture) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    try:
        return work(architecture)
    except Exception as cause:
        return {"why": _line(cause)}


def main(words: Sequence[str] | None = None) -> None:
    """Judge, print the list, append one JSON line for each; or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, separated by commas; all where empty")
    parser.add_argument("--ours", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one network and tool; 0: no processes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="write this Markdown page from the newest rows of --out")
    given = parser.parse_args(words)
    if given.page is not None:
        given.page.write_text(page(newest(environment.lines(given.out))), encoding="utf-8")
        return
    warnings.simplefilter("ignore")
    line = environment.record(benchmark="architectures", ratio=RATIO, limit=given.limit)
    if given.limit:
        _preload()
    for name in given.only.split(",") if given.only else ARCHITECTURES:
        tools = {"ours": ours} if given.ours else {}
        tools |= {"torch_pruning": theirs} if given.peers else {}
        row = {"name": name, **{tool: apart(work, ARCHITECTURES[name], given.limit) for tool, work in tools.items()}}
        environment.append(given.out, line | {"rows": [row], "load_after": environment.load()})
        print(_cells(row), flush=True)
        for group, why in row.get("ours", {}).get("refused", {}).items():
            print(f"    {group}: {why}", flush=True)
    print(summary(newest(environment.lines(given.out))))


def _preload() -> None:
    """Import once what every child would import for itself."""
    wanted = ("transformers.modeling_utils", "torch.onnx._internal.exporter._core", "torch._dynamo", "onnxscript")
    for name in (*wanted, "onnxruntime", "onnxscript.optimizer", "torch_pruning"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def newest(lines: Sequence[dict]) -> dict:
    """The newest line, its rows completed by the newest ones of earlier lines, in the order of the zoo."""
    rows: dict[str, dict] = {}
    for line in lines:
        for row in line["rows"]:
            rows[row["name"]] = rows.get(row["name"], {}) | row
    return lines[-1] | {"rows": [rows[name] for name in ARCHITECTURES if "ours" in rows.get(name, {})]}


def summary(line: dict) -> str:
    """How many of how many."""
    rows = line["rows"]
    right = sum(bool(r["ours"].get("equal")) for r in rows)
    ran = sum(r["ours"].get("exported") is not None and r["ours"]["exported"] <= TOLERANCE for r in rows)
    text = [f"Tersor: masked equals shrunk on {right} of {len(rows)}; the shrunk model runs in ONNX Runtime on {ran}."]
    if any("torch_pruning" in r for r in rows):
        peers = [r["torch_pruning"] for r in rows if "torch_pruning" in r]
        unfinished = sum(p.get("why", "").startswith("stopped after") for p in peers)
        runs, equal = (sum(bool(p.get(key)) for p in peers) for key in ("runs", "equal"))
        cut_any = sum(
            bool(p.get("runs")) and p["parameters"][1] < p["parameters"][0] for p in peers if "parameters" in p
        )
        text.append(
            f"torch-pruning {line['versions'].get('torch-pruning', '')}: after its generic pruner, forward works on {runs} of "
            f"{len(peers) - unfinished} ({cut_any} of them smaller), with the outputs of the masked original on {equal}"
            + (
                f"; on {unfinished} more it was stopped after the time limit, which says nothing."
                if unfinished
                else "."
            )
        )
    return " ".join(text)


def _cells(row: dict) -> str:
    """One architecture as a Markdown table row."""
    mine, peer = row.get("ours", {}), row.get("torch_pruning")
    if "groups" not in mine:
        cells = [row["name"], mine.get("why", ""), "", "", "", ""]
    else:
        exported = (
            "yes" if mine["exported"] is not None and mine["exported"] <= TOLERANCE else f"no: {mine['refusal'][:80]}"
        )
        cells = [
            row["name"],
            f"{mine['pruned']} of {mine['groups']}",
            f"{mine['difference']:.0e}{'' if mine['equal'] else ' NOT equal'}",
            f"{100 * mine['share']:.0f} %",
            " / ".join(f"{after / max(before, 1):.2f}" for before, after in (mine["parameters"], mine["macs"])),
            exported,
        ]
    if peer is not None:
        cells.append("equal" if peer.get("equal") else peer["why"])
    return f"| {' | '.join(cells)} |"


def page(line: dict) -> str:
    """The list as a page of the documentation."""
    peers = any("torch_pruning" in r for r in line["rows"])
    heads = ["architecture", "groups pruned", "masked - shrunk", "in groups", "parameters / MACs left", "ONNX Runtime"]
    heads += ["torch-pruning"] if peers else []
    kinds = sorted({_kind(why) for r in line["rows"] for why in r["ours"].get("refused", {}).values()})
    return "\n".join(
        [
            "# Architectures",
            "",
            "Written by `python -m benchmarks.architectures --page docs/architectures.md`; tested by `tests/architectures`.",
            "Networks are small and random, built from a local configuration: what is shown is structure, not accuracy.",
            "",
            f"{summary(line)} ({line['when'][:10]}, commit {line['commit']}, torch {line['versions'].get('torch', '')}.)",
            "",
            "* **groups pruned**: every group that can be pruned is cut by 30 %; the others stay whole, with a reason.",
            "* **masked - shrunk**: the largest difference of any output at batches of 2 and 5, relative to the largest",
            "  output, between zeros in place of what is removed and its removal.",
            "* **in groups**: the share of the values of all matrices that lies in groups that can be pruned.",
            "* **ONNX Runtime**: the shrunk model was exported and gave the same outputs there.",
            *(
                ["* **torch-pruning**: `BasePruner` at a ratio of 0.3; equal to the masked original, or why not."]
                if peers
                else []
            ),
            "",
            f"| {' | '.join(heads)} |",
            f"|{'---|' * len(heads)}",
            *map(_cells, line["rows"]),
            "",
            "Operators that forbid a removal somewhere on this list: " + ", ".join(kinds) + ".",
            "",
        ]
    )


def _kind(why: str) -> str:
    words = why.removeprefix("not prunable: ").split(" at node ")
    if why.startswith("counted"):
        return "a norm, softmax or sum that counts"
    return f"`{words[0]}`" if len(words) > 1 else " ".join(words[0].split()[1:])


if __name__ == "__main__":
    main()
