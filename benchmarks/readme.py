"""Put the newest figures of `benchmarks/results/cnn_cpu.jsonl` between the markers of the READMEs.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.environment import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "cnn_cpu.jsonl"
MARKED = re.compile(r"<!-- figures: begin -->\n.*?<!-- figures: end -->", re.S)
HEADS = {
    "README.md": (
        "Before and after, measured on {cpu} ({threads} threads), one artifact per batch size, at most {drop} points lost:",
        "| network | batch | PyTorch eager | best peer | Tersor | accuracy before | after | Tersor chose |",
        "Medians in milliseconds. Peers: torch.compile, ONNX Runtime (fp32, static int8), OpenVINO (fp32, bf16), NNCF int8. "
        "Accuracy is the exported file's, on test data that nobody had seen; the promise was judged on other held-out data "
        "(100 to 2,000 items), so here it holds within sampling error. "
        "Commit {commit}, load {load}; every row with intervals: [benchmarks/results](benchmarks/results/cnn_cpu.jsonl).",
    ),
    "README.zh-CN.md": (
        "压缩前后对比，实测于 {cpu}（{threads} 线程），每种批大小各一个产物，最多损失 {drop} 个百分点：",
        "| 网络 | 批大小 | PyTorch eager | 最佳同类工具 | Tersor | 压缩前精度 | 压缩后 | Tersor 的选择 |",
        "单位为毫秒，取中位数。同类工具：torch.compile、ONNX Runtime（fp32、静态 int8）、OpenVINO（fp32、bf16）、NNCF int8。"
        "精度为导出文件在从未见过的测试数据上的结果；"
        "承诺是在另一份留出数据（100 至 2,000 项）上判定的，故此处在抽样误差内成立。"
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
        best, eager = cell["best_peer"], cell["times"]["eager"]["seconds"]
        low, value, high = mine["ratio"]
        found.append(
            f"| {line['model']} | {batch} | {_ms(eager)} | {_ms(cell['times'][best]['seconds'])} "
            f"({line['rows'][best]['title']}) | **{_ms(mine['seconds'])}** ({value:.2f} [{low:.2f}, {high:.2f}] of the best; "
            f"{eager / mine['seconds']:.1f}x) | {100 * line['rows']['eager']['accuracy']:.2f} % "
            f"| {100 * ours['accuracy']:.2f} % | {ours['chosen']} |"
        )
    return found


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 1 else f"{1e3 * seconds:.3g}"


def main() -> None:
    lines = newest()
    known = {
        "cpu": lines[-1]["machine"].get("cpu", "this CPU"),
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
