"""What PyTorch says about a prepared dataset, and how far `fovea predict` is from it.

    pip install torch==2.11.0 torchvision==0.26.0 numpy pillow safetensors

    python tests/golden/predict.py golden target/release/fovea
        Makes predict.json for tests/parity.rs: draws its photographs, prepares them with the given
        binary, and scores the prepared pixels with the hash's weights. Run it again when `prepare`
        has changed pixels on purpose.

    python tests/golden/predict.py compare WEIGHTS.safetensors DATA PREDICTED.csv [--global-size 512]
        Scores DATA with any weights of `hybrid` and prints the largest difference to a file that
        `fovea predict WEIGHTS.safetensors DATA --out PREDICTED.csv` has written.

    python tests/golden/predict.py weights OUT.safetensors [--data DATA]
        Weights with PyTorch's own initialisation, and running statistics from DATA's first images.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file

import hybrid

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
CLASSES = ("MA", "HE", "EX", "SE")

# The photographs of the test, as (name, width, height): one that needs no resizing, one that the
# camera has cut off above and below (its padding gives black cells), one to be enlarged, and one
# with nothing on it.
PHOTOGRAPHS = [("whole", 512, 512), ("cut_off", 600, 320), ("small", 301, 289), ("nothing", 200, 200)]
SIZE, PATCH, GLOBAL_SIZE = 512, 128, 128


def photograph(index, width, height):
    """parity.rs: photograph. Integers only."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    dx, dy, d = 2 * x + 1 - width, 2 * y + 1 - height, max(width, height) - 4
    inside = (dx * dx + dy * dy <= d * d) & (index < 3)
    channels = []
    for c in range(3):
        phase = (x * (2 + index) + y * (1 + c) + 40 * c) % 256
        smooth = 60 + np.abs(phase - 128) // (1 + c)
        texture = (x * x * 7 + y * y * 13 + x * y * (5 + index) + 29 * c) % (17 + 8 * index)
        channels.append(np.where(inside, smooth + texture, (x + y) % 3))
    return np.stack(channels, -1).astype(np.uint8)


def write_raw(root):
    """The `folder` layout; each class has one mark, in the photographs in turn."""
    (root / "images").mkdir()
    for index, (name, width, height) in enumerate(PHOTOGRAPHS):
        Image.fromarray(photograph(index, width, height)).save(root / "images" / f"{name}.png")
    for index, lesion in enumerate(CLASSES):
        name, width, height = PHOTOGRAPHS[index % 3]
        mask = np.zeros((height, width), np.uint8)
        mask[height // 2 : height // 2 + 20, width // 3 : width // 3 + 20] = 255
        (root / "masks" / lesion).mkdir(parents=True)
        Image.fromarray(mask).save(root / "masks" / lesion / f"{name}.png")


def checksum(image):
    """parity.rs: checksum."""
    flat = image.reshape(-1).astype(np.uint64)
    return int((flat * (np.arange(len(flat), dtype=np.uint64) % np.uint64(65521) + np.uint64(1))).sum())


class Prepared:
    """A prepared dataset: what docs/data-format.md says."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.manifest = json.loads((self.path / "manifest.json").read_text())

    def __iter__(self):
        """(id, pixels `[S, S, 3]` u8, black `[G, G]` u8) of every image, in the manifest's order."""
        opened = {}
        for entry in self.manifest["images"]:
            shard = entry["shard"]
            if shard not in opened:
                opened = {shard: load_file(self.path / self.manifest["shards"][shard]["file"])}
            yield entry["id"], opened[shard]["images"][entry["row"]], opened[shard]["black"][entry["row"]]


def view(pixels, global_size):
    """The model's input for one image: the whole, resized, and all its cells."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
    whole = torch.nn.functional.interpolate(image[None], size=(global_size, global_size), mode="bilinear", antialias=True, align_corners=False)
    return (whole / 255 - MEAN) / STD, (image / 255 - MEAN) / STD


def score(model, data, global_size):
    """Probabilities by (image, row, col); (image, None, None) for the image itself."""
    model.eval()
    dtype = model.norm.weight.dtype
    rows, pixels_of = {}, {}
    for id_, pixels, black in data:
        grid = len(black)
        patch = pixels.shape[0] // grid
        whole, image = view(pixels, global_size)
        cells = [(r, c) for r in range(grid) for c in range(grid) if not black[r, c]]
        crops = [image[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] for r, c in cells]
        crops = torch.stack(crops) if crops else torch.empty(0, 3, patch, patch)
        with torch.no_grad():
            image_logits, patch_logits = model(whole.to(dtype), crops.to(dtype), [len(cells)])
        rows[id_, None, None] = torch.sigmoid(image_logits[0].double()).tolist()
        for (r, c), z in zip(cells, patch_logits):
            rows[id_, r, c] = torch.sigmoid(z.double()).tolist()
        pixels_of[id_] = checksum(pixels)
    return rows, pixels_of


def read_predictions(path):
    with open(path, newline="") as file:
        number = lambda text: int(text) if text else None
        return {(r["image_id"], number(r["row"]), number(r["col"])): [float(r[f"p_{c}"]) for c in CLASSES] for r in csv.DictReader(file)}


def lines(document):
    """JSON with one line per element of its lists."""
    fields = []
    for key, value in document.items():
        if isinstance(value, list):
            fields.append(f"{json.dumps(key)}: [\n " + ",\n ".join(json.dumps(element) for element in value) + "\n]")
        else:
            fields.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def golden(arguments):
    with tempfile.TemporaryDirectory() as scratch:
        raw, data = pathlib.Path(scratch, "raw"), pathlib.Path(scratch, "data")
        raw.mkdir()
        write_raw(raw)
        command = [arguments.fovea, "prepare", raw, data, "--layout", "folder", "--size", SIZE, "--patch", PATCH]
        subprocess.run([str(part) for part in command], check=True)
        model = hybrid.hashed()
        rows, pixels_of = score(model, Prepared(data), GLOBAL_SIZE)
    document = {
        "made_by": "python tests/golden/predict.py golden target/release/fovea",
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__, "pillow": PIL.__version__},
        "photographs": [{"name": n, "width": w, "height": h, "checksum": pixels_of[n]} for n, w, h in PHOTOGRAPHS],
        "size": SIZE, "patch": PATCH, "global_size": GLOBAL_SIZE,
        "state_dict": [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()],
        "rows": [{"image_id": i, "row": r, "col": c, "probs": p} for (i, r, c), p in rows.items()],
    }
    pathlib.Path(__file__).with_name("predict.json").write_text(lines(document))
    probs = np.array([p for (_, r, _), p in rows.items() if r is not None])
    print(f"{len(rows)} rows; patch probabilities {probs.min(0)} to {probs.max(0)}, std {probs.std(0)}")


def compare(arguments):
    model = hybrid.Hybrid()
    model.load_state_dict(load_weights(arguments.weights))
    want, _ = score(model, Prepared(arguments.data), arguments.global_size)
    got = read_predictions(arguments.predicted)
    if got.keys() != want.keys():
        sys.exit(f"other rows: {len(got)} predicted, {len(want)} expected, {len(got.keys() ^ want.keys())} in one only")
    for level, is_level in (("patch", lambda key: key[1] is not None), ("image", lambda key: key[1] is None)):
        keys = [key for key in want if is_level(key)]
        a, b = np.array([got[k] for k in keys]), np.array([want[k] for k in keys])
        print(f"{level}: {len(keys)} rows, probabilities {b.min():.4f} to {b.max():.4f} (std {b.std(0).mean():.4f}), "
              f"largest difference {np.abs(a - b).max():.3e}, mean {np.abs(a - b).mean():.3e}")


def weights(arguments):
    torch.manual_seed(0)
    model = hybrid.Hybrid().train()
    if arguments.data:
        with torch.no_grad():
            for _, (_, pixels, _) in zip(range(8), Prepared(arguments.data)):
                whole, image = view(pixels, 256)
                crops = torch.stack([image[:, y : y + 128, x : x + 128] for y in range(256, 1024, 128) for x in range(256, 1024, 128)])
                model(torch.cat([whole, whole.flip(-1)]), crops, [18, 18])
    save_file(model.state_dict(), arguments.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("golden")
    command.add_argument("fovea")
    command.set_defaults(run=golden)
    command = commands.add_parser("compare")
    command.add_argument("weights")
    command.add_argument("data")
    command.add_argument("predicted")
    command.add_argument("--global-size", type=int, default=512)
    command.set_defaults(run=compare)
    command = commands.add_parser("weights")
    command.add_argument("out")
    command.add_argument("--data")
    command.set_defaults(run=weights)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
