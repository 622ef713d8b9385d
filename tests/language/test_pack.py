from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.language.pack import BITS, Scheme, packed, run_of, settings, unpacked, words


@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**16))
def test_packing_is_undone(bits: int, rows: int, columns: int, seed: int):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=torch.manual_seed(seed))
    codes = codes.to(torch.int8)
    found = packed(codes, bits)
    assert found.dtype == torch.int32
    assert found.shape == (rows, words(columns, bits))
    assert torch.equal(unpacked(found, bits, columns), codes)


def test_the_first_code_is_in_the_lowest_bits():
    assert packed(torch.tensor([[-8, -7, 7]], dtype=torch.int8), 4).tolist() == [[0xF10]]
    assert packed(torch.tensor([[-1, 1]], dtype=torch.int8), 2).tolist() == [[0b1101]]


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_that_of_compressed_tensors(bits: int):
    pytest.importorskip("compressed_tensors", minversion="0.18" if bits == 3 else None)
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (6, 44), generator=torch.manual_seed(0)).to(torch.int8)
    assert torch.equal(packed(codes, bits), helpers.pack_to_int32(codes, bits))


def test_a_run_divides_the_columns():
    assert [run_of(172, 32), run_of(64, 32), run_of(64, 0), run_of(64, 64), run_of(47, 32)] == [43, 32, 0, 0, 0]


def test_two_schemes_are_told_apart_by_name():
    schemes = {f"m.layers.{i}.{n}": Scheme(4, run) for i in (0, 1) for n, run in (("up", 32), ("down", 43))}
    found = settings(schemes, [*schemes, "head"], "m.layers")
    assert found["ignore"] == ["head"]
    assert found["config_groups"]["group_1"] == {
        "targets": [r"re:m\.layers\.\d+\.down$"],
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "dynamic": False,
            "strategy": "group",
            "group_size": 43,
        },
    }
