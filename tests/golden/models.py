"""Makes models/NAME.json: two training steps and an evaluation of a model in PyTorch, for the test in
trainer/src/models/golden_models.rs. The numbers are those of hybrid.py, which describes them.

    pip install torch==2.11.0 torchvision==0.26.0 numpy
    python tests/golden/models.py [NAME ..]             # makes the files, half a minute each
    python tests/golden/models.py --search NAME [FROM]  # finds a salt that keeps clear of kinks

To add a model, write a module whose `forward` takes a `Batch` and returns the logits of each target, and its row in
MODELS.
"""

import json
import math
import pathlib
import sys
from dataclasses import dataclass

import torch
import torchvision
from torch import nn

import hybrid
from hybrid import NORM_MOMENTUM, digest, dropout_mask, focal, pictures, spread, statistics, uniform, weight

# As in hybrid.py.
MARGIN = 4.0
SEED = hybrid.SETUP["seed"]
IMAGE, PATCH = "image", "patch"


@dataclass
class Batch:
    """One virtual shard."""

    globals_: torch.Tensor  # [b, 3, S, S]
    patches: torch.Tensor  # [n, 3, p, p]
    columns: torch.Tensor  # [b, k]
    counts: list  # patches of each image
    bf16: bool = False


class Masked(nn.Module):
    """Dropout with the masks of trainer/src/dropout.rs. For sequences [n, t, c], whole channels of an image."""

    def __init__(self, p, level, stream):
        super().__init__()
        self.p, self.level = p, level
        self.stream = int.from_bytes(stream, "big") if isinstance(stream, bytes) else stream
        self.draw = None  # (epoch, ids of the rows)

    def forward(self, x):
        if not self.training or self.draw is None:
            return x
        epoch, ids = self.draw
        mask = dropout_mask(self.stream, epoch, ids[self.level], x.shape[-1], self.p).to(x.dtype)
        return x * (mask[:, None] if x.dim() == 3 else mask)


class SqueezeExcitation(nn.Module):
    """Hu et al., CVPR 2018, with 16 channels to one."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 16, bias=False), nn.ReLU(), nn.Linear(channels // 16, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None].to(x.dtype)


class Places(nn.Module):
    """Self-attention over the places of maps, with a residual."""

    def __init__(self, channels, stream):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attn = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.drop = Masked(0.1, IMAGE, stream)

    def forward(self, x):
        places = x.flatten(2).transpose(1, 2)
        y = self.norm(places)
        y = places + self.drop(self.attn(y, y, y, need_weights=False)[0])
        return y.transpose(1, 2).reshape(x.shape)


def attended(net, kind, expansion=1):
    """A torchvision ResNet with attention after its layers."""
    for number, width in enumerate((64, 128, 256, 512), 1):
        if kind == "se":
            setattr(net, f"attn{number}", SqueezeExcitation(width * expansion))
        elif kind == "mha" and number >= 3:
            setattr(net, f"attn{number}", Places(width * expansion, int.from_bytes(b"\0AT\0", "big") + number))
    return net


def maps(net, x):
    """The last maps of a torchvision ResNet, with its attention."""
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    for number in range(1, 5):
        x = getattr(net, f"layer{number}")(x)
        attention = getattr(net, f"attn{number}", None)
        x = x if attention is None else attention(x)
    return x


def features(net, x, bf16):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        last = maps(net, x)
    return last.to(x.dtype).mean((2, 3))


class Classifier(nn.Module):
    """A torchvision network over whole images, or over patches; `patch` answers about an image with the largest logit."""

    def __init__(self, net, level):
        super().__init__()
        self.net, self.level = net, level

    def forward(self, batch):
        x = batch.globals_ if self.level == IMAGE else batch.patches
        if len(x) == 0:
            logits = x.new_zeros(0, self.net.fc.out_features)
        else:
            logits = self.net.fc(features(self.net, x, batch.bf16))
        if self.level == IMAGE:
            return [logits]
        absent = torch.full((1, logits.shape[1]), -20.0, dtype=logits.dtype)
        images = [torch.cat([part.detach(), absent]).amax(0) for part in logits.split(batch.counts)]
        return [torch.stack(images), logits]


def mlp(inputs, hidden, outputs, dropout):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), dropout, nn.Linear(hidden, outputs))


class ResNet50Meta(nn.Module):
    def __init__(self, columns, classes):
        super().__init__()
        self.backbone = torchvision.models.resnet50(weights=None)
        self.backbone.fc = nn.Identity()
        self.meta_net = nn.Sequential(*mlp(columns, 128, 64, Masked(0.2, IMAGE, b"META")), nn.ReLU())
        self.head = mlp(2048 + 64, 256, classes, Masked(0.3, IMAGE, b"HEAD"))

    def forward(self, batch):
        image = features(self.backbone, batch.globals_, batch.bf16)
        return [self.head(torch.cat([image, self.meta_net(batch.columns)], 1))]


class GatedPooling(nn.Module):
    """Ilse et al., ICML 2018, as in the authors' program."""

    def __init__(self, width, hidden):
        super().__init__()
        self.attention_V = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
        self.attention_U = nn.Sequential(nn.Linear(width, hidden), nn.Sigmoid())
        self.attention_weights = nn.Linear(hidden, 1)

    def forward(self, x, bag):
        scores = self.attention_weights(self.attention_V(x) * self.attention_U(x))[:, :, 0]
        return (scores.masked_fill(~bag, -math.inf).softmax(1)[:, :, None] * x).sum(1)


class CrossHybrid(nn.Module):
    """`hybrid` with fusion "cross" and pooling "attention"."""

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
        self.cross_attn = nn.MultiheadAttention(256, 4, batch_first=True)
        self.cross_norm = nn.LayerNorm(256)
        self.pool = GatedPooling(256, 128)
        self.image_head = mlp(256, 128, 4, Masked(0.3, IMAGE, b"\0IMG"))
        self.patch_head = mlp(256, 128, 4, Masked(0.3, PATCH, b"\0PAT"))

    def forward(self, batch):
        counts, dtype = batch.counts, batch.globals_.dtype
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=batch.bf16):
            whole = maps(self.global_branch, batch.globals_)
        whole = whole.to(dtype).flatten(2).transpose(1, 2)
        places = self.global_proj(whole)
        tokens = places.new_zeros(len(counts), 1 + max(counts), 256)
        real = torch.arange(1 + max(counts))[None, :] <= torch.tensor(counts)[:, None]
        parts = real.clone()
        parts[:, 0] = False
        tokens[:, 0] = self.global_proj(whole.mean(1))
        if sum(counts):
            tokens[parts] = self.local_proj(features(self.local_branch, batch.patches, batch.bf16))
            asking = tokens[:, 1:]
            answer, _ = self.cross_attn(asking, places, places, need_weights=False)
            tokens = torch.cat([tokens[:, :1], self.cross_norm(asking + answer)], 1)
        mixed, _ = self.attn(tokens, tokens, tokens, key_padding_mask=~real, need_weights=False)
        x = self.norm(tokens + mixed)
        bag = parts.clone()
        bag[:, 0] = torch.tensor(counts) == 0
        return [self.image_head(self.pool(x, bag)), self.patch_head(x[parts])]


def target(name, level, classes):
    colour = [255, 128, 0]
    return {
        "name": name, "level": level, "kind": "any_of", "union_of_cells": False,
        "classes": [{"name": f"C{c}", "title": f"class {c}", "colour": colour} for c in range(classes)],
    }


SIGNS = {"targets": [target("signs", IMAGE, 3)]}
# Whole images alone: `counts` is the number of patches of each.
WHOLE = [
    {"global_size": 40, "counts": [0, 0, 0], "image_ids": [(1 << 63) | 5, (1 << 63) | 107, (1 << 63) | 9], "image_labels": [5, 2, 0]},
    {"global_size": 40, "counts": [0, 0], "image_ids": [(1 << 63) | 203, (1 << 63) | 11], "image_labels": [3, 6]},
]
BOTH = hybrid.SETUP["shards"]
CELLS = [{**shard, "global_size": 0} for shard in BOTH]


def row(model, build, shards, salt, task=None, columns=0, alpha=(0.5, 1.0, 1.5)):
    """`model` is the section [model] of the configuration; no task is that of lesions."""
    shards = [dict(shard) for shard in shards]
    if columns:
        task = {**task, "columns": [f"c{i}" for i in range(columns)]}
        for i, shard in enumerate(shards):
            count = len(shard["counts"]) * columns
            shard["columns"] = [float(x) for x in uniform(f"columns.{i}", count)]
    setup = {
        "salt": salt, "separated": True, "seed": SEED, "model": model,
        "loss": {"gamma": 2.0, "alpha": list(alpha), "positive": 0.75, "negative": 0.25, "patch_weight": 0.5},
        "optimizer": hybrid.SETUP["optimizer"], "steps": 2, "shards": shards,
    }
    if task:
        setup["task"] = task
    return {"build": build, "setup": setup}


resnet18 = lambda **options: torchvision.models.resnet18(weights=None, **options)
LESIONS = hybrid.SETUP["loss"]["alpha"]
MODELS = {
    "resnet18": row({"name": "resnet18"}, lambda: Classifier(resnet18(num_classes=3), IMAGE), WHOLE, 0, SIGNS),
    "resnet18_se": row({"name": "resnet18", "attention": "se"}, lambda: Classifier(attended(resnet18(num_classes=3), "se"), IMAGE), WHOLE, 0, SIGNS),
    "resnet18_mha": row({"name": "resnet18", "attention": "mha"}, lambda: Classifier(attended(resnet18(num_classes=3), "mha"), IMAGE), WHOLE, 0, SIGNS),
    "resnet50": row({"name": "resnet50"}, lambda: Classifier(torchvision.models.resnet50(weights=None, num_classes=3), IMAGE), WHOLE, 0, SIGNS),
    "resnet50_meta": row({"name": "resnet50_meta"}, lambda: ResNet50Meta(12, 3), WHOLE, 0, SIGNS, columns=12),
    "patch_only": row({"name": "patch_only"}, lambda: Classifier(resnet18(num_classes=4), PATCH), CELLS, 0, alpha=LESIONS),
    "hybrid_cross": row({"name": "hybrid", "fusion": "cross", "pooling": "attention"}, CrossHybrid, BOTH, 0, alpha=LESIONS),
}
SALTS = pathlib.Path(__file__).with_name("models") / "salts.json"


def pytorch_name(name):
    """A parameter's name in the project: without the wrapper's prefix."""
    return name.removeprefix("net.")


def hashed(name, dtype):
    model = MODELS[name]["build"]()
    state = model.state_dict()
    state = {k: v if k.endswith("num_batches_tracked") else weight(pytorch_name(k), v.shape) for k, v in state.items()}
    for norm, module in model.named_modules():
        # Outputs of norms that are 0.4 wide about values near 1 or -1, so that inputs of ReLUs are seldom near zero.
        if isinstance(module, nn.BatchNorm2d):
            bias = state[f"{norm}.bias"]
            state[f"{norm}.weight"] = state[f"{norm}.weight"] * torch.tensor(0.4)
            state[f"{norm}.bias"] = bias + torch.where(bias < 0, -1.0, 1.0)
    model.load_state_dict(state)
    return model.to(dtype).to(memory_format=torch.channels_last)


def batches(setup, dtype, bf16=False):
    result = []
    for i, shard in enumerate(setup["shards"]):
        b, n = len(shard["counts"]), sum(shard["counts"])

        def made(kind, count, side):
            x = pictures(f"{kind}.{i}.{setup['salt']}", count, side).to(dtype)
            return x.contiguous(memory_format=torch.channels_last) if x.numel() else x

        columns = torch.tensor(shard.get("columns", []), dtype=torch.float32).view(b, -1).to(dtype)
        whole, parts = made("globals", b, shard["global_size"]), made("patches", n, shard.get("patch_size", 0))
        result.append(Batch(whole, parts, columns, shard["counts"], bf16))
    return result


def set_masks(model, draw):
    for module in model.modules():
        if isinstance(module, Masked):
            module.draw = draw


def kinks(name, setup, dtype):
    """As hybrid.py."""
    model, distances = hashed(name, dtype).train(), []

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
        for i, batch in enumerate(batches(setup, dtype)):
            set_masks(model, draw(setup["shards"][i], 0))
            model(batch)
    return distances


def draw(shard, step):
    return step, {IMAGE: shard["image_ids"], PATCH: shard.get("patch_ids", [])}


def margin(name, setup):
    """As hybrid.py."""
    pairs = zip(kinks(name, setup, torch.float64), kinks(name, setup, torch.float32))
    return min(float(exact.abs().min() / (exact - rounded).pow(2).mean().sqrt()) for exact, rounded in pairs)


def by_target(setup, logits):
    """`(level, logits, labels)` of each target; the lesion task has one per level."""
    levels = [t["level"] for t in setup["task"]["targets"]] if "task" in setup else [IMAGE, PATCH]
    return list(zip(levels, logits))


def run(name, setup, dtype, bf16=False):
    model, result = hashed(name, dtype), {}
    inputs = batches(setup, dtype, bf16)
    model.eval()
    with torch.no_grad():
        first = inputs[0]
        result["eval"] = {level: x.tolist() for level, x in by_target(setup, model(first))}
        if sum(first.counts):
            alone = Batch(first.globals_[:1], first.patches[:0], first.columns[:1], [0], bf16)
            result["eval"]["image_without_patches"] = model(alone)[0][0].tolist()

    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # so that the running statistics are the last shard's own
    o = setup["optimizer"]
    adam = torch.optim.Adam(model.parameters(), lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], weight_decay=o["weight_decay"])
    named = {pytorch_name(k): p for k, p in model.named_parameters()}
    start = {k: p.detach().clone() for k, p in named.items()}
    stats = lambda: {pytorch_name(k): v.clone() for k, v in statistics(model).items()}
    running = stats()
    rows = {
        IMAGE: sum(len(s["counts"]) for s in setup["shards"]),
        PATCH: sum(sum(s["counts"]) for s in setup["shards"]),
    }
    weights = {IMAGE: 1.0, PATCH: setup["loss"]["patch_weight"]}
    result["steps"] = []
    for step in range(setup["steps"]):
        adam.zero_grad()
        total, batch = 0.0, []
        for inputs_, shard in zip(inputs, setup["shards"]):
            set_masks(model, draw(shard, step))
            parts = by_target(setup, model(inputs_))
            losses = [weights[level] * focal(z, shard[f"{level}_labels"], setup["loss"]) / rows[level] for level, z in parts]
            loss = sum(losses)
            loss.backward()
            total += float(loss.detach())
            batch.append(stats())
        if step == 0:
            result["gradients"] = {k: digest(k, p.grad) for k, p in named.items()}
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), o["clip_norm"]))
        adam.step()
        for k, v in running.items():
            v.mul_(1 - NORM_MOMENTUM).add_(NORM_MOMENTUM * sum(b[k] for b in batch) / len(batch))
        if step == 0:
            result["running"] = {k: digest(k, v) for k, v in running.items()}
            result["moved"] = {k: digest(k, p.detach() - start[k]) for k, p in named.items()}
        result["steps"].append({"loss": total, "grad_norm": norm})
    return result


def setup_of(name):
    setup = json.loads(json.dumps(MODELS[name]["setup"]))
    setup["salt"] = json.loads(SALTS.read_text()).get(name, setup["salt"]) if SALTS.exists() else setup["salt"]
    return setup


def search(name, first=0):
    """The first salt from `first` with the margin; kept in models/salts.json."""
    setup, best = setup_of(name), 0.0
    for salt in range(first, first + 5000):
        setup["salt"] = salt
        least = margin(name, setup)
        if least > best:
            best = least
            print(name, salt, f"{least:.2f}", flush=True)
        if least >= MARGIN:
            salts = json.loads(SALTS.read_text()) if SALTS.exists() else {}
            SALTS.write_text(json.dumps({**salts, name: salt}, indent=1, sort_keys=True) + "\n")
            return


def make(name):
    setup = setup_of(name)
    least = margin(name, setup)
    assert least >= MARGIN, f"{name}: {least}; find another salt with --search {name}"
    want = run(name, setup, torch.float64)
    spreads = {"torch_f32": run(name, setup, torch.float32), "torch_bf16": run(name, setup, torch.float32, bf16=True)}
    document = {
        "made_by": f"python tests/golden/models.py {name}",
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "margin": least,
        **{key: spread(got, want) for key, got in spreads.items()},
        "setup": setup,
        **want,
    }
    text = json.dumps(document, separators=(",", ":")).replace("},", "},\n")
    SALTS.with_name(f"{name}.json").write_text(text + "\n")
    for key in ("margin", "torch_f32", "torch_bf16", "steps"):
        print(name, key, json.dumps(document[key]))


def main():
    SALTS.parent.mkdir(exist_ok=True)
    if sys.argv[1:2] == ["--search"]:
        search(sys.argv[2], *map(int, sys.argv[3:4]))
        return 0
    for name in sys.argv[1:] or MODELS:
        make(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
