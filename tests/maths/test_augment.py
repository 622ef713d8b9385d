from __future__ import annotations

import torch

from tersor.maths.augment import crop, flip, windows


def test_augmented_images_are_mirrored_or_shifted():
    x = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8) + 1
    drawn = torch.Generator().manual_seed(0)
    (y,) = flip((x.repeat(20, 1, 1, 1),), drawn)
    mirrored = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(y, x.repeat(20, 1, 1, 1), strict=True)]
    assert 5 < sum(mirrored) < 35
    (z,) = crop((x.repeat(20, 1, 1, 1),), drawn)
    wide = torch.nn.functional.pad(x[0], (1, 1, 1, 1))
    windows = [wide[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    assert all(any(torch.equal(each, window) for window in windows) for each in z[::2])


def test_windows_begin_where_they_are_asked_to():
    wide = torch.randn(3, 2, 7, 9)
    down, right = torch.tensor([0, 2, 1]), torch.tensor([3, 0, 1])
    for found, image, top, left in zip(windows(wide, down, right, 5, 6), wide, down, right, strict=True):
        assert torch.equal(found, image[:, top : top + 5, left : left + 6])
