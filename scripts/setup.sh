#!/usr/bin/env bash
# Everything that building and running Fovea needs, fetched once; a second when nothing is to do.
# System packages when root (else the one line to ask for), libtorch into .libtorch/.
# What is there is tried (scripts/try.sh), installed, and tried again. Only what the program cannot do
# without ends this script with an error; other parts are left out with a word.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.11.0 # tch 0.24.0 needs exactly this one
MARK=.libtorch/.complete
NVRTC="nvidia-cuda-nvrtc==13.0.*" # of torch's own requirement list
LIBTORCH_MB=2600                   # while it is fetched: the wheel, and what is unpacked
BUILD_MB=2000

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: error: %s\n' "$1" >&2
    printf '  help: %s\n' "$2" >&2
    exit 1
}
# has PART: whether it works here; `why` says why not.
why=
has() { why=$(scripts/try.sh "$1" 2>&1); }

has rust || die "$why" "install Rust from https://rustup.rs and open a new shell; with rustup: rustup update stable"

# One set-up at a time in a folder; the second finds everything there.
if command -v flock >/dev/null; then
    exec 9>.setup.lock
    flock -n 9 || { say "waiting for another make in this folder to finish its set-up"; flock 9; }
fi

# --- libtorch: what is there -----------------------------------------------------------------------
# A folder with libtorch's header and library; the version where the folder says one.
libtorch_in() {
    [ -e "$1/include/torch/csrc/api/include/torch/torch.h" ] && [ -e "$1/lib/libtorch_cpu.so" ] || return 1
    local version
    version=$(cat "$1/build-version" 2>/dev/null || sed -n "s/^__version__ = '\(.*\)'/\1/p" "$1/version.py" 2>/dev/null || true)
    [ -z "$version" ] || [ "${version%%+*}" = "$TORCH" ] || { why="it is $version"; return 1; }
}
gpu=0
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then gpu=1; fi
case ${GPU:-} in 0 | 1) gpu=$GPU ;; esac # said by the user, on a login node for example
want="torch $TORCH gpu $gpu"
fetch=()
nvrtc_lib=.libtorch/nvidia/cu13/lib
if [ -n "${LIBTORCH:-}" ]; then
    why="it has no include/ or no lib/libtorch_cpu.so"
    libtorch_in "$LIBTORCH" || die "LIBTORCH=$LIBTORCH is not libtorch $TORCH: $why" "name the folder of an unpacked libtorch $TORCH (C++11 ABI), or unset LIBTORCH and have it fetched"
    say "using libtorch from LIBTORCH=$LIBTORCH"
else
    have=$(cat "$MARK" 2>/dev/null || true)
    if { [ "$have" != "$want" ] && [ "$have" != "torch $TORCH gpu 1" ]; } || ! libtorch_in .libtorch/torch; then
        fetch=(libtorch)
    elif [ ! -e $nvrtc_lib/libnvrtc.so.13 ]; then
        fetch=(nvrtc) # a set-up made before it was needed
    fi
fi

# --- system packages -------------------------------------------------------------------------------
# Required packages, and optional ones by what they are for.
required=()
has compilers || required+=(g++)
if ((${#fetch[@]})); then has pip || required+=(python3-pip); fi
mpi=()
has mpicc || mpi+=(libopenmpi-dev)
has libclang || mpi+=(libclang-dev) # bindgen reads MPI's header with it
has mpirun || mpi+=(openmpi-bin)
slurm=()
services=()
# A real Slurm for the tests of jobs; not on a machine that belongs to a cluster already.
if [ ! -e /etc/slurm/slurm.conf ] && ! has slurm; then
    slurm=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libpmix2 iproute2)
    for service in munge slurmctld slurmd; do
        dpkg-query -W -f '${Status}' $service 2>/dev/null | grep -q ' installed' || services+=("$service")
    done
fi

# Installs packages; those that bring services must not start them: the tests start their own, with a
# configuration of their own. 101 is how policy-rc.d says no.
apt_install() {
    local policy=/usr/sbin/policy-rc.d failed=0
    if [ -e $policy ]; then policy=; else
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        # The file also goes when set-up is interrupted.
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >.setup.log 2>&1 9>&- || failed=1
    [ -z "$policy" ] || { rm -f $policy && trap - EXIT; }
    if ((failed)); then say "apt-get could not install $*: $(grep -m 1 '^E:' .setup.log || tail -n 1 .setup.log)"; fi
    rm -f .setup.log
    return $failed
}

packages=("${required[@]}" "${mpi[@]}" "${slurm[@]}")
if ((${#packages[@]})); then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing ${packages[*]}"
        apt-get -o DPkg::Lock::Timeout=300 update -qq >/dev/null 2>&1 9>&- || say "apt-get update failed; trying with the lists that are here"
        # One by one where all together fail: an optional package that does not exist must not take the others with it.
        if ! apt_install "${packages[@]}"; then
            if ((${#required[@]})); then apt_install "${required[@]}" || true; fi
            if ((${#mpi[@]})); then apt_install "${mpi[@]}" || true; fi
            if ((${#slurm[@]})); then apt_install "${slurm[@]}" || true; fi
        fi
        if ((${#services[@]})) && [ -d /run/systemd/system ]; then
            # Nor do they start with the machine, later.
            systemctl disable --now --quiet "${services[@]}" 2>/dev/null || true
        fi
    elif command -v apt-get >/dev/null; then
        say "ask an administrator for: sudo apt-get install -y --no-install-recommends ${packages[*]}"
    else
        say "this is not Debian or Ubuntu; there, these packages are used: ${packages[*]}"
    fi
fi
has compilers || die "no C and C++17 compiler that works: $why" "apt-get install g++ (or load your site's gcc module; CXX and CC name others)"
has mpi || say "building without backend mpi (for several nodes): $why"
has mpirun || say "no mpirun: fovea train --backend mpi cannot start ranks here ($why)"

# --- libtorch --------------------------------------------------------------------------------------
# Whether this folder's disk has so many MB left.
room() {
    local free
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
    [ -z "$free" ] || [ "$free" -ge "$1" ] || die "$free MB are free here ($PWD), $1 MB are needed: $2" "make room, or clone to another disk"
}

# Fetches wheels into a folder; "$@" are requirements and options. A user's pip.conf may ask for things that
# --target does not go with.
pip_fetch() {
    local python target=$1 platform=()
    shift
    python=$(scripts/try.sh pip) || die "$python" "apt-get install python3-pip, or set LIBTORCH to an unpacked libtorch $TORCH"
    # The wheels are only unpacked here, so a Python that they are not made for will do.
    if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))'; then
        platform=(--only-binary=:all: --implementation cp --python-version 3.12 --abi cp312)
        for tag in 2_28 2_27 2_24 2_17; do platform+=(--platform "manylinux_${tag}_$(uname -m)"); done
        platform+=(--platform "manylinux2014_$(uname -m)")
    fi
    # /tmp may be too small for a wheel of 530 MB.
    mkdir -p "$target/.tmp"
    TMPDIR="$PWD/$target/.tmp" PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$python" -m pip install -q --no-compile "${platform[@]}" --target "$target" "$@" 9>&- 2> >(grep -v "WARNING: Running pip as" >&2) || return 1
    rm -rf "$target/.tmp"
}

case ${fetch[*]:-} in
libtorch)
    say "fetching libtorch $TORCH (about 620 MB; 1.5 GB on disk)"
    rm -rf .libtorch.partial .libtorch
    room $((LIBTORCH_MB + BUILD_MB)) "libtorch and the build"
    if [ $gpu = 1 ]; then
        # The CUDA libraries of torch's own requirement list: cuBLAS, cuDNN, NCCL and so on.
        pip_fetch .libtorch.partial "torch==$TORCH"
    else
        # All that the CPU side of the CUDA build asks the loader for, and the compiler of the CUDA kernels.
        pip_fetch .libtorch.partial --no-deps \
            "torch==$TORCH" "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*" "$NVRTC"
    fi || die "pip could not fetch torch==$TORCH" "check the connection to PyPI (proxy: https_proxy, mirror: PIP_INDEX_URL), and that this is Linux on x86-64; or set LIBTORCH to an unpacked libtorch $TORCH"
    libtorch_in .libtorch.partial/torch || die "what pip fetched as torch==$TORCH is not a libtorch $TORCH" "see .libtorch.partial/torch; does a pip.conf name another index?"
    echo "$want" >.libtorch.partial/.complete
    mv .libtorch.partial .libtorch # last, so that a killed download is never taken for a complete one
    ;;
nvrtc)
    # Compiles the CUDA kernels, in their tests too; needs neither GPU nor driver.
    say "fetching NVRTC (90 MB)"
    rm -rf .libtorch/.nvrtc.partial
    pip_fetch .libtorch/.nvrtc.partial --no-deps "$NVRTC" ||
        die "pip could not fetch $NVRTC" "check the connection to PyPI; or set FOVEA_NVRTC to the libnvrtc.so of a CUDA 12 or 13 toolkit"
    mkdir -p $nvrtc_lib
    for file in .libtorch/.nvrtc.partial/nvidia/cu13/lib/*; do
        case $file in */libnvrtc.so.13) ;; *) mv -f "$file" $nvrtc_lib/ ;; esac
    done
    mv -f .libtorch/.nvrtc.partial/nvidia/cu13/lib/libnvrtc.so.13 $nvrtc_lib/ # last: it says that all is there
    rm -rf .libtorch/.nvrtc.partial
    ;;
esac
if [ -n "${LIBTORCH:-}" ] && [ ! -e "$LIBTORCH/../nvidia/cu13/lib/libnvrtc.so.13" ] && [ -z "${FOVEA_NVRTC:-}" ]; then
    say "no NVRTC beside $LIBTORCH; if the tests of kernels do not find one: python3 -m pip install '$NVRTC', and set FOVEA_NVRTC to its libnvrtc.so.13"
fi
