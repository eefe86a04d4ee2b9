# `make` prints what there is.
SEED ?= 1
SEEDS ?= 0..200

.PHONY: help test test-fast image crds scripts mutants simulate cluster cluster-down e2e fmt

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## everything: format, lints, licences, units, scripts, simulator, charts, a real Kubernetes
	@tests/run all

test-fast: ## the same without a cluster; its last line says what was not run
	@tests/run fast

image: ## the container image, as target/image.tar (and in Docker, where one runs)
	@tests/cluster/build-image

crds: ## generates crds/ and the chart's copy from operator/api
	cargo run --quiet -p lockstep-api --bin crdgen

scripts: ## blesses the golden scripts of the rules: read the diff
	UPDATE_GOLDENFILES=1 cargo test --quiet -p lockstep-consensus --test scripts

mutants: ## takes each rule's line out and demands that its golden script fails
	replica/consensus/tests/mutants

simulate: ## replays one seed: make simulate SEED=8213; or many: make simulate SEEDS=0..2000; LIFE=1: long lives
ifeq ($(origin SEEDS), command line)
	cargo run --quiet --release -p lockstep-simulator -- --seeds $(SEEDS) $(if $(LIFE),--life)
else
	cargo run --quiet --release -p lockstep-simulator -- --seed $(SEED) $(if $(LIFE),--life)
endif

cluster: ## a real Kubernetes on this machine; prints its KUBECONFIG
	@tests/cluster/cluster up

cluster-down: ## takes it away again
	@tests/cluster/cluster down

e2e: ## the end-to-end tests alone
	@tests/e2e/run

fmt: ## formats all Rust code
	cargo fmt --all
