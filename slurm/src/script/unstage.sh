
# The copies go, before the job does.
if alive "$staging"; then
    kill -TERM "$staging" 2>/dev/null
    wait_for "$staging" 5
fi
end "$staging" staging
"${on_each_node[@]}" "${fovea[@]}" stage --remove "$data" "${to[@]}" &
staging=$!
wait_for "$staging" 10
end "$staging" "removing copies"
