"""Makes hybrid.json: two training steps and two evaluations of `hybrid` in PyTorch, for the test
in trainer/src/models/golden.rs.

    pip install torch==2.11.0 torchvision==0.26.0 numpy && python tests/golden/hybrid.py

The model is put together from torchvision's and PyTorch's own modules. Weights and pixels come from
an integer hash that formula.rs computes to the same bits. The stored numbers are PyTorch's in f64;
`torch_f32` and `torch_bf16` say how far PyTorch itself is from them in f32, and with its convolutions
in bf16, measured as the test measures this project. About a minute.
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch
import torchvision
from torch import nn

GOLDEN = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1
DROPOUT = 0.3
NORM_MOMENTUM = 0.1

# What the steps are made of; golden.rs reads it from the JSON. One batch of two virtual shards,
# ragged, with sides that the strides do not divide. Gradients jump where a ReLU's input crosses zero
# or two pixels of a max-pooling window change places: one such element that rounding puts on the
# other side changes a tensor's gradient by up to 1e-2. `salt` is the one of 0..5000 that keeps all of
# them farthest away: MARGIN times the root mean square of f32's rounding error there, or more.
MARGIN = 8.0
SETUP = {
    "salt": 1525,
    "seed": 81985529216486895,
    "loss": {"gamma": 2.0, "alpha": [0.5, 0.75, 1.0, 1.75], "positive": 0.75, "negative": 0.25, "patch_weight": 0.5},
    # eps is large because Adam's first steps are lr * sign(g) where |g| >> eps: with 1e-8 the
    # rounding noise of gradients that are zero in exact arithmetic (the bias of the attention's keys)
    # would move parameters by a whole lr. clip_norm is small enough to act.
    "optimizer": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 0.0001, "weight_decay": 0.01, "clip_norm": 0.5},
    "steps": 2,
    "shards": [
        {
            "global_size": 44, "patch_size": 48, "counts": [2, 1],
            "image_ids": [(1 << 63) | 5, (1 << 63) | 107], "patch_ids": [5, 9, 4294967299],
            "image_labels": [15, 2], "patch_labels": [1, 10, 2],
        },
        {
            "global_size": 44, "patch_size": 48, "counts": [2],
            "image_ids": [(1 << 63) | 203], "patch_ids": [203, 250],
            "image_labels": [9], "patch_labels": [0, 9],
        },
    ],
}


def uniform(name, count):
    """formula.rs: uniform."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) & MASK64
    z = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.int64) - (1 << 23)).astype(np.float32) / np.float32(1 << 23)


def weight(name, shape):
    """formula.rs: weight."""
    u = uniform(name, math.prod(shape))
    if len(shape) >= 2:
        gain = 6.0 if len(shape) == 4 else 3.0
        values = np.float32(math.sqrt(gain / math.prod(shape[1:]))) * u
    elif name.endswith("running_var"):
        values = np.float32(1) + np.float32(0.5) * np.abs(u)
    elif name.endswith(".weight"):
        values = np.float32(1) + np.float32(0.125) * u
    else:
        values = np.float32(0.125) * u
    assert values.dtype == np.float32
    return torch.from_numpy(values.reshape(shape))


class Hybrid(nn.Module):
    """docs/models.md, from stock modules."""

    def __init__(self):
        super().__init__()
        self.global_branch = torchvision.models.resnet18(weights=None)
        self.local_branch = torchvision.models.resnet18(weights=None)
        self.global_branch.fc = nn.Identity()
        self.local_branch.fc = nn.Identity()
        self.global_proj = nn.Linear(512, 256)
        self.local_proj = nn.Linear(512, 256)
        self.attn = nn.MultiheadAttention(256, 4, batch_first=True)
        self.norm = nn.LayerNorm(256)
        self.image_head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(128, 4))
        self.patch_head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(128, 4))

    def forward(self, globals_, patches, counts, masks=(None, None), bf16=False):
        """`[b, 3, S, S]`, `[n, 3, p, p]`, patches per image -> logits `[b, 4]`, `[n, 4]`."""

        def branch(net, x):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                return net(x)

        whole = self.global_proj(branch(self.global_branch, globals_).to(self.norm.weight.dtype))
        tokens = whole.new_zeros(len(counts), 1 + max(counts), 256)
        tokens[:, 0] = whole
        real = torch.arange(1 + max(counts))[None, :] <= torch.tensor(counts)[:, None]
        parts = real.clone()
        parts[:, 0] = False
        if len(patches):
            tokens[parts] = self.local_proj(branch(self.local_branch, patches).to(tokens.dtype))
        mixed, _ = self.attn(tokens, tokens, tokens, key_padding_mask=~real, need_weights=False)
        x = self.norm(tokens + mixed)
        return head(self.image_head, x[:, 0], masks[0]), head(self.patch_head, x[parts], masks[1])


def head(layers, x, mask):
    if mask is None:
        return layers(x)
    return layers[3](layers[1](layers[0](x)) * mask)


def hashed_state(model):
    """The hash's weights for a module."""
    return {k: v if k.endswith("num_batches_tracked") else weight(k, v.shape) for k, v in model.state_dict().items()}


def hashed(dtype=torch.float32):
    """`hybrid` with the hash's weights."""
    model = Hybrid()
    model.load_state_dict(hashed_state(model))
    return model.to(dtype)


def philox4x32(counter, key):
    """Salmon et al., SC'11; vectorised over the last word of the counter."""
    c, k = [np.asarray(word, dtype=np.uint64) for word in counter], list(key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), p0 & low]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def dropout_mask(layer, epoch, ids, width=128, p=DROPOUT):
    """trainer/src/dropout.rs: one Philox block per four units, keyed by seed and layer."""
    keep = np.float32(1) / (np.float32(1) - np.float32(p))
    limit = int(float(np.float32(p)) * 2**32)
    key = (SETUP["seed"] & 0xFFFFFFFF, (SETUP["seed"] >> 32) ^ layer)
    blocks = np.arange(width // 4)
    rows = []
    for id_ in ids:
        words = philox4x32((np.full_like(blocks, id_ & 0xFFFFFFFF), np.full_like(blocks, id_ >> 32), np.full_like(blocks, epoch), blocks), key)
        rows.append(np.where(np.stack(words, 1).reshape(-1) < limit, np.float32(0), keep))
    return torch.from_numpy(np.stack(rows))


def focal(logits, labels, loss):
    """Sum over samples and classes; docs/models.md."""
    y = (torch.tensor(labels)[:, None] >> torch.arange(logits.shape[1])) & 1
    bce = nn.functional.binary_cross_entropy_with_logits(logits, y.to(logits), reduction="none")
    p = torch.sigmoid(logits)
    miss = torch.where(y == 1, 1 - p, p)
    side = torch.where(y == 1, loss["positive"], loss["negative"])
    return (torch.tensor(loss["alpha"]).to(logits) * side * miss ** loss["gamma"] * bce).sum()


def pictures(name, n, side):
    """formula.rs: pictures."""
    wave = uniform(f"{name}.wave", n * 3 * 4).reshape(n, 3, 4, 1, 1)
    right, down, start = ((wave[:, :, i] + np.float32(1)) * np.float32(limit // 2) for i, limit in enumerate((4, 4, 64)))
    y, x = np.mgrid[:side, :side]
    phase = (right.astype(np.int64) * x + down.astype(np.int64) * y + start.astype(np.int64)) % 64
    triangle = np.abs(phase - 32).astype(np.float32) / np.float32(16) - np.float32(1)
    values = wave[:, :, 3] + triangle + np.float32(0.5) * uniform(name, n * 3 * side * side).reshape(n, 3, side, side)
    assert values.dtype == np.float32
    return torch.from_numpy(values)


def pixels(index, dtype):
    """The inputs of shard `index`."""
    shard = SETUP["shards"][index]
    whole = pictures(f"globals.{index}.{SETUP['salt']}", len(shard["counts"]), shard["global_size"])
    parts = pictures(f"patches.{index}.{SETUP['salt']}", sum(shard["counts"]), shard["patch_size"])
    return whole.to(dtype), parts.to(dtype)


def digest(name, tensor):
    """Two numbers for a tensor: its norm, and its product with the hash's directions."""
    x = tensor.detach().double().reshape(-1)
    return {"norm": float(x.norm()), "dot": float(x @ torch.from_numpy(uniform(f"direction.{name}", len(x))).double())}


def statistics(model):
    return {k: v for k, v in model.state_dict().items() if "running" in k}


def kinks(dtype):
    """Per shard and layer of the first step: distances from zero of the inputs to ReLUs, and of the
    largest pixel from the second largest in each window of the max-pooling."""
    model, distances = hashed(dtype).to(memory_format=torch.channels_last).train(), []

    def relu(_, inputs):
        distances.append(inputs[0].detach().double().clone())

    def pool(_, inputs):
        x = inputs[0].detach().double()
        windows = nn.functional.unfold(x.flatten(0, 1)[:, None], 3, padding=1, stride=2).topk(2, dim=1).values
        gap = windows[:, 0] - windows[:, 1]
        distances.append(torch.where(windows[:, 0] > 0, gap, 1.0))  # no gradient through zeros

    for module in model.modules():
        if isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            module.register_forward_pre_hook(relu if isinstance(module, nn.ReLU) else pool)
    with torch.no_grad():
        for i, shard in enumerate(SETUP["shards"]):
            whole, parts = (t.contiguous(memory_format=torch.channels_last) for t in pixels(i, dtype))
            model(whole, parts, shard["counts"])
    return distances


def margin():
    """Least distance from a kink, in root mean square rounding errors of f32 at its layer."""
    pairs = zip(kinks(torch.float64), kinks(torch.float32))
    return min(float(exact.abs().min() / (exact - rounded).pow(2).mean().sqrt()) for exact, rounded in pairs)


def run(dtype, bf16=False):
    model = hashed(dtype)
    setup, result = SETUP, {}
    inputs = [pixels(i, dtype) for i in range(len(setup["shards"]))]

    model.eval()
    with torch.no_grad():
        image, patch = model(*inputs[0], setup["shards"][0]["counts"], bf16=bf16)
        alone, _ = model(inputs[0][0][:1], inputs[0][1][:0], [0], bf16=bf16)
    result["eval"] = {"image": image.tolist(), "patch": patch.tolist(), "image_without_patches": alone[0].tolist()}

    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.momentum = 1.0  # so that the running statistics are the last shard's own
    o = setup["optimizer"]
    adam = torch.optim.Adam(model.parameters(), lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], weight_decay=o["weight_decay"])
    start = {k: p.detach().clone() for k, p in model.named_parameters()}
    running = {k: v.clone() for k, v in statistics(model).items()}
    images = sum(len(s["counts"]) for s in setup["shards"])
    patches = sum(sum(s["counts"]) for s in setup["shards"])
    result["steps"] = []
    for step in range(setup["steps"]):
        adam.zero_grad()
        total, batch = 0.0, []
        for (globals_, patch_pixels), shard in zip(inputs, setup["shards"]):
            masks = [dropout_mask(0x494D47, step, shard["image_ids"]), dropout_mask(0x504154, step, shard["patch_ids"])]
            image, patch = model(globals_, patch_pixels, shard["counts"], [m.to(dtype) for m in masks], bf16=bf16)
            loss = focal(image, shard["image_labels"], setup["loss"]) / images
            loss = loss + setup["loss"]["patch_weight"] * focal(patch, shard["patch_labels"], setup["loss"]) / patches
            loss.backward()
            total += float(loss.detach())
            batch.append({k: v.clone() for k, v in statistics(model).items()})
        if step == 0:
            result["gradients"] = {k: digest(k, p.grad) for k, p in model.named_parameters()}
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), o["clip_norm"]))
        adam.step()
        for k, v in running.items():
            v.mul_(1 - NORM_MOMENTUM).add_(NORM_MOMENTUM * sum(b[k] for b in batch) / len(batch))
        if step == 0:
            result["running"] = {k: digest(k, v) for k, v in running.items()}
            result["moved"] = {k: digest(k, p.detach() - start[k]) for k, p in model.named_parameters()}
        result["steps"].append({"loss": total, "grad_norm": norm})
    return result


def spread(got, want):
    """Deviations as golden.rs measures them: absolute for logits, relative for numbers; a tensor's is
    that of its two numbers relative to its norm, but at least to 1e-4 of the global gradient (the
    gradient of the attention's key bias is zero). `_rms` is over all tensors."""
    keys = [k for k in ("image", "patch", "image_without_patches") if k in want["eval"]]
    logits = lambda r: np.concatenate([np.asarray(r["eval"][k]).reshape(-1) for k in keys])
    result = {"logits": float(np.abs(logits(got) - logits(want)).max())}
    for key in ("loss", "grad_norm"):
        result[key] = [abs(a[key] / b[key] - 1) for a, b in zip(got["steps"], want["steps"])]
    floor = {"gradients": 1e-4 * want["steps"][0]["grad_norm"]}
    for key in ("gradients", "running", "moved"):
        worst = []
        for name, b in want[key].items():
            a, scale = got[key][name], max(b["norm"], floor.get(key, 0.0))
            worst.append(max(abs(a["norm"] - b["norm"]), abs(a["dot"] - b["dot"])) / scale)
        result[key] = max(worst)
        result[f"{key}_rms"] = math.sqrt(sum(w * w for w in worst) / len(worst))
    return result


def main():
    least = margin()
    assert least > MARGIN, least
    want = run(torch.float64)
    document = {
        "made_by": "python tests/golden/hybrid.py",
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__},
        "margin": least,
        "torch_f32": spread(run(torch.float32), want),
        "torch_bf16": spread(run(torch.float32, bf16=True), want),
        "setup": SETUP,
        **want,
    }
    text = json.dumps(document, indent=1)
    pathlib.Path(__file__).with_name("hybrid.json").write_text(text + "\n")
    for key in ("torch_f32", "torch_bf16", "eval", "steps"):
        print(key, json.dumps(document[key]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
