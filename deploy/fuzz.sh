#!/bin/sh
# Fuzzes the request decoder, the image decoders and the configuration, each for so many seconds, at the same time.
#
#     deploy/fuzz.sh [SECONDS]        (600 by default; needs no nightly toolchain)
set -eu
cd "$(dirname "$0")/.."
seconds="${1:-600}"
command -v cargo-fuzz > /dev/null || cargo install --locked cargo-fuzz
# cargo-fuzz replaces the flags that tell the binary where libtorch is.
LD_LIBRARY_PATH="$PWD/.libtorch/torch/lib:$PWD/.libtorch/nvidia/cu13/lib"
LIBTORCH="$PWD/.libtorch/torch"
export LD_LIBRARY_PATH LIBTORCH
corpus="target/fuzz"
mkdir -p "$corpus/request" "$corpus/image" "$corpus/configuration"
cp ensemble.toml tests/fixtures/config/*.toml "$corpus/configuration"
for image in models/tests/fixtures/images/*.* assets/road-work-far.jpg; do
    # The first byte says what kind of body it is.
    { printf '\0'; cat "$image"; } > "$corpus/request/$(basename "$image")"
    cp "$image" "$corpus/image"
done
printf '\001{"image": "data:image/png;base64,aGVsbG8="}' > "$corpus/request/json"
printf '\002--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nhello\r\n--b--\r\n' > "$corpus/request/form"
# No sanitizer: they need a nightly toolchain, and only C code has memory errors to find here.
cargo fuzz build --fuzz-dir tests/fuzz --target-dir target/fuzz-build --sanitizer none
host="$(rustc -vV | sed -n 's/^host: //p')"
run() {
    "target/fuzz-build/$host/release/$1" "$corpus/$1" -artifact_prefix="$corpus/$1-" -max_total_time="$seconds" \
        -rss_limit_mb=4096 -timeout=20 -max_len=65536 > "$corpus/$1.log" 2>&1
}
run request & request=$!
run image & image=$!
run configuration & configuration=$!
status=0
wait "$request" || status=1
wait "$image" || status=1
wait "$configuration" || status=1
for target in request image configuration; do
    echo "$target: $(tail -n 1 "$corpus/$target.log"), $(find "$corpus/$target" -type f | wc -l) inputs kept"
done
exit "$status"
