
# The scheduler's notice (USR1 ahead of the time limit, TERM at preemption) goes to the coordinator, once. The
# coordinator has all ranks finish one common last step, writes a checkpoint and leaves with code 85.
# INT (`scancel --batch --signal=INT JOB`) does the same, and the job does not come back.
noticed=
stopped=
coordinator=
told=
# shellcheck disable=SC2317 # traps call these
tell() {
    if [ -n "$coordinator" ] && [ "$told" != "$coordinator" ]; then
        told=$coordinator
        kill -USR1 "$coordinator" 2>/dev/null
    fi
}
# shellcheck disable=SC2317
notice() {
    trap : USR1 TERM # What comes after the first one says nothing new.
    noticed=$1
    tell
}
trap 'notice USR1' USR1
trap 'notice TERM' TERM
trap 'stopped=1; notice INT' INT
trap : CONT

alive() { kill -0 "$1" 2>/dev/null; }

# Waits until a process has ended, but not longer than so many seconds.
wait_for() {
    local end=$((SECONDS + $2))
    while alive "$1" && [ "$SECONDS" -lt "$end" ]; do sleep 0.2; done
}

# Ends a process that did not leave by itself.
end() {
    local signal
    for signal in TERM KILL; do
        alive "$1" || return 0
        echo "fovea: process $1 ($2) has not left: sending $signal" >&2
        kill -"$signal" "$1" 2>/dev/null
        wait_for "$1" $((patience / 2))
    done
}
