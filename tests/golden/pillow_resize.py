"""Golden numbers of Pillow's bilinear resize and of torchvision's Resize + CenterCrop on PIL images.

Writes pillow_resize.txt (resize) and torchvision_centre.txt (shorter side to round(size * 256 / 224), then the middle)
beside this script. Run with Pillow and torchvision: python pillow_resize.py
"""

import pathlib

import numpy as np
import PIL
import torchvision
from PIL import Image
from torchvision import transforms

HERE = pathlib.Path(__file__).parent


def pattern(width, height, channels):
    """The picture that the test makes too: the high byte of a linear congruential generator."""
    state, values = 12345, []
    for _ in range(width * height * channels):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append(state >> 24)
    return np.array(values, np.uint8).reshape(height, width, channels)


def picture(width, height, channels):
    data = pattern(width, height, channels)
    return Image.fromarray(data if channels == 3 else data[:, :, 0])


def line(numbers, image):
    values = np.asarray(image).reshape(-1)
    return " ".join(str(int(n)) for n in [*numbers, *values])


def main():
    versions = f"# Pillow {PIL.__version__}, torchvision {torchvision.__version__}; made by pillow_resize.py"
    lines = [versions, "# channels, width and height of the source, width and height of the result, its values"]
    sizes = [(9, 7, 5, 4), (9, 7, 9, 3), (9, 7, 4, 7), (8, 8, 16, 16), (13, 5, 6, 11), (40, 30, 7, 7), (3, 3, 1, 1),
             (1, 1, 3, 2), (31, 17, 30, 16), (50, 2, 3, 9), (16, 16, 16, 16), (64, 48, 12, 12)]
    for channels in (3, 1):
        for w, h, width, height in sizes:
            resized = picture(w, h, channels).resize((width, height), Image.BILINEAR)
            lines.append(line((channels, w, h, width, height), resized))
    (HERE / "pillow_resize.txt").write_text("\n".join(lines) + "\n")

    lines = [versions, "# width and height of the source, size of the result, its values"]
    for w, h, size in [(20, 13, 8), (13, 20, 8), (17, 17, 14), (9, 30, 14), (31, 12, 7), (14, 14, 21)]:
        enlarged = round(size * 256 / 224)
        middle = transforms.Compose([transforms.Resize(enlarged), transforms.CenterCrop(size)])
        lines.append(line((w, h, size), middle(picture(w, h, 3))))
    (HERE / "torchvision_centre.txt").write_text("\n".join(lines) + "\n")


main()
