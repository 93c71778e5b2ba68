"""Writes tests/golden/pytorch/: small files as torch.save makes them, and pytorch.json with what is in them.

Run with PyTorch 2.11 (CPU): python tests/golden/pytorch.py
"""

import json
import os
from collections import OrderedDict

import torch

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pytorch")


def numbers(*shape, dtype=torch.float32):
    n = 1
    for d in shape:
        n *= d
    return ((torch.arange(n, dtype=torch.float64) - 3) / 8).reshape(shape).to(dtype)


def state():
    """Contiguous, scalar, empty, and an integer."""
    return OrderedDict(
        [
            ("conv1.weight", numbers(2, 3, 2, 2)),
            ("bn1.running_mean", numbers(3)),
            ("bn1.num_batches_tracked", torch.tensor(7)),
            ("empty", torch.zeros(0, 4)),
        ]
    )


def views():
    """Not contiguous, with an offset, sharing one storage, repeated."""
    base = numbers(4, 6)
    return {
        "base": base,
        "columns": base[:, 2:4],
        "transposed": base.t(),
        "row": base[3],
        "expanded": base[1, 1].expand(2, 2),
        "channels_last": numbers(1, 2, 2, 3).contiguous(memory_format=torch.channels_last),
    }


def dtypes():
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    tensors = {}
    for name in names:
        dtype = getattr(torch, name)
        whole = not dtype.is_floating_point
        tensors[name] = torch.arange(4).to(dtype) if whole else numbers(2, 3, dtype=dtype)
    return tensors


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 3)
        self.bn = torch.nn.BatchNorm1d(3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(numbers(*p.shape))


def training():
    """A checkpoint as scripts write it: optimizer state, counters, text beside the model."""
    net = Small()
    optimizer = torch.optim.Adam(net.parameters())
    net.bn(net.fc(torch.ones(4, 2))).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(numbers(*p.shape))
    for name, buffer in net.named_buffers():
        buffer.copy_(torch.ones_like(buffer) / 4 if buffer.is_floating_point() else torch.tensor(2))
    return net, {
        "epoch": 3,
        "best": 0.75,
        "note": "fundus",
        "history": [1.5, 2, None, (True, False)],
        "big": 1 << 80,
        "optimizer": optimizer.state_dict(),
        "model_state_dict": net.state_dict(),
    }


def main():
    os.makedirs(HERE, exist_ok=True)
    expected = {}

    def save(name, value, tensors, **how):
        torch.save(value, os.path.join(HERE, name), **how)
        expected[name] = {
            key: {
                "shape": list(t.shape),
                "integers": not t.dtype.is_floating_point,
                "values": [float(x) for x in t.detach().to(torch.float64).flatten()],
            }
            for key, t in tensors.items()
        }

    old = {"_use_new_zipfile_serialization": False}
    save("plain.pth", state(), state())
    save("plain-old.pth", state(), state(), **old)
    save("plain-protocol4.pth", state(), state(), pickle_protocol=4)
    save("views.pth", views(), views())
    save("views-old.pth", views(), views(), **old)
    save("dtypes.pth", dtypes(), dtypes())
    save("dtypes-old.pth", dtypes(), dtypes(), **old)
    net, checkpoint = training()
    save("training.pth", checkpoint, net.state_dict())
    save("training-old.pth", checkpoint, net.state_dict(), **old)
    save("nested.pth", {"state_dict": {"model": net.state_dict()}}, net.state_dict())
    save("parameters.pth", dict(net.named_parameters()), dict(net.named_parameters()))
    wrapped = {f"module.{k}": v for k, v in net.state_dict().items()}
    save("wrapped.pth", {"model": wrapped}, wrapped)
    # Refused: a whole module, and a checkpoint with a value of another library.
    save("module.pth", torch.nn.Sequential(torch.nn.Linear(1, 1)), {})
    save("script.pth", {}, {})
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), os.path.join(HERE, "script.pth"))
    with open(os.path.join(HERE, "..", "pytorch.json"), "w") as file:
        json.dump(expected, file, indent=1)


main()
