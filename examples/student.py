"""Teach a small network what a larger one knows about handwritten digits, then make it fast on this machine.

    python examples/student.py

Needs scikit-learn (`pip install 'tersor[demo]'`). The student sees no label: its teacher's answers are all it learns from.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import tersor


def network(width: int) -> nn.Module:
    """Two convolutions, so many channels wide."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)),
    )


def main() -> None:
    """Train a teacher with labels, a student with the teacher, and compress the student."""
    torch.manual_seed(0)
    scans = load_digits()
    x, y = torch.tensor(scans.images, dtype=torch.float32)[:, None] / 16, torch.tensor(scans.target)
    order = torch.randperm(len(x))
    train, test = order[:1300], order[1300:]
    teacher = network(32)
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    for _ in range(300):
        batch = train[torch.randint(0, len(train), (128,))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(x[batch]), y[batch]).backward()
        optimizer.step()
    data, held = list(zip(x[train].split(128), y[train].split(128), strict=True)), [(x[test], y[test])]
    how = tersor.Recovery.of("80epochs", augment="crop")
    found = tersor.distil(
        network(8).eval(), data, teacher=teacher.eval(), recover=how, eval_data=held, out="student.pt2"
    )
    print(f"accuracy: teacher {found.before:.3f}, student {found.untrained:.3f} before and {found.after:.3f} after")
    report = tersor.compress(
        "student.pt2", data, eval_data=held, max_drop="1%", target="onnxruntime,openvino", out="small"
    )
    print(report.to_text())


if __name__ == "__main__":
    main()
