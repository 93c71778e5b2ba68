
# The copies go, before the job does.
if alive "$staging"; then
    kill -TERM "$staging" 2>/dev/null
    wait_for "$staging" 5
fi
end "$staging" staging
# Not of a job that Slurm has taken its nodes from: its next start finds them again, or removes them there.
case $(squeue -h -j "$job" -o %T 2>/dev/null) in
    PENDING | REQUEUE*) ;;
    *)
        "${on_each_node[@]}" "${fovea[@]}" stage --remove "$data" "${to[@]}" &
        staging=$!
        wait_for "$staging" 10
        end "$staging" "removing copies"
        ;;
esac
