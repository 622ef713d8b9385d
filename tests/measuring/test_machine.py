"""What the machine is found to be."""

from __future__ import annotations

import pytest

from tersor.measuring import machine


@pytest.mark.parametrize(
    ("kind", "flags", "bits"),
    [
        ("x86_64", {"avx2", "fma"}, 7),
        ("x86_64", {"avx2", "avx512f", "avx512bw"}, 7),
        ("x86_64", {"avx2", "avx512_vnni"}, 8),
        ("AMD64", {"avx2", "avx_vnni"}, 8),
        ("aarch64", {"asimd"}, 8),
    ],
)
def test_weights_are_as_wide_as_the_processor_adds_exactly(monkeypatch, kind, flags, bits):
    monkeypatch.setattr(machine.platform, "machine", lambda: kind)
    monkeypatch.setattr(machine, "_processor", lambda: ("some", frozenset(flags)))
    assert machine.weight_bits() == bits
