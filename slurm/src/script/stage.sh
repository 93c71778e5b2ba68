
# Copies of the data go to each node's own disk in the background; training begins on the shared file system.
on_each_node=(srun --overlap --mpi=none --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES"
    --ntasks-per-node=1 --kill-on-bad-exit=0)
"${on_each_node[@]}" "${fovea[@]}" stage "$data" "${to[@]}" &
staging=$!
