#!/bin/bash
# Written by `fovea submit`. To run it again, changed or not: sbatch /home/user/runs/first/slurm/job.sh
#SBATCH --job-name=fovea-first
#SBATCH --output=/home/user/runs/first/slurm/job-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:USR1@120
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=4
#SBATCH --time=4:00:00
#SBATCH --array=0-9%2

set -u
element=$SLURM_ARRAY_TASK_ID
# The last element has the whole array's id as SLURM_JOB_ID: this names one element only.
job=${SLURM_ARRAY_JOB_ID}_$element
base=/home/user/runs/first
run=$base/$element
config=$base/slurm/config.toml
fovea=(/home/user/bin/fovea)
options=(--out "$run" --set train.seed="$element" --set 'run.note='\''seed '"$element"''\''')
# Seconds that ranks and coordinator get to leave by themselves.
patience=20

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

# Lines NAME STATE. After a failure each node is asked whether it still starts processes: Slurm itself takes minutes to
# notice that one is gone.
node_states() {
    local states node
    states=$(sinfo -h -N -n "$SLURM_JOB_NODELIST" -o '%N %t')
    echo "$states"
    [ "$failures" -gt 0 ] || return 0
    for node in $(echo "$states" | cut -d' ' -f1 | sort -u); do
        if timeout 15 srun --overlap --mpi=none --nodes=1 --ntasks=1 --nodelist="$node" true >/dev/null 2>&1; then
            echo "$node up"
        else
            echo "$node down"
        fi &
    done
    wait
}

failures=0
code=0
while :; do
    # Which ranks start where: nodes may have gone since the last start. Code 2 says that the configuration is wrong.
    launch=()
    bind=
    finished=
    plan=$("${fovea[@]}" job plan "$config" "${options[@]}" \
        --node-states "$(node_states)" \
        --mpi-list "$(srun --mpi=list 2>&1)" --mpirun "$(mpirun --version 2>/dev/null)")
    code=$?
    [ "$code" = 0 ] || break
    eval "$plan" # sets launch (srun or mpirun, with options), bind (where the coordinator listens), finished
    [ -z "$finished" ] || break
    # Nothing has begun, so there is nothing to save.
    if [ -n "$noticed" ]; then
        code=85
        break
    fi

    # One srun starts all ranks, or one mpirun where Slurm cannot start MPI.
    "${launch[@]}" "${fovea[@]}" trainer "$run" --in-job &
    trainers=$!

    # The coordinator, which is started again when it was killed: the ranks wait for it.
    early=0
    while :; do
        left=$(squeue -h -j "$job" -o %L 2>/dev/null)
        begun=$SECONDS
        drain=$noticed
        "${fovea[@]}" coordinator "$run" --in-job ${bind:+--bind "$bind"} \
            ${drain:+--drain} ${left:+--time-left "$left"} &
        coordinator=$!
        # A notice that came in between has reached nobody yet.
        if [ -n "$drain" ]; then
            told=$coordinator
        elif [ -n "$noticed" ]; then
            tell
        fi
        while alive "$coordinator" && alive "$trainers"; do sleep 0.2; done

        # Without ranks it ends soon, when it is asked.
        wait_for "$coordinator" 3
        if alive "$coordinator"; then
            tell
            wait_for "$coordinator" "$patience"
            end "$coordinator" coordinator
        fi
        wait "$coordinator"
        code=$?
        coordinator=
        # Codes up to 128 are its own; above, a signal has ended it.
        if [ "$code" -le 128 ] || ! alive "$trainers"; then break; fi
        # One that is killed at once, again and again, is not helped by another start.
        if [ $((SECONDS - begun)) -ge 30 ]; then early=0; else early=$((early + 1)); fi
        if [ "$early" -ge 5 ]; then break; fi
        echo "fovea: the coordinator was killed (code $code): starting it again" >&2
    done

    # The ranks leave when the coordinator says so; srun ends those that do not.
    wait_for "$trainers" "$patience"
    end "$trainers" "${launch[0]}, the trainers"
    wait "$trainers"
    trainers_code=$?

    # Finished (0), requeue (85), start again here (75), give up (1, 2).
    "${fovea[@]}" job next "$run" --coordinator "$code" --trainers "$trainers_code" ${noticed:+--noticed "$noticed"}
    code=$?
    [ "$code" = 75 ] || break
    failures=$((failures + 1))
    # What fails at once may be better in a moment.
    begun=$SECONDS
    while [ -z "$noticed" ] && [ "$failures" -gt 1 ] && [ $((SECONDS - begun)) -lt 5 ]; do sleep 0.2; done
done

case $code in
    0 | 1 | 2 | 85) ;;
    *)
        echo "fovea: ended with code $code" >&2
        code=1
        ;;
esac
if [ "$code" = 85 ] && [ -n "$stopped" ]; then
    echo "fovea: stopped as asked; the same \`fovea submit\` goes on from the checkpoint" >&2
    exit 0
fi
if [ "$code" = 85 ]; then
    # A job that Slurm itself is ending has been cancelled, and must not come back, or preempted, and is in the queue
    # again already. Only the time limit leaves it to the job.
    case $(squeue -h -j "$job" -o '%T %r' 2>/dev/null) in
        'COMPLETING TimeLimit') ;;
        COMPLETING* | CANCELLED* | PREEMPTED* | PENDING*) exit 85 ;;
    esac
    # The only requeue. What a job does after it delays its next start.
    if scontrol requeue "$job"; then exit 0; fi
    echo "fovea: the job could not be requeued; submit it again with the same \`fovea submit\`" >&2
    echo "  help: where a site forbids requeueing, set requeue = \"chain\" in site.toml" >&2
fi
exit "$code"
