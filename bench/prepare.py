#!/usr/bin/env python3
"""Images per second and peak memory of `fovea prepare`."""

import argparse
import os
import resource
import subprocess
import time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("raw")
    parser.add_argument("out")
    parser.add_argument("--fovea", default="target/release/fovea")
    args = parser.parse_args()
    started = time.perf_counter()
    subprocess.run([args.fovea, "prepare", args.raw, args.out], check=True)
    seconds = time.perf_counter() - started
    images = sum(len(files) for path, _, files in os.walk(args.raw) if path.endswith("Original_Images"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{images} images in {seconds:.1f} s: {images / seconds:.1f} images/s, peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
