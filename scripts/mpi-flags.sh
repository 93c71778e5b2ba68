#!/usr/bin/env bash
# The compiler flags of this machine's MPI, one a line, once three lines have been compiled and linked with
# them; else why not, and exit 1. The crate `mpi` asks the same sources for them.
# MPICC, MPI_PKG_CONFIG (a .pc file or its name), CRAY_MPICH_DIR and PKG_CONFIG_PATH choose the MPI.
set -uo pipefail

compiler=${CC:-cc}
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
printf '#include <mpi.h>\nint main(int argc, char **argv) {\n    return MPI_Init(&argc, &argv) || MPI_Finalize();\n}\n' >"$scratch/try.c"

why=()
# Tries what COMMAND... prints; xargs takes the quotes away.
try() {
    local text flags=() flag
    command -v "$1" >/dev/null || { why+=("there is no $1"); return 1; }
    text=$("$@" 2>"$scratch/said") || { why+=("$* fails: $(head -n 1 "$scratch/said")"); return 1; }
    while IFS= read -r flag; do
        case $flag in -I?* | -L?* | -l?*) flags+=("$flag") ;; esac
    done < <(printf '%s' "$text" | xargs printf '%s\n' 2>/dev/null)
    if $compiler -o "$scratch/try" "$scratch/try.c" "${flags[@]}" 2>"$scratch/said"; then
        printf '%s\n' "${flags[@]}"
        exit 0
    fi
    why+=("with the flags of '$*', three lines do not compile and link: $(grep -m 1 -E 'error|cannot|undefined' "$scratch/said" || head -n 1 "$scratch/said")")
    return 1
}

if ! command -v "${compiler%% *}" >/dev/null; then
    why+=("there is no C compiler ($compiler)")
elif [ -n "${MPI_PKG_CONFIG:-}" ]; then
    try pkg-config --cflags --libs "$MPI_PKG_CONFIG"
elif [ -n "${MPICC:-}" ]; then
    try "$MPICC" -show
else
    [ -z "${CRAY_MPICH_DIR:-}" ] || try pkg-config --cflags --libs "$CRAY_MPICH_DIR/lib/pkgconfig/mpich.pc"
    try mpicc -show
    for name in ompi mpich; do
        if command -v pkg-config >/dev/null && pkg-config --exists $name; then try pkg-config --cflags --libs $name; fi
    done
fi
printf 'no MPI to build with: %s\n' "${why[@]}" >&2
exit 1
