#!/usr/bin/env bash
# Everything that building and running Fovea needs, fetched once; seconds when nothing is to do.
# System packages when root (else the one line to ask for), libtorch into .libtorch/.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.11.0 # tch 0.24.0 needs exactly this one
MARK=.libtorch/.complete
NVRTC="nvidia-cuda-nvrtc==13.0.*" # of torch's own requirement list

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: error: %s\n' "$1" >&2
    printf '  help: %s\n' "$2" >&2
    exit 1
}

command -v cargo >/dev/null || die "cargo is not on PATH" "install Rust from https://rustup.rs and open a new shell"

# --- system packages -----------------------------------------------------------------------------
missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v pkg-config >/dev/null || missing+=(pkg-config)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
optional=()
command -v mpicc >/dev/null || optional+=(libopenmpi-dev openmpi-bin)
# bindgen reads the MPI headers with libclang.
ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* >/dev/null 2>&1 || optional+=(libclang-dev)

# A real Slurm for the tests of jobs; not on a machine that belongs to a cluster already.
PATH="$PATH:/usr/sbin:/sbin" # where the daemons are, which is not on every user's path
SLURM=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libpmix2 iproute2)
slurm=()
services=()
if [ ! -e /etc/slurm/slurm.conf ]; then
    for program in slurmctld slurmd sbatch srun munged ip; do
        command -v $program >/dev/null || slurm=("${SLURM[@]}")
    done
    command -v munged >/dev/null || services+=(munge)
    command -v slurmctld >/dev/null || services+=(slurmctld)
    command -v slurmd >/dev/null || services+=(slurmd)
fi

# Installs packages; those that bring services must not start them: the tests start their own, with a
# configuration of their own. 101 is how policy-rc.d says no.
install_packages() {
    local policy=/usr/sbin/policy-rc.d failed=0
    if [ -e $policy ]; then policy=; else
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        # The file also goes when set-up is interrupted.
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null; } || failed=1
    [ -z "$policy" ] || { rm -f $policy && trap - EXIT; }
    return $failed
}

if ((${#missing[@]} + ${#optional[@]} + ${#slurm[@]})); then
    packages=("${missing[@]}" "${optional[@]}" "${slurm[@]}")
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing ${packages[*]}"
        export DEBIAN_FRONTEND=noninteractive
        install_packages "${packages[@]}" || say "apt-get failed"
        if ((${#services[@]})) && [ -d /run/systemd/system ]; then
            # Nor do they start with the machine, later.
            systemctl disable --now --quiet "${services[@]}" 2>/dev/null || true
        fi
    else
        say "ask an administrator for: sudo apt-get install -y --no-install-recommends ${packages[*]}"
    fi
fi
command -v c++ >/dev/null || die "no C++ compiler" "apt-get install g++ (or load your site's gcc module)"
command -v mpicc >/dev/null || say "no MPI on this machine: building without backend mpi"

# --- libtorch ------------------------------------------------------------------------------------
gpu=0
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then gpu=1; fi
case ${GPU:-} in 0 | 1) gpu=$GPU ;; esac # said by the user, on a login node for example
want="torch $TORCH gpu $gpu"
if [ -n "${LIBTORCH:-}" ]; then
    say "using libtorch from LIBTORCH=$LIBTORCH"
elif [ "$(cat "$MARK" 2>/dev/null || true)" != "$want" ] && [ "$(cat "$MARK" 2>/dev/null || true)" != "torch $TORCH gpu 1" ]; then
    python3 -m pip --version >/dev/null 2>&1 || die "python3 has no pip" "apt-get install python3-pip, or set LIBTORCH to an unpacked libtorch $TORCH"
    say "fetching libtorch $TORCH (about 620 MB; 1.5 GB on disk)"
    rm -rf .libtorch.partial .libtorch
    if [ $gpu = 1 ]; then
        # The CUDA libraries of torch's own requirement list: cuBLAS, cuDNN, NCCL and so on.
        python3 -m pip install -q --no-compile --target .libtorch.partial "torch==$TORCH"
    else
        # All that the CPU side of the CUDA build asks the loader for, and the compiler of the CUDA kernels.
        python3 -m pip install -q --no-compile --no-deps --target .libtorch.partial \
            "torch==$TORCH" "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*" "$NVRTC"
    fi || die "pip could not fetch torch==$TORCH" "check the connection to PyPI and that python3 is 3.10 or newer on x86-64 Linux; or set LIBTORCH to an unpacked libtorch $TORCH"
    echo "$want" >.libtorch.partial/.complete
    mv .libtorch.partial .libtorch # last, so that a killed download is never taken for a complete one
fi

# --- NVRTC ---------------------------------------------------------------------------------------
# Compiles the CUDA kernels, in their tests too; needs neither GPU nor driver. Set-ups made before it was
# needed get it without fetching libtorch again.
nvrtc_lib=.libtorch/nvidia/cu13/lib
if [ -n "${LIBTORCH:-}" ]; then
    if [ ! -e "$LIBTORCH/../nvidia/cu13/lib/libnvrtc.so.13" ] && [ -z "${FOVEA_NVRTC:-}" ]; then
        say "no NVRTC beside $LIBTORCH; if the tests of kernels do not find one: python3 -m pip install '$NVRTC', and set FOVEA_NVRTC to its libnvrtc.so.13"
    fi
elif [ ! -e $nvrtc_lib/libnvrtc.so.13 ]; then
    say "fetching NVRTC (90 MB)"
    rm -rf .libtorch/.nvrtc.partial
    python3 -m pip install -q --no-compile --no-deps --target .libtorch/.nvrtc.partial "$NVRTC" ||
        die "pip could not fetch $NVRTC" "check the connection to PyPI; or set FOVEA_NVRTC to the libnvrtc.so of a CUDA 12 or 13 toolkit"
    mkdir -p $nvrtc_lib
    for file in .libtorch/.nvrtc.partial/nvidia/cu13/lib/*; do
        case $file in */libnvrtc.so.13) ;; *) mv -f "$file" $nvrtc_lib/ ;; esac
    done
    mv -f .libtorch/.nvrtc.partial/nvidia/cu13/lib/libnvrtc.so.13 $nvrtc_lib/ # last: it says that all is there
    rm -rf .libtorch/.nvrtc.partial
fi
