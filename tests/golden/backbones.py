"""Makes backbones.json: two training steps and an evaluation of torchvision's DenseNet121 and EfficientNet-B0, for the
test in trainer/src/models/backbone_golden.rs.

    pip install torch==2.11.0 torchvision==0.26.0 numpy && python tests/golden/backbones.py

Weights and pixels come from the integer hash of formula.rs. The loss is half the squared distance of the features from
numbers of that hash, summed, over the number of images. The stored numbers are PyTorch's in f64; `torch_f32` and
`torch_bf16` say how far PyTorch itself is from them in f32, and under autocast in bf16. Half a minute.
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch
import torchvision
from torch import nn

from hybrid import digest, hashed_state, pictures, statistics, uniform

# Gradients jump where a ReLU's input crosses zero or two pixels of a max-pooling window change places, and DenseNet has
# millions of both. So `separated` moves the inputs of its ReLUs away from zero, and `salt` is, of the 57 that were tried, the one that
# keeps all of them farthest away, in units of f32's rounding error there: MARGIN or more. (EfficientNet has no such
# places.) eps is large because rounding errors of gradients that are nearly zero would move parameters by a whole lr.
MARGIN = 4.0
SETUP = {
    "steps": 2,
    "optimizer": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 0.1, "weight_decay": 0.01},
    "networks": {
        "densenet121": {"images": 2, "side": 64, "salt": 4},
        "efficientnet_b0": {"images": 4, "side": 96, "salt": 0},
    },
}


class Drop(nn.Module):
    """Stochastic depth with a known mask: of the sites in their order, number i drops image r where (i + r) % 3 == 0."""

    def __init__(self, site, p):
        super().__init__()
        self.site, self.p = site, p

    def forward(self, x):
        if not self.training:
            return x
        kept = [0.0 if (self.site + row) % 3 == 0 else 1.0 / (1.0 - self.p) for row in range(len(x))]
        return x * torch.tensor(kept, dtype=x.dtype).view(-1, 1, 1, 1)


def separated(state):
    """Norms whose outputs are 0.4 wide about values near 1 or -1, so that a ReLU's inputs are seldom near zero."""
    result = dict(state)
    for name, value in state.items():
        if "norm" in name and name.endswith(".weight"):
            result[name] = value * np.float32(0.4)
        elif "norm" in name and name.endswith(".bias"):
            result[name] = value + torch.where(value < 0, -1.0, 1.0)
    return result


def network(name, dtype):
    """The network with the hash's weights, and features as the classifier reads them."""
    net = getattr(torchvision.models, name)(weights=None)
    net.classifier = nn.Identity()
    state = hashed_state(net)
    net.load_state_dict(separated(state) if name.startswith("densenet") else state)
    blocks = [m for m in net.modules() if isinstance(m, torchvision.models.efficientnet.MBConv) and m.use_res_connect]
    for site, block in enumerate(blocks):
        block.stochastic_depth = Drop(site, block.stochastic_depth.p)
    return net.to(dtype).to(memory_format=torch.channels_last)


def pixels(name, salt, dtype):
    network = SETUP["networks"][name]
    x = pictures(f"{name}.{salt}", network["images"], network["side"])
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def kinks(name, salt, dtype):
    """Per layer, distances from zero of the inputs to ReLUs, and of the largest pixel from the second largest in each
    window of the max-pooling."""
    net, distances = network(name, dtype).train(), []

    def relu(_, inputs):
        distances.append(inputs[0].detach().double().clone())

    def pool(_, inputs):
        x = inputs[0].detach().double()
        windows = nn.functional.unfold(x.flatten(0, 1)[:, None], 3, padding=1, stride=2).topk(2, dim=1).values
        gap = windows[:, 0] - windows[:, 1]
        distances.append(torch.where(windows[:, 0] > 0, gap, 1.0))  # no gradient through zeros

    for module in net.modules():
        if isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            module.register_forward_pre_hook(relu if isinstance(module, nn.ReLU) else pool)
    with torch.no_grad():
        last = net.features(pixels(name, salt, dtype))
        if name.startswith("densenet"):
            distances.append(last.double())
    return distances


def margin(name, salt):
    """Least distance from a kink, in root mean square rounding errors of f32 at its layer."""
    pairs = zip(kinks(name, salt, torch.float64), kinks(name, salt, torch.float32))
    return min(float(exact.abs().min() / (exact - rounded).pow(2).mean().sqrt()) for exact, rounded in pairs)


def run(name, dtype, bf16=False):
    net, setup = network(name, dtype), SETUP
    x = pixels(name, setup["networks"][name]["salt"], dtype)

    def features():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            maps = net.features(x)
            if name.startswith("densenet"):
                maps = nn.functional.relu(maps)
        return maps.to(dtype).mean((2, 3))

    net.eval()
    result = {"steps": []}
    with torch.no_grad():
        evaluated = features()
    result["eval"] = digest("features", evaluated)
    net.train()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0  # so that the running statistics are the batch's own
    o = setup["optimizer"]
    adam = torch.optim.Adam(net.parameters(), lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], weight_decay=o["weight_decay"])
    start = {k: p.detach().clone() for k, p in net.named_parameters()}
    target = torch.from_numpy(uniform("target", evaluated.numel())).to(dtype).view_as(evaluated)
    for step in range(setup["steps"]):
        adam.zero_grad()
        loss = 0.5 * (features() - target).pow(2).sum() / len(x)
        loss.backward()
        if step == 0:
            result["gradients"] = {k: digest(k, p.grad) for k, p in net.named_parameters()}
            result["running"] = {k: digest(k, v) for k, v in statistics(net).items()}
        norm = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in net.parameters()))
        adam.step()
        if step == 0:
            full = {k: o["lr"] * math.sqrt(p.numel()) for k, p in start.items()}
            result["moved"] = {k: digest(k, (p.detach() - start[k]) / full[k]) for k, p in net.named_parameters()}
        result["steps"].append({"loss": float(loss.detach()), "grad_norm": norm})
    return result


def spread(got, want):
    """Deviations as the test measures them: relative; a tensor's is that of its two numbers relative to its norm, a
    gradient's at least to 1e-4 of the global gradient, an update's to a full step of Adam. `_rms` is over all tensors."""
    result = {"features": max(abs(got["eval"][k] - want["eval"][k]) for k in ("norm", "dot")) / want["eval"]["norm"]}
    for key in ("loss", "grad_norm"):
        result[key] = [abs(a[key] / b[key] - 1) for a, b in zip(got["steps"], want["steps"])]
    floor = {"gradients": 1e-4 * want["steps"][0]["grad_norm"], "moved": 1.0}
    for key in ("gradients", "running", "moved"):
        each = []
        for name, b in want[key].items():
            a, scale = got[key][name], max(b["norm"], floor.get(key, 0.0))
            each.append(max(abs(a["norm"] - b["norm"]), abs(a["dot"] - b["dot"])) / scale)
        result[key] = max(each)
        result[f"{key}_rms"] = math.sqrt(sum(w * w for w in each) / len(each))
    return result


def main():
    document = {
        "made_by": "python tests/golden/backbones.py",
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "setup": SETUP,
        "networks": {},
    }
    for name in SETUP["networks"]:
        want = run(name, torch.float64)
        document["networks"][name] = {
            "torch_f32": spread(run(name, torch.float32), want),
            "torch_bf16": spread(run(name, torch.float32, bf16=True), want),
            **want,
        }
        if name.startswith("densenet"):
            least = margin(name, SETUP["networks"][name]["salt"])
            assert least > MARGIN, least
            document["networks"][name]["margin"] = least
        for key in ("torch_f32", "torch_bf16", "steps"):
            print(name, key, json.dumps(document["networks"][name][key]))
    text = json.dumps(document, indent=None, separators=(",", ":")).replace("},", "},\n")
    pathlib.Path(__file__).with_name("backbones.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
