#!/usr/bin/env python3
"""Plain PyTorch DDP doing the training step of Fovea's `hybrid`, for `make bench`.

Same model, batch, loss and optimizer, same prepared shards; autocast to bf16 and channels-last as the
PyTorch documentation advises for CPUs. It is given less to do where that keeps the script plain: the
input is cropped and normalised with flips, without colour jitter, and always takes P patches of an
image. `--fused` uses PyTorch's fused Adam instead of the default one. Prints one JSON line.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torch.nn.parallel import DistributedDataParallel

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def head():
    return nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 4))


class Hybrid(nn.Module):
    def __init__(self):
        super().__init__()
        self.global_branch = torchvision.models.resnet18()
        self.local_branch = torchvision.models.resnet18()
        self.global_branch.fc = nn.Identity()
        self.local_branch.fc = nn.Identity()
        self.global_proj = nn.Linear(512, 256)
        self.local_proj = nn.Linear(512, 256)
        self.attn = nn.MultiheadAttention(256, 4, batch_first=True)
        self.norm = nn.LayerNorm(256)
        self.image_head = head()
        self.patch_head = head()

    def forward(self, images, patches):
        b = images.shape[0]
        g = self.global_proj(self.global_branch(images)).unsqueeze(1)
        p = self.local_proj(self.local_branch(patches)).view(b, -1, 256)
        x = torch.cat([g, p], 1)
        x = self.norm(x + self.attn(x, x, x, need_weights=False)[0])
        return self.image_head(x[:, 0]), self.patch_head(x[:, 1:])


def focal(logits, target, gamma=2.0):
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = torch.sigmoid(logits)
    pt = p * target + (1 - p) * (1 - target)
    return ((1 - pt) ** gamma * bce).sum(-1).mean()


def bits(labels):
    return ((labels.unsqueeze(-1) >> torch.arange(4)) & 1).float()


class Shards:
    """The prepared dataset, memory-mapped."""

    def __init__(self, root):
        from safetensors import safe_open  # bench/gpu.py imports this file, and needs no shards

        manifest = json.loads((Path(root) / "manifest.json").read_text())
        self.images, self.black, self.areas = [], [], []
        for shard in manifest["shards"]:
            file = safe_open(str(Path(root) / shard["file"]), "pt")
            images = file.get_tensor("images")
            self.images += list(images)
            self.black += list(file.get_tensor("black"))
            self.areas += list(file.get_tensor("areas").to(torch.int32))
        self.grid = self.black[0].shape[0]
        self.patch = self.images[0].shape[0] // self.grid

    def batch(self, rng, images, patches, size):
        crops, labels, views, image_labels = [], [], [], []
        for _ in range(images):
            i = int(torch.randint(len(self.images), (1,), generator=rng))
            cells = (self.black[i].flatten() == 0).nonzero().flatten()
            chosen = cells[torch.randperm(len(cells), generator=rng)[:patches]]
            image = self.images[i].permute(2, 0, 1)
            for cell in chosen.tolist():
                y, x = cell // self.grid * self.patch, cell % self.grid * self.patch
                crops.append(image[:, y : y + self.patch, x : x + self.patch])
            has = (self.areas[i].view(-1, 4) > 0).to(torch.uint8)
            cell_labels = (has << torch.arange(4, dtype=torch.uint8)).sum(-1).to(torch.int64)
            labels.append(cell_labels[chosen])
            image_labels.append(torch.tensor(int((has.any(0).to(torch.int64) << torch.arange(4)).sum())))
            views.append(F.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True))
        crops = (torch.stack(crops).float() / 255 - MEAN) / STD
        if torch.rand((), generator=rng) < 0.5:
            crops = crops.flip(-1)
        views = (torch.cat(views) / 255 - MEAN) / STD
        last = torch.channels_last
        return (
            views.contiguous(memory_format=last),
            crops.contiguous(memory_format=last),
            bits(torch.stack(image_labels)),
            bits(torch.stack(labels)),
        )


def work(rank, args, queue):
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = str(args.port)
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo", rank=rank, world_size=args.ranks)
    torch.manual_seed(0)
    data = Shards(args.data)
    rng = torch.Generator().manual_seed(rank)
    model = Hybrid().to(memory_format=torch.channels_last)
    model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5, fused=args.fused or None)
    times = []
    for _ in range(args.warmup + args.steps):
        started = time.perf_counter()
        views, crops, image_labels, labels = data.batch(rng, args.images // args.ranks, args.patches, args.global_size)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            image, patch = model(views, crops)
        loss = focal(image.float(), image_labels) + focal(patch.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - started))
    if rank == 0:
        queue.put(times[args.warmup :])
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=4, help="images of the global batch")
    parser.add_argument("--patches", type=int, default=16)
    parser.add_argument("--global-size", type=int, default=256)
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--port", type=int, default=29517)
    args = parser.parse_args()
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(work, (args, queue), nprocs=args.ranks)
    times = queue.get()
    print(json.dumps({"step_ms": statistics.median(times), "all_ms": times, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
