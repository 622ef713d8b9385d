"""What this machine can run, what is missing, and what would disturb a measurement."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from tersor.cli.console import table

_PACKAGES = ("torch", "numpy", "scipy", "onnx", "onnxscript", "onnx-ir", "safetensors", "onnxruntime", "openvino")
_FAST = {
    "avx512_vnni": "int8 in AVX-512",
    "avx_vnni": "int8 in AVX2",
    "avx512_bf16": "bf16 in AVX-512",
    "amx_int8": "int8 in AMX tiles",
    "amx_bf16": "bf16 in AMX tiles",
    "i8mm": "int8 on Arm",
    "bf16": "bf16 on Arm",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state` is "ok", "missing" or "warning"; `advice` says what to do."""

    what: str
    seen: str
    state: str = "ok"
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything; takes some seconds, because each runtime is asked whether it works."""
    return [*_packages(), *_targets(), *_machine(), *_traps()]


def usable(found: list[Finding]) -> bool:
    """Whether there is at least one target that works."""
    return any(f.what.startswith("target ") and f.state == "ok" for f in found)


def show(found: list[Finding]) -> None:
    """Everything that was looked at, as a table."""
    table("", ("state", "what", "found", "advice"), [(f.state, f.what, f.seen, f.advice) for f in found])
    wrong = [f for f in found if f.state != "ok"]
    need = "needs" if len(wrong) == 1 else "need"
    print("Nothing is missing." if not wrong else f"{len(wrong)} of {len(found)} findings {need} attention.")


def _packages() -> list[Finding]:
    python = platform.python_version()
    found = [Finding("python", python)]
    for name in _PACKAGES:
        version = _version(name)
        optional = name in ("onnxruntime", "openvino")
        advice = f"pip install {name}" if version is None and not optional else ""
        state = "ok" if version or optional else "missing"
        found.append(Finding(name, version or "not installed", state, advice))
    return found


def _targets() -> list[Finding]:
    try:
        from tersor.targets import target_name, targets_called

        found = []
        for target in targets_called("auto"):
            file, precision = target_name(target)
            missing = target.available()
            found.append(Finding(f"target {file} {precision}", "works" if missing is None else "", *_state(missing)))
        return found
    except ImportError as cause:
        return [Finding("targets", f"cannot be imported: {cause}", "missing", "install the package that is missing")]


def _state(missing: str | None) -> tuple[str, str]:
    return ("ok", "") if missing is None else ("missing", missing)


def _machine() -> list[Finding]:
    from tersor.measuring.machine import machine

    here = machine()
    fast = [meaning for flag, meaning in _FAST.items() if flag in here["flags"]]
    cores, load = here["cores"], os.getloadavg()[0]
    found = [
        Finding("processor", f"{here['cpu']}; {here['system']}"),
        Finding("fast arithmetic", ", ".join(fast) or "fp32 only", "ok" if fast else "warning", "" if fast else _SLOW),
        Finding("cores", str(cores), *_quota(cores)),
        Finding("memory", f"{here['memory'] / 1e9:.1f} GB"),
        Finding("disk, current folder", f"{shutil.disk_usage('.').free / 1e9:.1f} GB free"),
    ]
    busy = load > max(0.5, 0.25 * cores)
    advice = "other programs are running: what is measured now is unreliable" if busy else ""
    found.append(Finding("load", f"{load:.1f} of {cores} cores", "warning" if busy else "ok", advice))
    compiler = next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)
    missing = ("ok", "") if compiler else ("missing", "install g++ (apt install g++): target inductor needs it")
    return [*found, Finding("compiler", compiler or "none found", *missing)]


_SLOW = "no int8 or bf16 instructions: quantized models may not be faster here"


def _quota(cores: int) -> tuple[str, str]:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        granted = float(quota) / float(period)
    except (OSError, ValueError):
        return "ok", ""
    if granted >= cores:
        return "ok", ""
    return "warning", f"the container is limited to {granted:.1f} cores: use --threads {max(1, int(granted))}"


def _traps() -> list[Finding]:
    found = []
    torch = _version("torch") or ""
    if _version("torchvision") is not None:
        works = _imports("torchvision")
        advice = "pip uninstall torchvision, or install it from torch's own CPU index" if not works else ""
        seen = f"{_version('torchvision')} beside torch {torch}" + ("" if works else "; it cannot be imported")
        found.append(Finding("torchvision", seen, "ok" if works else "warning", advice))
    both = [n for n in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino") if _version(n)]
    if len(both) > 1:
        found.append(Finding("onnxruntime", " and ".join(both), "warning", "they overwrite each other: keep one"))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY"):
        if name in os.environ:
            found.append(Finding(name, os.environ[name], "warning", f"it affects measurements: unset {name}"))
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _imports(name: str) -> bool:
    try:
        import_module(name)
    except Exception:  # whatever a broken package raises
        return False
    return True
