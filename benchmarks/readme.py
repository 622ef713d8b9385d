"""Put the newest figures of `benchmarks/results/cnn_cpu.jsonl` between the markers of the READMEs.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.environment import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "cnn_cpu.jsonl"
EAGER = ("eager", "eager_channels_last")  # the faster of them is what is said to be eager
MARKED = re.compile(r"<!-- figures: begin -->\n.*?<!-- figures: end -->", re.S)
HEADS = {
    "README.md": (
        "Before and after, measured on {cpu} ({threads} threads), one artifact per batch size, at most {drop} points lost:",
        "| network | batch | PyTorch eager | best peer | Tersor | accuracy before | after | Tersor chose | seconds |",
        "Medians in milliseconds; seconds are those of `tersor compress`; bold where the 95 % interval of the ratio to the "
        "best peer lies below one. Peers: torch eager "
        "(also channels last), torch.compile (also frozen and autotuned), ONNX Runtime (fp32, static int8), OpenVINO (fp32, "
        "bf16), NNCF int8 (also with slow bias correction and with accuracy control). "
        "Accuracy is that of the exported file, on unseen test data; the budget was checked on other held-out data (100 to "
        "2,000 items), so here it holds within sampling error. MobileNet's images are partly from its training set. "
        "Commit {commit}, load {load}; every row with intervals: [benchmarks/results](benchmarks/results/cnn_cpu.jsonl).",
    ),
    "README.zh-CN.md": (
        "压缩前后对比，实测于 {cpu}（{threads} 线程），每种批大小各一个产物，最多损失 {drop} 个百分点：",
        "| 网络 | 批大小 | PyTorch eager | 最佳同类工具 | Tersor | 压缩前精度 | 压缩后 | Tersor 的选择 | 压缩耗时（秒） |",
        "单位为毫秒，取中位数；仅当与最佳同类工具之比的 95 % 区间全部小于 1 时加粗。"
        "同类工具：PyTorch eager（含 channels last）、"
        "torch.compile（含 freezing 与 max-autotune）、ONNX Runtime（fp32、静态 int8）、OpenVINO（fp32、bf16）、"
        "NNCF int8（含慢速偏差校正与精度控制）。"
        "精度为导出文件在从未见过的测试数据上的结果；"
        "预算是在另一份留出数据（100 至 2,000 项）上检验的，故此处在抽样误差内成立。MobileNet 的图像部分取自其训练集。"
        "提交 {commit}，负载 {load}；含区间的全部数据见 [benchmarks/results](benchmarks/results/cnn_cpu.jsonl)。",
    ),
}


def newest() -> list[dict[str, Any]]:
    """The last line of each model."""
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines() if line.strip()]
    return list({line["model"]: line for line in lines}.values())


def rows(line: dict[str, Any]) -> list[str]:
    """One row of the table per batch size."""
    found = []
    for batch in map(str, line["batches"]):
        cell, ours = line["cells"][batch], line["rows"].get(f"tersor_b{batch}", {})
        mine = cell["times"].get(f"tersor_b{batch}")
        if mine is None or "accuracy" not in ours:
            continue
        best = cell["best_peer"]
        eager = min(cell["times"][name]["seconds"] for name in EAGER if name in cell["times"])
        low, value, high = mine["ratio"]
        found.append(
            f"| {line['model']} | {batch} | {_ms(eager)} | {_ms(cell['times'][best]['seconds'])} "
            f"({line['rows'][best]['title']}) | {_bold(_ms(mine['seconds']), high < 1)} ({value:.2f} [{low:.2f}, {high:.2f}] "
            f"of the best; {eager / mine['seconds']:.1f}x) | {100 * line['rows']['eager']['accuracy']:.2f} % "
            f"| {100 * ours['accuracy']:.2f} % | {ours['chosen']} | {ours['seconds']:.0f} |"
        )
    return found


def _bold(text: str, proved: bool) -> str:
    """Bold only where the whole interval of the ratio to the best peer lies below one."""
    return f"**{text}**" if proved else text


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 1 else f"{1e3 * seconds:.3g}"


def _processor(machine: Mapping[str, Any]) -> str:
    """The processor with the vector extensions that decide which kernels run."""
    flags = [
        f for f in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8") if f in machine["flags"]
    ]
    return f"{machine.get('cpu', 'this CPU')} ({', '.join(flags) or 'no vector extensions known'})"


def main() -> None:
    lines = newest()
    known = {
        "cpu": _processor(lines[-1]["machine"]),
        "threads": lines[-1]["threads"],
        "drop": f"{100 * lines[-1]['max_drop']:g}",
        "commit": ", ".join(dict.fromkeys(line["commit"] for line in lines)),
        "load": f"{max(line['load_before'][0] for line in lines):.1f}",
    }
    body = [row for line in lines for row in rows(line)]
    for name, (above, head, below) in HEADS.items():
        rule = "|" + "---|" * (head.count("|") - 1)
        table = "\n".join([above.format(**known), "", head, rule, *body, "", below.format(**known)])
        path = ROOT / name
        before, after = MARKED.split(path.read_text("utf-8"), maxsplit=1)
        marked = f"<!-- figures: begin -->\n{table}\n<!-- figures: end -->"
        path.write_text(before + marked + after, encoding="utf-8")


if __name__ == "__main__":
    main()
