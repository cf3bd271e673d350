#!/bin/sh
# What `make demo` shows of the server: a verdict, the same out of the cache, and the votes fused again after an edit.
set -eu
cd "$(dirname "$0")/.."
concord="target/release/concord"
photograph="assets/road-work-far.jpg"
folder="$(mktemp -d)"
server=""
finish() {
    if [ -n "$server" ]; then kill "$server" 2> /dev/null && wait "$server" || true; fi
    rm -rf "$folder"
}
trap finish EXIT

# A copy, so that the edit below does not touch the file of the repository.
sed "s|\"models/nano|\"$PWD/models/nano|" ensemble.toml > "$folder/ensemble.toml"
echo "\$ concord serve --ensemble copy-of-ensemble.toml --listen 127.0.0.1:0"
"$concord" serve --ensemble "$folder/ensemble.toml" --listen 127.0.0.1:0 > "$folder/out" 2> "$folder/log" &
server=$!
tries=0
while ! grep -q "^ready at" "$folder/out"; do
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ] || ! kill -0 "$server" 2> /dev/null; then
        echo "the server did not start:" >&2
        cat "$folder/log" >&2
        exit 1
    fi
    sleep 0.1
done
cat "$folder/out"
address="$(sed -n 's/^ready at \([^ ]*\) .*/\1/p' "$folder/out")"

# The parts of a verdict that this is about.
show() {
    python3 -c '
import json, sys
verdict = json.load(sys.stdin)
if "label" not in verdict:
    sys.exit(f"no verdict: {verdict}")
votes = ", ".join("{model} {label} {probability:.1%} x {weight:.2f}".format(**vote) for vote in verdict["votes"])
label, probability, cache = verdict["label"], verdict["probability"], verdict["cache"]
milliseconds = verdict["milliseconds"]["total"]
print(f"  {label} {probability:.1%}   cache: {cache}   {milliseconds:.2f} ms   ({votes})")'
}
ask() {
    curl --silent --show-error --data-binary "@$photograph" "$address/v1/tasks/roadwork/classify" | show
}
forwards() {
    curl --silent --show-error "$address/metrics" | awk '/^concord_forwards_total/ { sum += $2 } END { print "  images run through a model so far:", sum }'
}

echo
echo "\$ curl --data-binary @$photograph $address/v1/tasks/roadwork/classify"
ask
forwards
echo
echo "the same again:"
ask
echo
echo "the weights of dinov3 and siglip2 in the copy are changed from 0.4 / 0.2 to 0.1 / 0.5; the server follows:"
sed -i 's/weights = { dinov3 = 0.4, siglip2 = 0.2, florence2 = 0.15/weights = { dinov3 = 0.1, siglip2 = 0.5, florence2 = 0.15/' "$folder/ensemble.toml"
tries=0
while ! curl --silent "$address/metrics" | grep -q 'config_reloads_total{outcome="applied"} 1'; do
    tries=$((tries + 1))
    [ "$tries" -le 100 ] || { echo "the edit was not followed" >&2; cat "$folder/log" >&2; exit 1; }
    sleep 0.1
done
ask
forwards
kill "$server"
wait "$server" || { echo "the server did not end well" >&2; exit 1; }
server=""
echo
echo "and it has ended: $(grep -c . "$folder/log") lines in its log"
