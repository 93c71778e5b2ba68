#!/usr/bin/env python3
"""The work of `fovea bench step` and `fovea bench epoch` in plain PyTorch on one GPU.

Same model, batch, loss and optimizer, images of random pixels that stay in device memory; eager and by torch.compile,
bf16 autocast and channels-last, fused Adam. It is given less to do where that keeps the script plain: patches are mirrored
but not jittered, losses and gradients are not looked at, and nothing waits for the device between steps. Prints JSON.
"""

import argparse
import json
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from pytorch_ddp import Hybrid
    from torchvision.ops import sigmoid_focal_loss
except ImportError as error:
    print(json.dumps({"skipped": f"{error} (needed: torch and torchvision)"}))
    sys.exit(3)

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def loss_of(logits, target):
    """Fovea's: mean over samples of the sum over classes, without class weights."""
    return sigmoid_focal_loss(logits, target, alpha=-1, gamma=2.0, reduction="none").sum(-1).mean()


class Images:
    """Random pixels `[n, size, size, 3]`, and the batches that are cut from them by indexing."""

    def __init__(self, args, device):
        shape = (args.set_images, args.size, args.size, 3)
        self.pixels = torch.empty(shape, dtype=torch.uint8, device=device)
        for image in self.pixels:
            image.random_(0, 256)
        self.args, self.device = args, device
        self.grid = args.size // args.patch
        self.mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
        self.inside = torch.arange(args.patch, device=device)
        self.cut = self.cut_eagerly

    def units(self):
        """All images with as many of their cells as a step takes, each once, in random order."""
        cells = self.grid**2 // self.args.patches * self.args.patches
        order = [
            (image, chunk)
            for image in range(len(self.pixels))
            for chunk in torch.randperm(self.grid**2)[:cells].split(self.args.patches)
        ]
        return [order[i] for i in torch.randperm(len(order)).tolist()]

    def batch(self, units):
        which = torch.tensor([image for image, _ in units]).to(self.device, non_blocking=True)
        cells = torch.stack([cells for _, cells in units]).to(self.device, non_blocking=True)
        return self.cut(which, cells)

    def cut_eagerly(self, which, cells):
        patch, n = self.args.patch, cells.numel()
        y = (cells.flatten() // self.grid * patch).view(n, 1) + self.inside
        mirrored = torch.rand(n, 1, device=self.device) < 0.5
        inside = torch.where(mirrored, self.inside.flip(0), self.inside)
        x = (cells.flatten() % self.grid * patch).view(n, 1) + inside
        owner = which.repeat_interleave(cells.shape[1]).view(n, 1, 1)
        patches = self.pixels[owner, y.unsqueeze(2), x.unsqueeze(1)].permute(0, 3, 1, 2)
        size = (self.args.global_size, self.args.global_size)
        whole = self.pixels[which].permute(0, 3, 1, 2).float()
        views = F.interpolate(whole, size, mode="bilinear", antialias=True)
        return self.normalise(views), self.normalise(patches.float())

    def normalise(self, pixels):
        return ((pixels / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class Trainer:
    def __init__(self, args, images, compiled):
        self.args, self.images, self.device = args, images, images.device
        self.model = Hybrid().to(self.device).to(memory_format=torch.channels_last)
        fused = {"fused": True} if self.device.type == "cuda" else {}
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, weight_decay=1e-5, **fused)
        self.forward = torch.compile(self.losses) if compiled else self.losses
        images.cut = torch.compile(images.cut_eagerly) if compiled else images.cut_eagerly

    def losses(self, views, patches, image_labels, labels):
        bf16 = self.args.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            image, patch = self.model(views, patches)
        return loss_of(image.float(), image_labels) + loss_of(patch.float(), labels)

    def step(self, units):
        views, patches = self.images.batch(units)
        b, p = len(units), self.args.patches
        labels = (torch.rand(b, 1 + p, 4, device=self.device) < 0.25).float()
        loss = self.forward(views, patches, labels[:, 0], labels[:, 1:])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss


class Clock:
    """Marks on the device's time line, or the host's where there is no other."""

    def __init__(self, device):
        self.on_gpu = device.type == "cuda"
        self.marks = []

    def mark(self):
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def between(self):
        if self.on_gpu:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in zip(self.marks, self.marks[1:])]
        return [1e3 * (b - a) for a, b in zip(self.marks, self.marks[1:])]


def chunks(units, size):
    return [units[i : i + size] for i in range(0, len(units) - size + 1, size)]


def measure(args, images, compiled):
    torch.manual_seed(0)
    trainer = Trainer(args, images, compiled)
    clock, steps = Clock(images.device), []
    while len(steps) < args.warm_up + args.steps:
        steps += chunks(images.units(), args.images)
    for number, units in enumerate(steps[: args.warm_up + args.steps]):
        if number == args.warm_up:
            clock.mark()
        loss = trainer.step(units)
        if number >= args.warm_up:
            clock.mark()
    times = sorted(clock.between())
    median = statistics.median(times)
    result = {
        "step_ms": {"median": median, "p10": times[len(times) // 10], "p90": times[-1 - len(times) // 10]},
        "patches_per_s": 1e3 * args.images * args.patches / median,
        "loss": float(loss.detach()),
    }
    if args.epoch:
        units = images.units()
        begun = time.perf_counter()
        for part in chunks(units, args.images):
            loss = trainer.step(part)
        float(loss.detach())  # waits
        result["epoch_s"] = time.perf_counter() - begun
        result["epoch_patches"] = len(chunks(units, args.images)) * args.images * args.patches
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--images", type=int, default=64, help="images of a step")
    parser.add_argument("--patches", type=int, default=50, help="patches of each of them")
    parser.add_argument("--size", type=int, default=1280)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--global-size", type=int, default=224)
    parser.add_argument("--set-images", type=int, default=1841, help="images that there are")
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--epoch", action="store_true", help="an epoch as well")
    parser.add_argument("--mode", choices=["eager", "compile", "both"], default="both")
    args = parser.parse_args()
    per_image = (args.size // args.patch) ** 2 // args.patches
    if per_image * args.set_images < args.images:
        parser.error("less than one step: raise --set-images, or lower --images or --patches")
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True
    # As fovea: whatever is not bf16 is f32.
    torch.backends.cudnn.allow_tf32 = False
    images = Images(args, device)
    told = {"torch": torch.__version__, "device": args.device, "precision": args.precision}
    if device.type == "cuda":
        told["device"] = torch.cuda.get_device_name()
    for mode in ("eager", "compile"):
        if args.mode not in (mode, "both"):
            continue
        try:
            told[mode] = measure(args, images, mode == "compile")
        except Exception as error:  # noqa: BLE001 torch.compile fails in many ways; the other mode still counts
            told[mode] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    medians = [m["step_ms"]["median"] for m in (told.get("eager", {}), told.get("compile", {})) if "step_ms" in m]
    epochs = [m["epoch_s"] for m in (told.get("eager", {}), told.get("compile", {})) if "epoch_s" in m]
    told["best_step_ms"] = min(medians, default=None)
    told["best_epoch_s"] = min(epochs, default=None)
    if device.type == "cuda":
        told["peak_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(told, indent=2))
    sys.exit(0 if medians else 1)


if __name__ == "__main__":
    main()
