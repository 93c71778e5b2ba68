#!/usr/bin/env python3
"""Fovea's training step against PyTorch DDP's, alternating in one run; medians and ratios.

Both sides train `hybrid` on the same prepared dataset: 4 images x 16 patches a step, global branch
256 x 256. A Fovea figure is the time between two commits (input, reduction, vote and optimizer
included) as `throughput.csv` has it.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SETUPS = [(1, 2), (2, 1)]  # (ranks, threads per rank)


def cpu():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def fovea(args, ranks, threads, precision, run):
    """Median step time of one short run, without its first three steps."""
    shutil.rmtree(run, ignore_errors=True)
    values = {
        "train.images_per_step": 4,
        "train.virtual_shards": args.virtual_shards,
        "train.threads_per_rank": threads,
        "train.precision": precision,
        "train.epochs": 1,
        "data.patches_per_image": 16,
        "data.global_size": 256,
        "schedule.warmup_steps": 0,
    }
    command = [args.fovea, "train", "--preset", "demo", "--data", args.data, "--out", str(run), "--ranks", str(ranks)]
    for key, value in values.items():
        command += ["--set", f"{key}={value}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Ctrl-C after enough steps: the rest of the epoch and its evaluation are not what is measured.
    while process.poll() is None and committed(run) < args.steps + 4:
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    if process.wait() not in (0, 85):  # finished, or drained
        raise SystemExit(f"failed: {' '.join(command)}")
    with open(run / "throughput.csv") as file:
        rows = [r for r in csv.DictReader(file) if int(r["rank"]) == 0 and int(r["step"]) > 3]
    return [float(r["step_ms"]) for r in rows][: args.steps]


def committed(run):
    """Steps that a run has taken so far; its coordinator writes this file once a second."""
    try:
        return json.loads((run / "status.json").read_text())["step"]
    except FileNotFoundError:
        return 0


def pytorch(args, ranks, threads, precision, fused):
    command = [args.python, str(HERE / "pytorch_ddp.py"), args.data, "--ranks", str(ranks), "--threads", str(threads)]
    command += ["--precision", precision, "--steps", str(args.steps)] + (["--fused"] if fused else [])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])["all_ms"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--fovea", default="target/release/fovea")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--out", default="bench-out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--virtual-shards", type=int, default=4)
    parser.add_argument("--precision", default="bf16")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    table = []
    for ranks, threads in SETUPS:
        ours, plain, fused = [], [], []
        for _ in range(args.rounds):  # alternating, so that a machine that drifts drifts for all
            ours += fovea(args, ranks, threads, args.precision, out / "run")
            plain += pytorch(args, ranks, threads, args.precision, False)
            fused += pytorch(args, ranks, threads, args.precision, True)
        a, b, c = map(statistics.median, (ours, plain, fused))
        table.append({"ranks": ranks, "threads": threads, "fovea_ms": a, "ddp_ms": b, "ddp_fused_ms": c})
    print(f"{cpu()}, {os.cpu_count()} cores, {args.precision}, 4 images x 16 patches, global 256, medians")
    print("ranks x threads   fovea ms   DDP ms   ratio   DDP + fused Adam ms   ratio")
    for r in table:
        print(
            f"{r['ranks']} x {r['threads']}             {r['fovea_ms']:8.0f} {r['ddp_ms']:8.0f} "
            f"{r['ddp_ms'] / r['fovea_ms']:7.2f} {r['ddp_fused_ms']:21.0f} {r['ddp_fused_ms'] / r['fovea_ms']:7.2f}"
        )
    (out / "step.json").write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
