# The jobs behind this one wait for it to end otherwise than with 0. When it has failed for good they are of no use.
if [ "$code" = 1 ] || [ "$code" = 2 ]; then
    if [ -r "$base/slurm/chain" ]; then
        mapfile -t chain < "$base/slurm/chain"
        scancel --state=PENDING "${chain[@]}"
    fi
fi
exit "$code"
