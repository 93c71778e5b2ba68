"""Small pictures of every kind that common tools write, and what they show.

Writes pictures/tests/pictures/FILE and expected.txt, one line per file:

    FILE rgb WIDTH HEIGHT TOLERANCE HEX     pixels as [height, width, 3]
    FILE mask WIDTH HEIGHT HEX              1 where there is a lesion, [height, width]
    FILE refused WORDS                      words of the reason

    pip install numpy==2.4.* pillow==13.* tifffile==2026.3.* imagecodecs==2026.3.*
    python tests/golden/pictures.py
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

OUT = Path(__file__).resolve().parents[2] / "pictures/tests/pictures"
W, H = 11, 7

x, y = np.meshgrid(np.arange(W), np.arange(H))
RGB = np.stack([20 + x * 20, 10 + y * 30, (x * y * 3) % 200 + 5], axis=2).astype(np.uint8)
GREY = (5 + x * 22 + y * 3).astype(np.uint8)
SOFT = np.stack([40 + x * 10, 40 + y * 12, 90 - x * 3], axis=2).astype(np.uint8)  # survives JPEG
MASK = ((x - 4) ** 2 + (y - 3) ** 2 < 6).astype(np.uint8)

lines = []


def keep(name, data):
    (OUT / name).write_bytes(data)


def rgb(name, data, expected, tolerance=0):
    keep(name, data)
    expected = np.asarray(expected)
    if expected.ndim == 2:
        expected = np.repeat(expected[:, :, None], 3, axis=2)
    expected = expected.astype(np.uint8)
    h, w = expected.shape[:2]
    lines.append(f"{name} rgb {w} {h} {tolerance} {expected.tobytes().hex()}")


def mask(name, data, expected=MASK):
    keep(name, data)
    h, w = expected.shape
    lines.append(f"{name} mask {w} {h} {expected.astype(np.uint8).tobytes().hex()}")


def refused(name, data, words):
    keep(name, data)
    lines.append(f"{name} refused {words}")


def pil(array, format, mode=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array, mode) if mode else Image.fromarray(array)
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def tif(array, **options):
    out = io.BytesIO()
    options.setdefault("metadata", None)
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def pages(*arrays, **options):
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for array, more in arrays:
            writer.write(array, metadata=None, **options, **more)
    return out.getvalue()


def scaled(array, white):
    return np.floor(array.astype(np.float64) * 255 / white + 0.5).clip(0, 255).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def insert_chunk(png, kind, data, before=b"IDAT"):
    at = png.index(before) - 4
    return png[:at] + chunk(kind, data) + png[at:]


def png(array, depth, colour, *, palette=None, extra=()):
    """A PNG of any depth, written by hand."""
    rows = array.reshape(array.shape[0], -1)
    raw = b""
    for row in rows:
        if depth == 16:
            raw += b"\0" + row.astype(">u2").tobytes()
        elif depth == 8:
            raw += b"\0" + row.astype(np.uint8).tobytes()
        else:
            bits = "".join(format(int(v), f"0{depth}b") for v in row)
            bits += "0" * (-len(bits) % 8)
            raw += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", array.shape[1], array.shape[0], depth, colour, 0, 0, 0))
    for kind, content in extra:
        data += chunk(kind, content)
    if palette is not None:
        data += chunk(b"PLTE", bytes(palette))
    return data + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def exif(orientation):
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"


# How a picture is stored that becomes upright under each orientation (Exif 2.3, tag 274).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def pngs():
    alpha = np.where(x < 6, 255, 0).astype(np.uint8)
    half = np.full((H, W), 128, np.uint8)
    over = lambda c, a: ((c.astype(np.uint32) * a[..., None] + 127) // 255).astype(np.uint8)
    rgb("rgb8.png", pil(RGB, "PNG"), RGB)
    rgb("grey8.png", pil(GREY, "PNG"), GREY)
    rgb("rgba8.png", pil(np.dstack([RGB, alpha]), "PNG"), over(RGB, alpha))
    rgb("rgba8-half.png", pil(np.dstack([RGB, half]), "PNG"), over(RGB, half))
    rgb("grey-alpha8.png", pil(np.dstack([GREY, alpha]), "PNG"), over(np.repeat(GREY[..., None], 3, 2), alpha))
    quantised = Image.fromarray(RGB).quantize(16)
    rgb("palette.png", pil(quantised, "PNG"), np.asarray(quantised.convert("RGB")))
    palette = [255, 255, 255, 200, 30, 10]
    indices = (x >= 6).astype(np.uint8)
    colours = np.asarray(palette).reshape(2, 3)[indices]
    rgb("palette1-transparent.png", insert_chunk(png(indices, 1, 3, palette=palette), b"tRNS", b"\0"), np.where(indices[..., None] == 1, colours, 0))
    for depth in (1, 2, 4):
        values = (x + y) % (1 << depth)
        rgb(f"grey{depth}.png", png(values, depth, 0), values * 255 // ((1 << depth) - 1))
    wide = RGB.astype(np.uint16) * 257
    rgb("rgb16.png", png(wide, 16, 2), RGB)
    rgb("rgb16-12bits.png", png(RGB.astype(np.uint16) * 16, 16, 2), scaled(RGB.astype(np.uint16) * 16, 4095))
    rgb("rgb16-10bits.png", png(RGB.astype(np.uint16) * 4, 16, 2), scaled(RGB.astype(np.uint16) * 4, 1023))
    dark = RGB.astype(np.uint16)  # no value above 255, but 12 bits by its own word
    rgb("rgb16-sbit12.png", png(dark * 4, 16, 2, extra=[(b"sBIT", b"\x0c\x0c\x0c")]), scaled(dark * 4, 4095))
    rgb("rgb16-sbit12-scaled.png", png(wide, 16, 2, extra=[(b"sBIT", b"\x0c\x0c\x0c")]), RGB)
    rgb("interlaced.png", INTERLACED(RGB), RGB)
    for n in (3, 6):
        stored = np.ascontiguousarray(STORED[n](RGB))
        rgb(f"exif{n}.png", insert_chunk(pil(stored, "PNG"), b"eXIf", exif(n)), RGB)
    rgb("exif8-late.png", insert_chunk(pil(np.ascontiguousarray(STORED[8](RGB)), "PNG"), b"eXIf", exif(8), b"IEND"), RGB)
    profile = b"\nexif\n%8d\n" % (6 + len(exif(3))) + (b"Exif\0\0" + exif(3)).hex().encode() + b"\n"
    stored = pil(np.ascontiguousarray(STORED[3](RGB)), "PNG")
    rgb("exif3-imagemagick.png", insert_chunk(stored, b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)), RGB)
    rgb("exif3-imagemagick-plain.png", insert_chunk(stored, b"tEXt", b"Raw profile type APP1\0" + profile), RGB)
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    refused("animated.png", pil(frames[0], "PNG", save_all=True, append_images=frames[1:]), "holds 2 pictures")
    mask("mask8.png", pil(MASK * 255, "PNG"))
    mask("mask8-one.png", pil(MASK, "PNG"))
    mask("mask1.png", png(MASK, 1, 0))
    mask("mask16-255.png", png(MASK.astype(np.uint16) * 255, 16, 0))
    mask("mask16-1.png", png(MASK.astype(np.uint16), 16, 0))
    mask("mask16.png", png(MASK.astype(np.uint16) * 65535, 16, 0))
    mask("mask-voc-palette.png", png(MASK, 8, 3, palette=[0, 0, 0, 128, 0, 0]))
    mask("mask-layer.png", pil(np.dstack([np.full((H, W, 3), 255, np.uint8), MASK * 255]), "PNG"))
    soft = (MASK.astype(int) * 40000 + 3000 + x * 100).astype(np.uint16)
    mask("mask16-soft.png", png(soft, 16, 0))
    mask("mask-exif3.png", insert_chunk(pil(np.ascontiguousarray((MASK * 255)[::-1, ::-1]), "PNG"), b"eXIf", exif(3)))


def INTERLACED(array):
    """Adam7 by hand: Pillow does not write it."""
    raw = b""
    for x0, y0, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
        part = array[y0::dy, x0::dx]
        if part.shape[0] and part.shape[1]:
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    header = struct.pack(">IIBBBBB", W, H, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def jpegs():
    def shown(data):
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    for name, options in [
        ("444.jpg", dict(subsampling=0)),
        ("420.jpg", dict(subsampling=2)),
        ("progressive.jpg", dict(progressive=True, subsampling=0)),
        ("restart.jpg", dict(subsampling=0, restart_marker_blocks=1)),
    ]:
        data = pil(SOFT, "JPEG", quality=95, **options)
        rgb(name, data, shown(data), 3 if "420" not in name else 12)
    data = pil(GREY, "JPEG", quality=95)
    rgb("grey.jpg", data, shown(data), 2)
    data = pil(Image.fromarray(SOFT).convert("CMYK"), "JPEG", quality=98, subsampling=0)
    rgb("cmyk.jpg", data, shown(data), 4)
    for n in range(1, 9):
        stored = np.ascontiguousarray(STORED[n](SOFT))
        data = pil(stored, "JPEG", quality=98, subsampling=0, exif=b"Exif\0\0" + exif(n))
        rgb(f"exif{n}.jpg", data, SOFT, 6)
    data = pil(SOFT, "JPEG", quality=95, subsampling=0)
    rgb("padded.jpg", data + bytes(64), shown(data), 3)
    rgb("trailer.jpg", data + b"\xff\xda\x00\x0cftypmp42\xff\xd8\xff\xe0", shown(data), 3)
    refused("cut.jpg", data[:-2], "ends too early")
    refused("cut-in-trailer-like.jpg", data[:-40] + b"\0\0\0\0", "ends too early")


def tiffs():
    for name, options in [
        ("none", {}),
        ("lzw", dict(compression="lzw")),
        ("deflate", dict(compression="zlib")),
        ("packbits", dict(compression="packbits")),
        ("zstd", dict(compression="zstd")),
        ("webp", dict(compression="webp", compressionargs={"lossless": True})),
        ("lzw-predictor", dict(compression="lzw", predictor=2)),
        ("zstd-predictor", dict(compression="zstd", predictor=2)),
        ("tiled", dict(tile=(16, 16))),
        ("tiled-deflate", dict(tile=(16, 16), compression="zlib", predictor=2)),
        ("big", dict(bigtiff=True)),
        ("big-endian", dict(byteorder=">")),
        ("big-big-endian", dict(bigtiff=True, byteorder=">", compression="lzw")),
        ("strips", dict(rowsperstrip=2)),
    ]:
        rgb(f"{name}.tif", tif(RGB, photometric="rgb", **options), RGB)
    rgb("planar.tif", tif(np.ascontiguousarray(RGB.transpose(2, 0, 1)), photometric="rgb", planarconfig="separate"), RGB)
    rgb("planar-tiled.tif", tif(np.ascontiguousarray(RGB.transpose(2, 0, 1)), photometric="rgb", planarconfig="separate", tile=(16, 16), compression="lzw"), RGB)
    rgb("planar-big.tif", tif(np.ascontiguousarray(np.tile(RGB, (3, 3, 1)).transpose(2, 0, 1)), photometric="rgb", planarconfig="separate", tile=(16, 16), bigtiff=True, byteorder=">"), np.tile(RGB, (3, 3, 1)))
    rgb("planar-strips.tif", tif(np.ascontiguousarray(RGB.transpose(2, 0, 1)), photometric="rgb", planarconfig="separate", rowsperstrip=3, compression="zlib", predictor=2), RGB)
    rgb("planar16.tif", tif(np.ascontiguousarray(RGB.transpose(2, 0, 1)).astype(np.uint16) * 257, photometric="rgb", planarconfig="separate"), RGB)
    parts = np.asarray(Image.fromarray(SOFT).convert("YCbCr"))
    tall = np.tile(parts, (4, 3, 1))[:24, :32]
    jpeg = dict(compression="jpeg", compressionargs={"level": 98}, photometric="ycbcr")
    for name, data, tolerance in [
        ("jpeg-444", tif(parts, subsampling=(1, 1), **jpeg), 3),
        ("jpeg-420", tif(parts, subsampling=(2, 2), **jpeg), 12),
        ("jpeg-420-tiled", tif(tall, subsampling=(2, 2), tile=(16, 16), **jpeg), 12),
        ("jpeg-grey", tif(GREY, photometric="minisblack", compression="jpeg", compressionargs={"level": 98}), 3),
    ]:
        rgb(f"{name}.tif", data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), tolerance)
    rgb("ycbcr.tif", tif(np.asarray(Image.fromarray(SOFT).convert("YCbCr")), photometric="ycbcr", subsampling=(1, 1)), SOFT, 2)
    # Depths and types.
    rgb("grey8.tif", tif(GREY, photometric="minisblack"), GREY)
    rgb("grey8-white-is-zero.tif", tif(255 - GREY, photometric="miniswhite"), GREY)
    rgb("grey16.tif", tif(GREY.astype(np.uint16) * 257, photometric="minisblack"), GREY)
    rgb("grey16-predictor.tif", tif(GREY.astype(np.uint16) * 257, photometric="minisblack", compression="zlib", predictor=2), GREY)
    rgb("grey16-12bits.tif", tif(GREY.astype(np.uint16) * 16, photometric="minisblack"), scaled(GREY.astype(np.uint16) * 16, 4095))
    rgb("grey16-max.tif", tif(GREY.astype(np.uint16) * 4, photometric="minisblack", extratags=[(281, "H", 1, 4095, True)]), scaled(GREY.astype(np.uint16) * 4, 4095))
    rgb("grey32.tif", tif(GREY.astype(np.uint32) * 16843009, photometric="minisblack"), GREY, 1)
    rgb("grey32-12bits.tif", tif(GREY.astype(np.uint32) * 16, photometric="minisblack"), scaled(GREY.astype(np.uint16) * 16, 4095))
    whole = GREY.astype(np.int32) * 128 + 64
    rgb("int16.tif", tif(whole.astype(np.int16), photometric="minisblack"), scaled(whole, 32767), 1)
    rgb("int16-12bits.tif", tif(GREY.astype(np.int16) * 16, photometric="minisblack"), scaled(GREY.astype(np.uint16) * 16, 4095))
    unit = GREY.astype(np.float32) / 255
    for kind in (np.float16, np.float32, np.float64):
        rgb(f"{kind.__name__}.tif", tif(unit.astype(kind), photometric="minisblack"), GREY, 1)
    rgb("float32-predictor.tif", tif(unit, photometric="minisblack", compression="zlib", predictor=3), GREY, 1)
    rgb("float32-255.tif", tif(GREY.astype(np.float32), photometric="minisblack"), GREY)
    rgb("rgb-float32.tif", tif(RGB.astype(np.float32) / 255, photometric="rgb"), RGB, 1)
    holed = unit.copy()
    holed[0, 0] = np.nan
    refused("float32-nan.tif", tif(holed, photometric="minisblack"), "1 of its 77 values are not finite")
    for bits in (2, 4):
        values = (x + y) % (1 << bits)
        rgb(f"grey{bits}.tif", packed(values, bits, 1), values * 255 // ((1 << bits) - 1))
    for bits in (10, 12, 14):
        values = (GREY.astype(np.uint16) << 2) << (bits - 10)
        rgb(f"grey{bits}-packed.tif", packed(values, bits, 1), scaled(values, (1 << bits) - 1))
    values = RGB.astype(np.uint16) << 4
    rgb("rgb12-packed.tif", packed(values, 12, 2), scaled(values, 4095))
    bilevel = (x + y) % 2
    rgb("bilevel.tif", pil(Image.fromarray((bilevel * 255).astype(np.uint8)).convert("1"), "TIFF"), bilevel * 255)
    rgb("bilevel-g4.tif", pil(Image.fromarray((bilevel * 255).astype(np.uint8)).convert("1"), "TIFF", compression="group4"), bilevel * 255)
    rgb("bilevel-white-is-zero.tif", packed(1 - bilevel, 1, 0), bilevel * 255)
    refused("bilevel-g3.tif", pil(Image.fromarray((bilevel * 255).astype(np.uint8)).convert("1"), "TIFF", compression="group3"), "group 3")
    # Palettes.
    quantised = Image.fromarray(RGB).quantize(16)
    shown = np.asarray(quantised.convert("RGB"))
    rgb("palette8.tif", pil(quantised, "TIFF"), shown)
    rgb("palette8-lzw.tif", pil(quantised, "TIFF", compression="tiff_lzw"), shown)
    table = np.asarray(quantised.getpalette()[: 3 * 16], np.uint16).reshape(-1, 3)
    table = np.vstack([table, np.zeros((16 - len(table), 3), np.uint16)])
    rgb("palette4.tif", packed(np.asarray(quantised), 4, 3, colours=table * 257), shown)
    rgb("palette4-of-bytes.tif", packed(np.asarray(quantised), 4, 3, colours=table), shown)
    # Opacity and further samples.
    alpha = np.where(x < 6, 255, 0).astype(np.uint8)
    straight = np.where(alpha[..., None] == 255, RGB, 0)
    rgb("rgba-unassociated.tif", tif(np.dstack([RGB, alpha]), photometric="rgb", extrasamples=["unassalpha"]), straight)
    rgb("rgba-associated.tif", tif(np.dstack([RGB, alpha]), photometric="rgb", extrasamples=["assocalpha"]), RGB)
    rgb("rgb-and-more.tif", tif(np.dstack([RGB, alpha]), photometric="rgb", extrasamples=["unspecified"]), RGB)
    rgb("grey-and-alpha.tif", tif(np.dstack([GREY, alpha]), photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig"), np.where(alpha == 255, GREY, 0))
    rgb("rgba16.tif", tif(np.dstack([RGB, alpha]).astype(np.uint16) * 257, photometric="rgb", extrasamples=["unassalpha"]), straight)
    refused("grey-channels.tif", tif(np.dstack([GREY, alpha, alpha]), photometric="minisblack", planarconfig="contig"), "holds 3 channels of grey")
    refused("planes-of-masks.tif", tif(np.stack([GREY, alpha]), photometric="minisblack", planarconfig="separate"), "holds 2 channels of grey")
    refused("volume.tif", tif(np.stack([GREY, GREY]), photometric="minisblack", volumetric=True), "2 slices")
    inks = np.asarray(Image.fromarray(RGB).convert("CMYK"))
    rgb("cmyk.tif", tif(inks, photometric="separated"), RGB)
    refused("lab.tif", pil(Image.fromarray(RGB).convert("LAB"), "TIFF"), "L*a*b*")
    refused("lzma.tif", tif(RGB, photometric="rgb", compression="lzma"), "LZMA")
    rgb("five-channels.tif", tif(np.dstack([RGB, alpha, alpha]), photometric="rgb", extrasamples=["unspecified"] * 2), RGB)
    # Several pictures.
    refused("two-pages.tif", pages((RGB, {}), (RGB, {}), photometric="rgb"), "holds 2 pictures (pages)")
    rgb("thumbnail-after.tif", pages((RGB, {}), (RGB[::2, ::2], dict(subfiletype=1)), photometric="rgb"), RGB)
    rgb("thumbnail-before.tif", pages((RGB[::2, ::2], dict(subfiletype=1)), (RGB, {}), photometric="rgb"), RGB)
    rgb("thumbnail-before-big.tif", pages_big((RGB[::2, ::2], dict(subfiletype=1)), (RGB, {})), RGB)
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(RGB, photometric="rgb", subifds=1, metadata=None)
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    rgb("pyramid.tif", out.getvalue(), RGB)
    refused("imagej-stack.tif", tif(np.stack([GREY, GREY, GREY]), imagej=True, metadata={"axes": "ZYX"}), "3 pictures")
    rgb("imagej.tif", tif(GREY, imagej=True, metadata={}), GREY)
    refused("described-stack.tif", tif(GREY, photometric="minisblack", description="ImageJ=1.54f\nimages=5\nslices=5\n"), "5 pictures")
    for n in range(1, 9):
        stored = np.ascontiguousarray(STORED[n](RGB))
        rgb(f"orientation{n}.tif", tif(stored, photometric="rgb", extratags=[(274, "H", 1, n, True)]), RGB)
    # Masks.
    for kind in (np.uint8, np.uint16, np.uint32, np.int16, np.float32, np.float64):
        mask(f"mask-{kind.__name__}-1.tif", tif(MASK.astype(kind), photometric="minisblack"))
    mask("mask-bool.tif", tif(MASK.astype(bool), photometric="minisblack"))
    mask("mask-uint16-255.tif", tif(MASK.astype(np.uint16) * 255, photometric="minisblack", compression="lzw"))
    mask("mask-float32-255.tif", tif(MASK.astype(np.float32) * 255, photometric="minisblack"))
    mask("mask-int8-true-is-negative.tif", tif(-MASK.astype(np.int8), photometric="minisblack"))
    mask("mask-int16-negative.tif", tif(MASK.astype(np.int16) * 2 - 1, photometric="minisblack"))
    mask("mask-probability.tif", tif((MASK * 0.6 + 0.1 + x * 0.01).astype(np.float32), photometric="minisblack"))
    mask("mask-red.tif", tif(np.dstack([MASK * 255, MASK * 0, MASK * 0]).astype(np.uint8), photometric="rgb", compression="lzw"))
    mask("mask-g4.tif", pil(Image.fromarray(MASK * 255).convert("1"), "TIFF", compression="group4"))


def pages_big(*arrays):
    out = io.BytesIO()
    with tifffile.TiffWriter(out, bigtiff=True, byteorder=">") as writer:
        for array, more in arrays:
            writer.write(array, photometric="rgb", metadata=None, **more)
    return out.getvalue()


def packed(array, bits, photometric, colours=None):
    """A TIFF without compression whose rows are packed bits, written by hand."""
    samples = array.shape[2] if array.ndim == 3 else 1
    data = b""
    for row in array.reshape(array.shape[0], -1):
        text = "".join(format(int(v), f"0{bits}b") for v in row)
        text += "0" * (-len(text) % 8)
        data += bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    fields = [(256, 3, [array.shape[1]]), (257, 3, [array.shape[0]]), (258, 3, [bits] * samples), (259, 3, [1]), (262, 3, [photometric])]
    fields += [(273, 4, [8]), (277, 3, [samples]), (278, 3, [array.shape[0]]), (279, 4, [len(data)])]
    if colours is not None:
        fields.append((320, 3, [int(v) for v in colours.T.reshape(-1)]))
    data += b"\0" * (len(data) % 2)
    directory = 8 + len(data)
    behind = directory + 2 + 12 * len(fields) + 4
    table, values = struct.pack("<H", len(fields)), b""
    for tag, kind, numbers in fields:
        content = struct.pack("<" + ("H" if kind == 3 else "I") * len(numbers), *numbers)
        if len(content) > 4:
            table += struct.pack("<HHII", tag, kind, len(numbers), behind + len(values))
            values += content
        else:
            table += struct.pack("<HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
    return struct.pack("<2sHI", b"II", 42, directory) + data + table + b"\0\0\0\0" + values


def others():
    rgb("rgb.bmp", pil(RGB, "BMP"), RGB)
    rgb("grey.bmp", pil(GREY, "BMP"), GREY)
    quantised = Image.fromarray(RGB).quantize(16)
    shown = np.asarray(quantised.convert("RGB"))
    rgb("palette.bmp", pil(quantised, "BMP"), shown)
    mask("mask.bmp", pil(Image.fromarray(MASK * 255).convert("1"), "BMP"))
    rgb("palette.gif", pil(quantised, "GIF"), shown)
    mask("mask.gif", pil(MASK * 255, "GIF"))
    clear = quantised.copy()
    index = int(np.asarray(quantised)[0, 0])
    hole = np.asarray(quantised) == index
    rgb("transparent.gif", pil(clear, "GIF", transparency=index), np.where(hole[..., None], 0, shown))
    refused("animated.gif", pil(quantised, "GIF", save_all=True, append_images=[Image.fromarray(RGB[::-1]).quantize(16)]), "several pictures")
    rgb("lossless.webp", pil(RGB, "WEBP", lossless=True), RGB)
    alpha = np.where(x < 6, 255, 0).astype(np.uint8)
    rgb("alpha.webp", pil(np.dstack([RGB, alpha]), "WEBP", lossless=True), np.where(alpha[..., None] == 255, RGB, 0))
    data = pil(SOFT, "WEBP", quality=90)
    rgb("lossy.webp", data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 12)
    stored = np.ascontiguousarray(STORED[6](RGB))
    rgb("exif6.webp", pil(stored, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(6)), RGB)
    refused("animated.webp", pil(RGB, "WEBP", save_all=True, lossless=True, append_images=[Image.fromarray(np.ascontiguousarray(RGB[::-1]))]), "several pictures")
    rgb("rgb.ppm", pil(RGB, "PPM"), RGB)
    rgb("grey.pgm", pil(GREY, "PPM"), GREY)
    mask("mask.pbm", b"P4\n%d %d\n" % (W, H) + np.packbits(MASK, axis=1).tobytes(), 1 - MASK)
    text = "\n".join(" ".join(str(v) for v in row) for row in GREY)
    rgb("plain.pgm", f"P2\n# a comment\n{W} {H}\n255\n{text}\n".encode(), GREY)
    twelve = GREY.astype(np.uint16) * 4
    rgb("grey-4095.pgm", b"P5 %d %d 4095\n" % (W, H) + twelve.astype(">u2").tobytes(), scaled(twelve, 4095), 1)
    mask("mask-1.pgm", b"P5 %d %d 1\n" % (W, H) + MASK.tobytes())
    rgb("rgb.pam", b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" % (W, H) + RGB.tobytes(), RGB)
    refused("two.ppm", pil(RGB, "PPM") * 2, "several pictures")
    refused("page.jpg", b"\n<!DOCTYPE html><html><body>Please log in</body></html>", "is a web page")
    refused("x.dcm", bytes(128) + b"DICM" + bytes(16), "is a DICOM file: export")
    refused("zeros.png", bytes(2000), "nothing but zeros")
    refused("text.png", b"hello", "is no picture")
    refused("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC")


OUT.mkdir(parents=True, exist_ok=True)
for old in OUT.iterdir():
    old.unlink()
pngs()
jpegs()
tiffs()
others()
(OUT / "expected.txt").write_text("\n".join(lines) + "\n")
print(len(lines), "pictures,", sum(f.stat().st_size for f in OUT.iterdir()), "bytes")
