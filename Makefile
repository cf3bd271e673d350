# Concord's commands. `make help` lists them.

export CONCORD_DATA ?= ../shared/data
CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help setup tools reference build demo test gpu-test gpu-binary bench bench-image bench-micro fuzz lint fmt doc deny clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  LIBTORCH=/path or LIBTORCH_USE_PYTORCH=1 uses a libtorch 2.11.0 that is there (with CUDA, say)."
	@echo "  CONCORD_DATA=/path names the folder of the GTSRB archives that some tests measure on."

setup: ## put libtorch 2.11.0 into .libtorch (545 MB, once)
	@deploy/tools.sh nasm || echo "without nasm JPEGs are decoded more slowly" >&2
	@python3 deploy/libtorch.py

tools: ## install redis-server, which the tests start
	@deploy/tools.sh redis-server

reference: ## put transformers into .reference, for parity fixtures and one test (600 MB, once)
	@python3 deploy/reference.py

build: setup ## build target/release/concord
	$(CARGO) build --release --locked

demo: build ## classify the images in assets/, then serve: verdict, cache hit, votes fused again
	@echo
	target/release/concord classify --task roadwork assets
	@echo
	@deploy/tools.sh curl
	@deploy/demo.sh

# One OpenMP thread per process: tests run in parallel, and threads that wait for each other at every small operation
# become many times slower when the cores are busy.
test: setup tools ## run all tests (fetches transformers too; what is missing is left out, or fails where CI is set)
	@$(MAKE) --no-print-directory reference || echo "transformers could not be fetched" >&2
	OMP_NUM_THREADS=1 $(CARGO) test --release --locked --workspace

gpu-test: setup ## run the tests that need a GPU (models/tests/gpu.rs); without one, each is left out
	OMP_NUM_THREADS=1 $(CARGO) test --release --locked -p concord-models --test gpu -- --nocapture

gpu-binary: setup ## build target/gpu-tests: the same as a program, for a machine with a GPU and without Rust
	$(CARGO) test --release --locked -p concord-models --test gpu --no-run
	strip -o target/gpu-tests "$$(ls -t target/release/deps/gpu-* | grep -v '\.d$$' | head -1)"

bench: setup ## measure the server under load: what it adds to its models, and overload of the shipped ensemble (a table, and JSON; about 5 minutes)
	@deploy/tools.sh wrk
	$(CARGO) bench --locked --bench load

bench-image: setup ## decode and preprocess a 12-megapixel JPEG, exact and fast; what fast does to votes
	$(CARGO) bench --locked --bench image_path

bench-micro: setup ## measure decisions, fusion, cache keys, decoding and preprocessing (criterion)
	$(CARGO) bench --locked --bench decisions

fuzz: setup ## fuzz the request decoder, the image decoders and the configuration, ten minutes each
	deploy/fuzz.sh 600

lint: setup ## formatting, clippy and rustdoc, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps --document-private-items

fmt: ## format the code
	$(CARGO) fmt --all

doc: setup ## the library's documentation, in target/doc
	$(CARGO) doc --release --locked --workspace --no-deps

deny: ## licences, bans and sources of all dependencies (installs cargo-deny where it is missing)
	@command -v cargo-deny > /dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --workspace check bans licenses sources

clean: ## remove what was built; libtorch stays
	$(CARGO) clean
