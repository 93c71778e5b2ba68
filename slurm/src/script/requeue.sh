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
