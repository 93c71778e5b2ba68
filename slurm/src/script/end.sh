
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
