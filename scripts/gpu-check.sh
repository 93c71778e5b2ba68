#!/bin/sh
# Everything that Fovea can show and measure on a host with a GPU, in one command: no network, nothing is built.
#
#   FOVEA=target/release/fovea     the program (built without feature mpi where the host has no MPI)
#   LIBTORCH_LIB=DIR               folder of libtorch.so; else that of python3's torch, else the program's own
#   OUT=gpu-check-out              where everything goes: a log per item, summary.json
#   FOVEA_CHECK_MINUTES=10         what does not fit in is left out
#   FOVEA_CHECK_DEVICE=cpu         small, on the CPU, without what needs a GPU: shows that this script works
#   FOVEA_CHECK_ONLY="step epoch"  these items only
#
# Exit: 0 nothing failed, 1 something did, 2 it cannot begin.
#
# shellcheck disable=SC2317 # functions that are called as items, by name
set -u
cd "$(dirname "$0")/.." || exit 2
FOVEA=${FOVEA:-target/release/fovea}
OUT=${OUT:-gpu-check-out}
DEVICE=${FOVEA_CHECK_DEVICE:-cuda}
MINUTES=${FOVEA_CHECK_MINUTES:-10}
ONLY=${FOVEA_CHECK_ONLY:-}
PYTHON=${PYTHON:-python3}
TORCH=2.11.0

die() {
    printf 'gpu-check: error: %s\n  help: %s\n' "$1" "$2" >&2
    exit 2
}

# The first number or word that FILE has for KEY, at the top level of pretty-printed JSON or, with a third argument, at
# that indentation.
field() {
    sed -n "s/^${3:-  }\"$2\": *\"\{0,1\}\([^\",]*\).*/\1/p" "$1" 2>/dev/null | awk 'NR == 1'
}

# NUMBER with so many DECIMALS.
round() {
    awk -v x="$1" -v d="$2" 'BEGIN { printf "%.*f", d, x }'
}

# A OP B for numbers that may not be there.
holds() {
    awk -v a="$1" -v b="$3" "BEGIN { exit !(a != \"\" && b != \"\" && a + 0 $2 b + 0) }"
}

# |A - B| / |B| is at most LIMIT.
close_to() {
    awk -v a="$1" -v b="$2" -v limit="$3" 'BEGIN {
        if (a == "" || b == "") exit 1
        off = a - b; if (off < 0) off = -off; size = b < 0 ? -b : b
        exit !(off <= limit * size) }'
}

# --- what runs in a process of its own, so that a time limit ends it --------------------------------------------------

prepare_data() {
    rm -rf "$OUT/raw" "$OUT/data"
    "$FOVEA" synth "$OUT/raw" --images 16 --size 256 && "$FOVEA" prepare "$OUT/raw" "$OUT/data" --size 256 --patch 64
}

# train NAME RANKS BACKEND EPOCHS
train() {
    rm -rf "$OUT/run-$1"
    "$FOVEA" train --preset demo --data "$OUT/data" --out "$OUT/run-$1" --device "$DEVICE" --ranks "$2" --backend "$3" \
        --set train.epochs="$4" --set train.precision=f32 --set train.threads_per_rank=1 --set data.global_size=64 \
        --set schedule.warmup_steps=0 --set eval.every_epochs="${EVERY:-1}" --set early_stopping.patience=0 || return
    "$FOVEA" status "$OUT/run-$1" --json >"$OUT/run-$1.json"
}

# One of two ranks is killed in the middle. The run has to go on without it or with another one, and use every sample once.
# kill_one BACKEND EPOCHS
kill_one() {
    EVERY=1000 train "kill-$1" 2 "$1" "$2" &
    launcher=$!
    victim=
    while [ -z "$victim" ]; do
        kill -0 "$launcher" 2>/dev/null || {
            echo "the run was over before a rank could be killed"
            return 1
        }
        sleep 0.1
        "$FOVEA" status "$OUT/run-kill-$1" --json >"$OUT/kill-$1-status.json" 2>/dev/null || continue
        holds "$(field "$OUT/kill-$1-status.json" step)" '>=' 3 || continue
        victim=$(awk '/"pid":/ { gsub(/[^0-9]/, ""); pid = $0 } /"rank": 1,/ { print pid; exit }' "$OUT/kill-$1-status.json")
    done
    echo "killing rank 1, pid $victim, at step $(field "$OUT/kill-$1-status.json" step)"
    kill -9 "$victim" || return
    wait "$launcher" || return
    "$FOVEA" audit "$OUT/run-kill-$1" --json >"$OUT/kill-$1-audit.json" || return
    holds "$(field "$OUT/kill-$1-audit.json" generations)" '>=' 2 || {
        echo "nobody noticed"
        return 1
    }
}

# Samples of the utilisation that nvidia-smi tells, while the arguments run; the median goes to a file.
watched() {
    nvidia-smi --query-gpu=utilization.gpu,clocks.sm,power.draw --format=csv,noheader,nounits -lms 200 \
        >"$OUT/utilisation.csv" 2>/dev/null &
    smi=$!
    "$@"
    rc=$?
    kill "$smi" 2>/dev/null
    return "$rc"
}

case ${1:-} in
--item)
    shift
    "$@"
    exit
    ;;
esac

# --- what there is ----------------------------------------------------------------------------------------------------

case $DEVICE in
cuda)
    if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
        die "this host has no GPU that nvidia-smi knows" "run it on one that has; FOVEA_CHECK_DEVICE=cpu tries the script on the CPU"
    fi
    ;;
cpu) ;;
*) die "FOVEA_CHECK_DEVICE=$DEVICE" "cuda or cpu" ;;
esac
[ -x "$FOVEA" ] || die "$FOVEA: no program here" "build it (make build) on a machine with Rust, bring it along, and set FOVEA"
FOVEA=$(realpath "$FOVEA")
mkdir -p "$OUT" || die "$OUT: cannot be made" "set OUT to a folder that can be written"
OUT=$(realpath "$OUT")
case $MINUTES in '' | *[!0-9]*) die "FOVEA_CHECK_MINUTES=$MINUTES" "a whole number of minutes" ;; esac
rm -f "$OUT"/*.log "$OUT"/*.json "$OUT"/*.csv

version=
if [ -n "${LIBTORCH_LIB:-}" ]; then
    lib=$LIBTORCH_LIB
else
    # Where python3 has torch, without loading it.
    lib=$("$PYTHON" -c 'from importlib.util import find_spec as f
s = f("torch"); print(s.submodule_search_locations[0] + "/lib" if s else "")' 2>/dev/null)
fi
if [ -n "$lib" ]; then
    [ -e "$lib/libtorch_cpu.so" ] || die "$lib: no libtorch_cpu.so there" "set LIBTORCH_LIB to the folder of libtorch $TORCH's libraries"
    version=$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$lib/../version.py" 2>/dev/null || true)
    [ -n "$version" ] || version=$(cat "$lib/../build-version" 2>/dev/null)
    case $version in
    "$TORCH"*) ;;
    *) die "$lib: libtorch is of version ${version:-unknown}, not $TORCH" "set LIBTORCH_LIB to the folder of libtorch $TORCH's libraries" ;;
    esac
    LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi
"$FOVEA" --version >"$OUT/version.log" 2>&1 ||
    die "$FOVEA does not start: $(head -n 1 "$OUT/version.log")" "ldd $FOVEA says what is missing; LIBTORCH_LIB is where libtorch is looked for first"

# --- running items ----------------------------------------------------------------------------------------------------

begun=$(date +%s)
ends=$((begun + 60 * MINUTES))
failed=0
rows=$OUT/rows.tmp
: >"$rows"
export FOVEA OUT FOVEA_CHECK_DEVICE="$DEVICE"

# row ITEM VERDICT SECONDS WHY NUMBER
row() {
    printf '%s|%s|%s|%s|%s\n' "$1" "$2" "$3" "$(printf '%s' "$4" | tr '|\n"\134' '    ' | cut -c 1-160)" "$5" >>"$rows"
    printf '%-16s %-8s %5s s  %s %s\n' "$1" "$2" "$3" "$5" "$4"
}

# Whether an item is wanted.
wanted() {
    [ -z "$ONLY" ] && return
    case " $ONLY " in *" $1 "*) return 0 ;; esac
    return 1
}

skip() { wanted "$1" && row "$1" skipped 0 "$2" ""; }

# item NAME LIMIT COMMAND...: verdict in $verdict (passed, failed, skipped or none), seconds in $took, reason in $why.
item() {
    name=$1 limit=$2
    shift 2
    verdict=none took=0 why='' rc=0
    wanted "$name" || return 1
    left=$((ends - $(date +%s)))
    if [ $left -lt 5 ]; then
        verdict=skipped why="no time is left of $MINUTES minutes"
        return 1
    fi
    [ $left -lt "$limit" ] && limit=$left
    start=$(date +%s)
    timeout -k 10 "$limit" "$@" >"$OUT/$name.out.json" 2>"$OUT/$name.log"
    rc=$?
    took=$(($(date +%s) - start))
    case $rc in
    0)
        verdict=passed
        return 0
        ;;
    124 | 137) verdict=failed why="not done after $limit s" ;;
    *) verdict=failed why="exit code $rc: $(grep -v '^ *$' "$OUT/$name.log" | tail -n 2 | head -n 1)" ;;
    esac
    return 1
}

# Writes down the newest item; a number that is shown with it.
done_with() {
    [ $verdict = none ] && return
    [ $verdict = failed ] && failed=1
    row "$name" "$verdict" "$took" "$why" "${1:-}"
}

# fail WHY: what ran through was wrong.
fail() { verdict=failed why=$1; }

if [ "$DEVICE" = cuda ]; then
    # Patches of 128 px; 100 of an image are two times 50, so that all steps are alike.
    sizes="--size 1280 --patch 128 --global-size 224 --patches 50"
    per_step=${FOVEA_CHECK_IMAGES:-64} set_images=1841 steps=30 kill_epochs=60 tolerance=0.05
else
    sizes="--size 256 --patch 64 --global-size 64 --patches 8"
    per_step=2 set_images=4 steps=3 kill_epochs=4 tolerance=0
fi
work="--device $DEVICE $sizes"

# --- items ------------------------------------------------------------------------------------------------------------

if [ "$DEVICE" = cuda ]; then
    item facts 30 nvidia-smi --query-gpu=index,name,driver_version,compute_cap,memory.total,clocks.sm,clocks.max.sm,power.limit --format=csv
    done_with "$(tail -n 1 "$OUT/facts.out.json" 2>/dev/null | cut -d, -f 2,3 | tr -d ,)"
    item kernels 90 "$FOVEA" bench kernels --json
    done_with "copy $(field "$OUT/kernels.out.json" copy_gb_s | cut -d. -f 1) GB/s"
    item check 150 "$FOVEA" gpu-check --json
    wrong=$(awk -F'"' '/^      "name":/ { name = $4 } /^      "passed": false/ { printf "%s; ", name }' "$OUT/check.out.json" 2>/dev/null)
    [ -n "$wrong" ] && why="not as on the CPU: $wrong"
    done_with "$(grep -c '^      "passed": true' "$OUT/check.out.json" 2>/dev/null) comparisons passed"
else
    for name in facts kernels check; do skip $name "needs a GPU"; done
fi

item data 60 sh "$0" --item prepare_data
done_with ""

item train-1 90 sh "$0" --item train 1 1 local 3 && why="loss $(round "$(field "$OUT/run-1.json" loss)" 6)"
done_with ""

# Ranks that end have compared their weights: a run whose ranks differ fails.
for backend in local nccl; do
    if [ $backend = nccl ] && [ "$DEVICE" = cpu ]; then
        skip train-2-nccl "needs a GPU"
        continue
    fi
    if item train-2-$backend 120 sh "$0" --item train 2-$backend 2 $backend 3; then
        one=$(field "$OUT/run-1.json" loss) two=$(field "$OUT/run-2-$backend.json" loss)
        why="loss $(round "$two" 6), of one rank $(round "$one" 6)"
        if [ "$(field "$OUT/run-1.json" weights_blake3 '    ')" = "$(field "$OUT/run-2-$backend.json" weights_blake3 '    ')" ]; then
            why="$why, weights the same bits"
        elif ! close_to "$two" "$one" $tolerance; then
            fail "$why: further apart than $tolerance"
        fi
    fi
    done_with ""
done

for backend in local nccl; do
    if [ $backend = nccl ] && [ "$DEVICE" = cpu ]; then
        skip kill-nccl "needs a GPU"
        continue
    fi
    audit=$OUT/kill-$backend-audit.json
    if item kill-$backend 120 sh "$0" --item kill_one $backend $kill_epochs; then
        used=$(awk '/"used_once":/ { gsub(/[^0-9]/, ""); n += $0 } END { print n + 0 }' "$audit")
        expected=$(awk '/"expected":/ { gsub(/[^0-9]/, ""); n += $0 } END { print n + 0 }' "$audit")
        why="$used of $expected samples once"
        [ "$used" = "$expected" ] || fail "$why"
    fi
    done_with "$(field "$audit" generations) generations"
done

# The better of two.
best() { awk -v a="$1" -v b="$2" 'BEGIN { print a == "" || (b != "" && b + 0 < a + 0) ? b : a }'; }

# Plainly, then as CUDA graphs; ours is the better median.
ours=
for graphs in "" --cuda-graphs; do
    [ -n "$graphs" ] && [ "$DEVICE" = cpu ] && { skip step-graphs "needs a GPU"; continue; }
    # shellcheck disable=SC2086 # several words
    item step${graphs:+-graphs} 90 sh "$0" --item watched "$FOVEA" bench step $work $graphs --images "$per_step" \
        --virtual-shards 1 --steps $steps --json
    found=$OUT/$name.out.json
    [ $verdict = none ] && continue
    median=$(sed -n 's/.*"median": *\([0-9.]*\).*/\1/p' "$found" | awk 'NR == 1')
    busy=$(sort -n "$OUT/utilisation.csv" 2>/dev/null | awk -F, '{ v[NR] = $1 } END { if (NR) print ", nvidia-smi: " v[int((NR + 1) / 2)] " % busy" }')
    [ $verdict = passed ] && why="$(field "$found" patches_per_s | cut -d. -f 1) patches/s, $(round "$(field "$found" tflop_per_s)" 3) TFLOP/s$busy"
    ours=$(best "$ours" "$median")
    done_with "${median:+$(round "$median" 2) ms}"
done

seconds=
for graphs in "" --cuda-graphs; do
    [ -n "$graphs" ] && [ "$DEVICE" = cpu ] && { skip epoch-graphs "needs a GPU"; continue; }
    # shellcheck disable=SC2086 # several words
    item epoch${graphs:+-graphs} 120 "$FOVEA" bench epoch $work $graphs --images $set_images --images-per-step "$per_step" \
        --virtual-shards 1 --json
    found=$OUT/$name.out.json
    [ $verdict = none ] && continue
    took_s=$(field "$found" seconds)
    [ $verdict = passed ] && why="$(field "$found" patches_per_s | cut -d. -f 1) patches/s, peak $(field "$found" peak_bytes | awk '{ printf "%.1f GB", $1 / 1e9 }')"
    seconds=$(best "$seconds" "$took_s")
    done_with "${took_s:+$(round "$took_s" 2) s}"
done

if wanted pytorch; then
    # shellcheck disable=SC2086 # several words
    item pytorch 180 "$PYTHON" bench/gpu.py $work --images "$per_step" --set-images $set_images --steps $steps --epoch \
        --mode "${FOVEA_CHECK_PYTORCH:-$([ "$DEVICE" = cuda ] && echo both || echo eager)}"
    [ "$rc" = 3 ] && verdict=skipped why=$(cat "$OUT/pytorch.out.json")
    theirs=$(field "$OUT/pytorch.out.json" best_step_ms)
    epoch=$(field "$OUT/pytorch.out.json" best_epoch_s)
    if [ $verdict = passed ] && [ -n "$ours" ] && [ -n "$seconds" ]; then
        why="ratio $(awk -v a="$theirs" -v b="$ours" 'BEGIN { printf "%.2f", a / b }') step, $(awk -v a="$epoch" -v b="$seconds" 'BEGIN { printf "%.2f", a / b }') epoch"
    fi
    done_with "${theirs:+$(round "$theirs" 2) ms}"
fi

if [ "$DEVICE" = cuda ] && [ "$(nvidia-smi -L | wc -l)" -gt 1 ]; then
    gpus=$(nvidia-smi -L | wc -l)
    item allreduce 90 "$FOVEA" bench allreduce --backend nccl --ranks "$gpus" --to 256M --json
    done_with "$(awk '/"busbw_gb_s":/ { gsub(/[^0-9.]/, ""); n = $0 } END { if (n) printf "%.1f GB/s bus", n }' "$OUT/allreduce.out.json")"
    # shellcheck disable=SC2086 # several words
    item scaling 180 "$FOVEA" bench scaling $work --images "$per_step" --virtual-shards 1 --json "$OUT/scaling.json" --plot "$OUT/scaling.png"
    done_with "$(awk '/"efficiency":/ { gsub(/[^0-9.]/, ""); n = $0 } END { if (n) printf "%.0f %% strong", 100 * n }' "$OUT/scaling.json" 2>/dev/null)"
else
    for name in allreduce scaling; do skip $name "needs several GPUs"; done
fi

# Last: they are slow, and what they look at has passed without them.
for tool in memcheck racecheck; do
    if [ "$DEVICE" = cpu ]; then
        skip $tool "needs a GPU"
    elif ! command -v compute-sanitizer >/dev/null; then
        skip $tool "compute-sanitizer is not installed"
    else
        item $tool 120 compute-sanitizer --tool $tool --error-exitcode 9 \
            "$FOVEA" gpu-check --cases 3 --kernels-only --json
        why="${why:-$(grep 'ERROR SUMMARY\|RACECHECK SUMMARY' "$OUT/$tool.out.json" | tail -n 1)}"
        grep -q 'Device not supported' "$OUT/$tool.out.json" "$OUT/$tool.log" 2>/dev/null && verdict=skipped why="compute-sanitizer: device not supported here"
        done_with ""
    fi
done

[ -s "$rows" ] || die "FOVEA_CHECK_ONLY=$ONLY: no such item" "docs/gpu.md lists them"

# --- all of it --------------------------------------------------------------------------------------------------------

{
    printf '{\n  "device": "%s",\n  "seconds": %s,\n  "libtorch": "%s",\n  "passed": %s,\n  "items": [\n' \
        "$DEVICE" $(($(date +%s) - begun)) "${version:-of the program}" "$([ $failed = 0 ] && echo true || echo false)"
    awk -F'|' '{ printf "%s    {\"item\": \"%s\", \"verdict\": \"%s\", \"seconds\": %s, \"why\": \"%s\", \"number\": \"%s\"}", (NR > 1 ? ",\n" : ""), $1, $2, $3, $4, $5 } END { print "" }' "$rows"
    printf '  ]\n}\n'
} >"$OUT/summary.json"

printf '\n%-16s %-8s %7s  %-28s %s\n' item verdict seconds number why
awk -F'|' '{ printf "%-16s %-8s %7s  %-28s %s\n", $1, $2, $3, $5, $4 }' "$rows"
rm -f "$rows"
printf '\n%s/summary.json\n' "$OUT"
exit $failed
