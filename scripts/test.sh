#!/usr/bin/env bash
# All tests, with the cargo features given as words, then the ten slowest. With cargo-nextest where it is installed: tests that
# wait run beside tests that compute (.config/nextest.toml); else with cargo test, one binary after the other.
# FOVEA_TEST_RUNNER=cargo takes cargo test anyway.
set -euo pipefail
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
TARGET=${CARGO_TARGET_DIR:-target}
words=(--release --locked --workspace "$@")

# All nodes of the tests are on this machine. Open MPI asks the kernel's routing tables whether two addresses reach each other,
# and version 5 finds no pair where those lack the machine's own IPv6 network (seen on Debian 13).
export OMPI_MCA_reachable=${OMPI_MCA_reachable:-^netlink}

# Tests of jobs on Slurm need its packages, those of its nodes as machines of their own need root as well. Here
# they are left out where that is missing; the tests by themselves fail there.
if ! why=$(scripts/try.sh slurm); then
    echo "make: without the tests of jobs: no Slurm that runs here ($why); scripts/setup.sh names its packages"
    export FOVEA_TEST_SLURM=off
elif ! why=$(scripts/try.sh namespaces); then
    echo "make: without the tests of cut links and dead machines, which need root: $why"
    export FOVEA_TEST_NAMESPACES=off
fi

# Reads all of its input: a reader that leaves early (head) ends the writer by a signal, which pipefail takes for a failure.
slowest() { printf '\nthe ten slowest tests\n' && sort -rn | awk 'NR <= 10 { printf "%8.1f s  %s\n", $1, substr($0, index($0, " ") + 1) }'; }

began=$SECONDS
failed=0
if [ "${FOVEA_TEST_RUNNER:-}" != cargo ] && $CARGO nextest --version >/dev/null 2>&1; then
    report=$TARGET/nextest/default/junit.xml
    rm -f "$report"
    # Places for the lanes that wait, beside those that compute.
    export NEXTEST_TEST_THREADS=${NEXTEST_TEST_THREADS:-$(($(nproc) + 3))}
    $CARGO nextest run "${words[@]}" || failed=$?
    if [ -e "$report" ]; then
        sed -nE 's/.*<testcase name="([^"]*)" classname="([^"]*)".* time="([0-9.]+)".*/\3 \2 \1/p' "$report" | slowest
    fi
else
    log=$TARGET/tests.log
    mkdir -p "$TARGET"
    # The harness tells times to a nightly compiler's name only; the variable must reach the tests, not the compiler.
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    env "CARGO_TARGET_${host}_RUNNER=env RUSTC_BOOTSTRAP=1" \
        $CARGO test "${words[@]}" --lib --bins --tests --no-fail-fast -- -Z unstable-options --report-time 2>&1 | tee "$log" || failed=$?
    sed -nE 's/^test (.*) \.\.\. ok <([0-9.]+)s>$/\2 \1/p' "$log" | slowest
fi
[ "$failed" = 0 ] || exit "$failed"
$CARGO test "${words[@]}" --doc
echo "all tests passed in $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s, building them included"
