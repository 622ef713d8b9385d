"""Compress your own network in Python: train a small one on scans of digits, compress it, run what came out.

python examples/digits.py [FOLDER]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import tersor

images, labels = load_digits(return_X_y=True)
x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(labels)

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
for _ in range(8):
    for at in torch.randperm(1200).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[at]), y[at]).backward()
        optimizer.step()
network.eval()

report = tersor.compress(
    network,
    [(x[:1200], y[:1200])],
    eval_data=[(x[1200:], y[1200:])],  # scans that the network was not trained on
    max_drop="1%",
    target="onnxruntime,openvino",
    out=sys.argv[1] if len(sys.argv) > 1 else "digits",
)
print(report.to_text())
