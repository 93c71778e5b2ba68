#!/usr/bin/env bash
# Tries whether this machine has what a part of Fovea needs: `scripts/try.sh PART` ends with 0 if so, else with 1 and
# the reason. Nothing is judged by the name of a file: programs are compiled, linked and run.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
PATH="$PATH:/usr/sbin:/sbin" # where the daemons are, which is not on every user's path

no() { printf '%s\n' "$*"; exit 1; }

# The lowest version of Rust, as Cargo.toml has it.
rust() {
    local need have
    have=$(cargo --version 2>&1) || no "cargo does not run: $(head -n 1 <<<"$have")"
    have=$(cut -d ' ' -f 2 <<<"$have")
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    [ "$(printf '%s\n' "$need" "${have%%-*}" | sort -V | head -n 1)" = "$need" ] || no "cargo $have is older than $need"
}

# rustc links with cc, libtorch is C++17.
compilers() {
    local cxx=${CXX:-c++} cc=${CC:-cc} scratch said
    scratch=$(mktemp -d) || no "no folder for temporary files in ${TMPDIR:-/tmp}"
    # shellcheck disable=SC2064
    trap "rm -rf '$scratch'" EXIT
    printf '#include <memory>\n#include <string>\nint main() { return *std::make_unique<std::string>("ok") != "ok"; }\n' >"$scratch/try.cpp"
    printf 'int main(void) { return 0; }\n' >"$scratch/try.c"
    said=$($cxx -std=c++17 -o "$scratch/try" "$scratch/try.cpp" 2>&1 && "$scratch/try" 2>&1) || no "$cxx: $(grep -m 1 -E 'error|not found|cannot' <<<"$said" || head -n 1 <<<"$said")"
    said=$($cc -o "$scratch/try" "$scratch/try.c" 2>&1) || no "$cc: $(grep -m 1 -E 'error|not found|cannot' <<<"$said" || head -n 1 <<<"$said")"
}

# A Python whose pip runs, by the name to call it with.
pip() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        if "$name" -m pip --version >/dev/null 2>&1; then echo "$name"; return 0; fi
    done
    no "no python3 with pip"
}

# An MPI that compiles and links, from whatever names its flags.
mpicc() {
    local said
    said=$(scripts/mpi-flags.sh 2>&1) || no "$(without_mpi <<<"$said")"
}
without_mpi() { sed 's/^no MPI to build with: //' | head -n 1; }

# bindgen reads C headers with libclang.
libclang() { local said; said=$(python3 scripts/libclang.py 2>&1) || no "$(tail -n 1 <<<"$said")"; }

# Backend mpi: an MPI, and its header read the way bindgen will.
mpi() {
    local said flags=() flag
    said=$(scripts/mpi-flags.sh 2>&1) || no "$(without_mpi <<<"$said")"
    while IFS= read -r flag; do case $flag in -I*) flags+=("$flag") ;; esac; done <<<"$said"
    said=$(python3 scripts/libclang.py mpi.h "${flags[@]}" 2>&1) || no "$(tail -n 1 <<<"$said")"
}

# What the tests of backend mpi start ranks with.
mpirun() { command mpirun --version >/dev/null 2>&1 || no "mpirun does not run"; }

# The daemons and clients that the tests of jobs start. The clients ask the network for a configuration
# unless they are given one.
slurm() {
    local program said scratch
    scratch=$(mktemp -d) || no "no folder for temporary files in ${TMPDIR:-/tmp}"
    # shellcheck disable=SC2064
    trap "rm -rf '$scratch'" EXIT
    printf 'ClusterName=try\nSlurmctldHost=localhost\n' >"$scratch/slurm.conf"
    for program in "slurmctld -V" "slurmd -V" "sbatch -V" "srun -V" "munged --version" "ip -V"; do
        # shellcheck disable=SC2086
        said=$(SLURM_CONF="$scratch/slurm.conf" $program 2>&1) || no "$program: $(head -n 1 <<<"$said")"
    done
}

# Nodes as machines of their own: network, process and mount namespaces with a bridge between them.
namespaces() {
    local said
    said=$(unshare --net --uts --mount --ipc --pid --fork --mount-proc ip link add probe type bridge 2>&1) || no "${said:-unshare does not run}"
}

case ${1:-} in
rust | compilers | pip | mpicc | libclang | mpi | mpirun | slurm | namespaces) "$1" ;;
*) no "try.sh: no part '${1:-}'" ;;
esac
