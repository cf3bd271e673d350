#!/bin/sh
# Concord and transformers side by side on this machine's GPU: the same shapes, one after the other, one table.
#
#   benches/gpu/run.sh [dinov3] [siglip2] [florence2] [molmo2] [molmo2-whole]      all but the last where none is named
#
# CONCORD     the binary (target/release/concord)          PYTHON       with torch and transformers (python3)
# OUT         where results go (target/gpu-bench)          GRAPHS       off | on | both (off)
# DTYPES      of Concord (bf16)                            SECONDS_EACH for which each work is repeated (3)
# MOLMO_PATH  a folder with a transformers that has Molmo2, put before Python's own for molmo2-whole
# LIMIT_S     after which a peer in one mode is given up (150)
#
# Writes GROUP.concord.json, GROUP.peers.jsonl and table.md. What earlier calls left in OUT is in the table too, so the
# groups may be run in several calls, and the table made again elsewhere: table.py OUT/*.json OUT/*.jsonl
set -eu
here=$(cd "$(dirname "$0")" && pwd)
concord=${CONCORD:-target/release/concord}
python=${PYTHON:-python3}
out=${OUT:-target/gpu-bench}
seconds=${SECONDS_EACH:-3}
limit=${LIMIT_S:-150}
mkdir -p "$out"
[ $# -gt 0 ] || set -- dinov3 siglip2 florence2 molmo2

for group in "$@"; do
    case $group in
    dinov3) arguments="--random dinov3-vitl16 --batch 1,8,32" ;;
    siglip2) arguments="--random siglip2-so400m-patch14-384 --batch 1,8,32" ;;
    florence2) arguments="--random florence2-large --tokens 20" ;;
    molmo2 | molmo2-whole) arguments="--random molmo2-8b --tokens 10" ;;
    *)
        echo "run.sh: $group: must be dinov3, siglip2, florence2, molmo2 or molmo2-whole" >&2
        exit 2
        ;;
    esac
    # Both groups of Molmo2 are one model of Concord, which need not be measured twice.
    ours=$out/${group%-whole}.concord.json
    if [ "$group" != molmo2-whole ] || [ ! -s "$ours" ]; then
        # shellcheck disable=SC2086  # the arguments are words
        "$concord" bench $arguments --dtype "${DTYPES:-bf16}" --device "${DEVICE:-cuda}" --graphs "${GRAPHS:-off}" \
            --seconds "$seconds" --json="$ours" || echo "run.sh: $group: concord bench ended with $?" >&2
    fi
    path=${PYTHONPATH:-}
    [ "$group" != molmo2-whole ] || path=${MOLMO_PATH:-}:$path
    PYTHONPATH=$path "$python" "$here/peers.py" --only "$group" --device "${DEVICE:-cuda}" --seconds "$seconds" \
        --limit-s "$limit" ${PEERS_OPTIONS:-} > "$out/$group.peers.jsonl" ||
        echo "run.sh: $group: some peers were not measured" >&2
done

status=0
"$python" "$here/table.py" "$out"/*.concord.json "$out"/*.peers.jsonl > "$out/table.md" || status=$?
cat "$out/table.md"
exit $status
