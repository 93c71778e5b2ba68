
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
    @LAUNCH@ &
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
