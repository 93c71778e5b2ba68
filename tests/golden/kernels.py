"""Writes kernels.txt, the numbers that the tests of `kernels/` are held to.

    pip install torch==2.11.0 torchvision==0.26.0 numpy
    python tests/golden/kernels.py

Every line is `name value value ...`. Nothing here shares code with the Rust side: Philox is written
out again, augmentation is torchvision's, optimizers and losses are PyTorch's.
"""

import pathlib

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from torchvision.ops import sigmoid_focal_loss

torch.manual_seed(0)
torch.set_num_threads(1)
lines = []


def store(name, values, digits=None):
    values = np.asarray(values).reshape(-1)
    lines.append(" ".join([name, *(str(v) if digits is None else f"{v:.{digits}f}" for v in values)]))


def philox4x32(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        mask = 0xFFFFFFFF
        c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


def uniform(word, low, high):
    return float(low + (high - low) * ((word >> 8) / 2**24))


SEED, EPOCH = 0x0123456789ABCDEF, 3
OFFSET, BRIGHTNESS, CONTRAST, SATURATION = 5, 0.5, 0.4, 0.75
ROTATION, SCALE = 50.0, 0.3


def draw(sample_id):
    key = (SEED & 0xFFFFFFFF, SEED >> 32)
    low, high = sample_id & 0xFFFFFFFF, sample_id >> 32
    a = philox4x32((low, high, EPOCH, 0), key)
    b = philox4x32((low, high, EPOCH, 1), key)
    shift = lambda word: (word * (2 * OFFSET + 1) >> 32) - OFFSET
    return {
        "flip": a[0] >> 31,
        "turns": a[0] >> 29 & 3,
        "dx": shift(a[1]),
        "dy": shift(a[2]),
        "brightness": uniform(a[3], 1 - BRIGHTNESS, 1 + BRIGHTNESS),
        "contrast": uniform(b[0], 1 - CONTRAST, 1 + CONTRAST),
        "saturation": uniform(b[1], 1 - SATURATION, 1 + SATURATION),
        "rotation": uniform(b[2], -ROTATION, ROTATION),
        "scale": uniform(b[3], 1 - SCALE, 1 + SCALE),
    }


def picture(height, width):
    """[height, width, 3] uint8; the Rust tests have the same formula."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((y * 7 + x * 13 + c * 29 + x * y % 31 * 5) % 256).astype(np.uint8)


def affine(image, d, top, left, size):
    """[h, w, 3] -> the window [size, size, 3], rotated and scaled about its middle; 0..255."""
    image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    # torchvision's affine turns clockwise, its rotate counter-clockwise.
    whole = tv.affine(
        image, angle=-d["rotation"], translate=[0, 0], scale=d["scale"], shear=[0.0, 0.0],
        interpolation=tv.InterpolationMode.BILINEAR, fill=None, center=[left + size / 2, top + size / 2],
    )
    return whole[:, top : top + size, left : left + size].permute(1, 2, 0).numpy()


def shade(patch, d):
    """[size, size, 3] in 0..255 -> augmented, normalised [size, size, 3]."""
    image = torch.from_numpy(np.ascontiguousarray(patch)).permute(2, 0, 1).float() / 255
    if d["flip"]:
        image = tv.horizontal_flip(image)
    image = torch.rot90(image, d["turns"], dims=(1, 2))
    image = tv.adjust_brightness(image, d["brightness"])
    image = tv.adjust_contrast(image, d["contrast"])
    image = tv.adjust_saturation(image, d["saturation"])
    image = tv.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return image.permute(1, 2, 0).contiguous().numpy()


def augmentation():
    ids = [0, 1, 2, 3, 4, 5, 6, 7, 2**40 + 5]
    store("draw.sample_ids", ids)
    for field in draw(0):
        store(f"draw.{field}", [draw(i)[field] for i in ids])
    image, size, y, x = picture(40, 48), 17, 20, 30
    for i in ids:
        d = draw(i)
        top = min(max(y + d["dy"], 0), 40 - size)
        left = min(max(x + d["dx"], 0), 48 - size)
        store(f"crop.{i}", shade(image[top : top + size, left : left + size], d), digits=5)
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), size=(size, size),
        mode="bilinear", antialias=True, align_corners=False,
    )[0].permute(1, 2, 0).numpy()
    for i in (1, 6):
        store(f"global.{i}", shade(whole, draw(i)), digits=5)
    # Contrast stays 1: here its mean grey is that of the window before it turns.
    for i in ids:
        d = draw(i) | {"contrast": 1.0}
        top = min(max(y + d["dy"], 0), 40 - size)
        left = min(max(x + d["dx"], 0), 48 - size)
        store(f"affine.{i}", shade(affine(image, d, top, left, size), d), digits=5)
    for i in (1, 6):
        d = draw(i) | {"contrast": 1.0}
        store(f"affine_global.{i}", shade(affine(whole, d, 0, 0, size), d), digits=5)


def resize():
    for height, width, out_h, out_w in [(40, 48, 17, 17), (13, 40, 21, 9), (7, 5, 7, 5), (64, 3, 1, 8)]:
        image = torch.from_numpy(picture(height, width)).permute(2, 0, 1)[None].float()
        out = torch.nn.functional.interpolate(
            image, size=(out_h, out_w), mode="bilinear", antialias=True, align_corners=False
        )
        store(f"resize.{height}x{width}.{out_h}x{out_w}", out[0].permute(1, 2, 0).contiguous().numpy(), digits=4)


def focal():
    rows, classes = 24, 4
    z = (torch.randn(rows, classes) * 4).requires_grad_()
    with torch.no_grad():
        z[0] = torch.tensor([0.0, 30.0, -30.0, 100.0])
        z[1] = torch.tensor([-100.0, 1e-3, -1e-3, 8.0])
    y = (torch.rand(rows, classes) < 0.4).float()
    store("focal.logits", z.detach().numpy())
    store("focal.targets", (y * 2 ** torch.arange(classes)).sum(1).int().numpy())
    for name, alpha, gamma in [("lin", 0.25, 2.0), ("gamma1.5", 0.25, 1.5), ("plain", -1, 2.0), ("bce", -1, 0.0)]:
        z64 = z.detach().double().requires_grad_()
        loss = sigmoid_focal_loss(z64, y.double(), alpha=alpha, gamma=gamma, reduction="sum")
        store(f"focal.{name}.loss", [loss.item()])
        store(f"focal.{name}.grad", torch.autograd.grad(loss, z64)[0].numpy())


def bce():
    """On the logits and targets of focal()."""
    z, y = focal_inputs()
    weight, pos_weight = torch.tensor([0.5, 2.0, 1.0, 0.25]).double(), torch.tensor([3.0, 0.5, 1.0, 8.0]).double()
    for name, options in [("plain", {}), ("pos_weight", {"pos_weight": pos_weight}), ("both", {"weight": weight, "pos_weight": pos_weight})]:
        z64 = z.clone().requires_grad_()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z64, y, reduction="sum", **options)
        store(f"bce.{name}.loss", [loss.item()])
        store(f"bce.{name}.grad", torch.autograd.grad(loss, z64)[0].numpy())


def class_balanced():
    """On the logits and targets of focal(). A class that never occurs counts as often as the rarest that does."""
    z, y = focal_inputs()
    counts = np.array([11993, 28829, 47, 47], dtype=np.float64)
    for name, beta, gamma in [("bce", 0.9999, 0.0), ("focal", 0.9999, 2.0), ("beta0.99", 0.99, 1.5), ("beta0", 0.0, 0.0)]:
        beta = float(np.float32(beta))
        weights = (1 - beta) / (1 - beta**counts)
        weights = torch.from_numpy(weights / weights.sum() * len(weights))
        z64 = z.clone().requires_grad_()
        loss = (weights * sigmoid_focal_loss(z64, y, alpha=-1, gamma=gamma, reduction="none")).sum()
        store(f"class_balanced.{name}.loss", [loss.item()])
        store(f"class_balanced.{name}.grad", torch.autograd.grad(loss, z64)[0].numpy())


def focal_inputs():
    stored = {line.split(" ")[0]: line.split(" ")[1:] for line in lines}
    z = torch.tensor([float(v) for v in stored["focal.logits"]]).float().double().view(-1, 4)
    targets = torch.tensor([int(v) for v in stored["focal.targets"]])
    return z, (targets[:, None] >> torch.arange(4) & 1).double()


def cross_entropy():
    rows, classes = 30, 5
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(rows, classes, generator=generator) * 4
    y = torch.randint(classes, (rows,), generator=generator)
    z[0] = torch.tensor([30.0, 0.0, -30.0, 1.0, 2.0])
    store("cross_entropy.logits", z.numpy())
    store("cross_entropy.labels", y.numpy())
    weight = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0]).double()
    for name, options in [("plain", {}), ("smooth", {"label_smoothing": 0.1}), ("weighted", {"weight": weight}),
                          ("both", {"weight": weight, "label_smoothing": 0.25})]:
        z64 = z.double().requires_grad_()
        loss = torch.nn.functional.cross_entropy(z64, y, reduction="sum", **options)
        store(f"cross_entropy.{name}.loss", [loss.item()])
        store(f"cross_entropy.{name}.grad", torch.autograd.grad(loss, z64)[0].numpy())
        store(f"cross_entropy.{name}.mean", [torch.nn.functional.cross_entropy(z64, y, **options).item()])


def optimizers():
    n, steps = 37, 5
    start, grads = torch.randn(n), torch.randn(steps, n) * 0.1
    grads[:, 0] = 0
    grads[2] *= 1e-6
    store("adam.start", start.numpy())
    store("adam.grads", grads.numpy())
    rates = [1e-2, 1e-2, 5e-3, 1e-3, 1e-4]
    store("adam.lr", rates)
    cases = {
        "adam": (torch.optim.Adam, {"weight_decay": 0.0}),
        "adam_decay": (torch.optim.Adam, {"weight_decay": 1e-2}),
        "adamw": (torch.optim.AdamW, {"weight_decay": 1e-1}),
        "adam_beta": (torch.optim.Adam, {"betas": (0.3, 0.98), "eps": 1e-4}),
    }
    for name, (kind, options) in cases.items():
        p = start.clone().requires_grad_()
        optimizer = kind([p], foreach=False, fused=False, **options)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rates[step]
            p.grad = grads[step].clone()
            optimizer.step()
            if step in (0, steps - 1):
                state = optimizer.state[p]
                store(f"adam.{name}.{step + 1}.params", p.detach().numpy())
                store(f"adam.{name}.{step + 1}.m", state["exp_avg"].numpy())
                store(f"adam.{name}.{step + 1}.v", state["exp_avg_sq"].numpy())


augmentation()
resize()
focal()
optimizers()
bce()
class_balanced()
cross_entropy()
path = pathlib.Path(__file__).with_name("kernels.txt")
path.write_text("\n".join(lines) + "\n")
print(path, path.stat().st_size, "bytes")
