"""The pages of docs/ and the READMEs say what is true: every Python block on them is executed.

A block ```` ```python title="path" ```` is a file: the files of a page are laid over the package, and those under tests/ are
run by pytest. A block ```` ```python ```` is run, with the page's other blocks, in an empty folder; one after
`<!-- not executed: why -->` is only compiled. The `tersor` commands of shell blocks must at least be ones that exist.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from tersor.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"(?P<before>[^\n]*)\n+^```python(?P<words>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    code: str
    title: str
    executed: bool
    line: int


def blocks(page: Path) -> list[Block]:
    text = "\n" + page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["words"])
        executed = not match["before"].startswith("<!-- not executed:")
        line = text[: match.start("code")].count("\n")
        found.append(Block(match["code"], title[1] if title else "", executed, line))
    return found


def run(*arguments: str, folder: Path, path: list[Path]) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=folder, timeout=600
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_on_a_page_runs(page: Path, tmp_path: Path) -> None:
    found = blocks(page)
    for block in found:
        compile(block.code, f"{page.name}, line {block.line}", "exec")
    files = [b for b in found if b.title]
    for block in files:
        target = tmp_path / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.code, encoding="utf-8")
    script = "\n".join(b.code for b in found if b.executed and not b.title)
    if script:
        (tmp_path / "page.py").write_text(script, encoding="utf-8")
        (tmp_path / "short.py").write_text(SHORT_RACES, encoding="utf-8")
        run("short.py", folder=tmp_path, path=[ROOT])
    tests = [b.title for b in files if b.title.startswith("tests/")]
    if tests:
        (tmp_path / "overlay.py").write_text(OVERLAY, encoding="utf-8")
        run("overlay.py", *tests, "-q", "-p", "no:cacheprovider", folder=tmp_path, path=[ROOT, ROOT / "tests"])


SHORT_RACES = """
import runpy
from tersor import search
search.ROUNDS, search.STARTS, search.FINAL_ROUNDS, search.REPEATS = 10, 1, 20, 0  # as in conftest.py
runpy.run_path("page.py", run_name="__main__")
"""

OVERLAY = """
import importlib, pathlib, sys
import pytest
for folder in (f for f in pathlib.Path("tersor").resolve().iterdir() if f.is_dir()):
    importlib.import_module(f"tersor.{folder.name}").__path__.append(str(folder))
sys.path[:] = [p for p in sys.path if pathlib.Path(p or ".").resolve() != pathlib.Path.cwd()]
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_a_page_exist(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for shell in re.findall(r"^```(?:bash|console|sh)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in shell.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["tersor"] and len(words) > 1 and not words[1].startswith("-"):
                commands[words[1]].make_context(words[1], words[2:])
