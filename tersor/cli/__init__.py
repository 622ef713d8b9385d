"""The command line: words to objects, no logic. Everything heavy is imported when a command runs."""

from __future__ import annotations


def main() -> None:
    """The entry point `tersor`."""
    from tersor.cli.app import run

    run()
