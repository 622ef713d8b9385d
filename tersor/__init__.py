"""Tersor makes a trained neural network small and fast on the machine where it will run, and proves it."""

from __future__ import annotations

__version__ = "0.1.0"
