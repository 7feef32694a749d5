# The front door for developers; CI goes through it as well (.ci/run).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

SCRIPTS := deploy/setup.sh deploy/images/build.sh deploy/demo/run.sh deploy/exercise/run.sh deploy/pure.sh .ci/run tests/sim-bugs/run.sh

# The tests make network interfaces and containers, which takes root; as another
# user the built test programs run through sudo, cargo itself does not.
ifneq ($(shell id -u),0)
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER := sudo -E
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER := sudo -E
endif

.PHONY: help setup demo demo-down exercise test verify check-format check-lints check-purity check-scripts check-licences fix bench chaos fuzz sim sim-bugs

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## install what is missing and start Docker
	@deploy/setup.sh

demo: ## set everything up, start a lab of three nodes and show it working
	@deploy/demo/run.sh

demo-down: ## take the lab down again
	@deploy/demo/run.sh down

exercise: setup ## build the images of the French exercise (docs/fr/exercice.md)
	@deploy/images/build.sh exercise

test: ## all tests, end to end on real Docker among them
	@deploy/setup.sh --with registry
	@deploy/images/build.sh web
	cargo build --workspace --bins
	cargo test --workspace --no-fail-fast

verify: check-format check-lints check-purity check-scripts check-licences ## format, lints, licences; changes nothing

check-format:
	cargo fmt --all --check
	rustfmt --edition 2024 --check deploy/images/web/web.rs

check-lints:
	cargo clippy --workspace --all-targets --locked -- -D warnings

check-purity:
	@deploy/pure.sh

check-scripts:
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); \
	else echo "shellcheck is not installed, the scripts were not checked; to have it: apt-get install shellcheck"; fi

# The advisories come from GitHub; where that is out of reach the rest still counts.
check-licences:
	@if ! command -v cargo-deny >/dev/null; then \
	  echo "cargo-deny is not installed, licences were not checked; to have it: cargo install --locked cargo-deny"; exit 0; \
	fi; \
	cargo deny --locked --log-level error check licenses bans sources; \
	if timeout 10 git ls-remote -q https://github.com/rustsec/advisory-db HEAD >/dev/null 2>&1; then \
	  cargo deny --locked check advisories; \
	else echo "the advisory database is out of reach, advisories were not checked"; fi

fix: ## format, and let clippy mend what it can
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all
	rustfmt --edition 2024 deploy/images/web/web.rs

# A benchmark's standard output is one line of JSON and nothing else.
bench: ## one benchmark: make bench NAME=start-200
	@[ -n "$(NAME)" ] || { echo "make bench needs NAME=…, one of: start-200 agent-footprint master-footprint telemetry store-writes node-loss failover tls-storm" >&2; exit 2; }
	@deploy/setup.sh $(if $(filter telemetry,$(NAME)),--with sshd)$(if $(filter store-writes failover,$(NAME)),--with etcd) >&2
	@deploy/images/build.sh web >&2
	@cargo build --release --workspace --bins >&2
	@cargo run -q --release -p timonier-tests --bin bench -- $(NAME)

# ROUNDS=30 strikes so often, SEED=… gives the order of the faults and whom they strike, and
# FAULTS=KillLeader,CutOneLink only those, in this order.
chaos: ## real faults on a real cluster of three masters: make chaos ROUNDS=30
	@deploy/setup.sh >&2
	@deploy/images/build.sh web >&2
	@cargo build --release --workspace --bins >&2
	@ROUNDS=$(ROUNDS) SEED=$(SEED) FAULTS=$(FAULTS) cargo run -q --release -p timonier-tests --bin chaos

# Coverage-guided, without end but for SECONDS; every `make test` replays the corpus and mutates it.
FUZZ_TARGETS := $(basename $(notdir $(wildcard tests/fuzz/fuzz_targets/*.rs)))

fuzz: ## fuzz one target: make fuzz TARGET=… SECONDS=… (needs g++)
	@[ -n "$(filter $(TARGET),$(FUZZ_TARGETS))" ] || { echo "make fuzz needs TARGET=…, one of: $(FUZZ_TARGETS)" >&2; exit 2; }
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	@mkdir -p target/fuzz/$(TARGET)
	cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none $(TARGET) target/fuzz/$(TARGET) tests/fuzz/corpus/$(TARGET) -- -max_total_time=$(or $(SECONDS),60) -max_len=65536

# SEEDS=200 runs so many, FIRST=… begins elsewhere, SEED=… replays one and prints its trace.
# AGENTS=0 leaves the control loops and the model agents out: the store alone.
sim: ## the cluster in simulation: make sim SEEDS=200, make sim SEED=7
	SEEDS=$(or $(SEEDS),50) FIRST=$(FIRST) SEED=$(SEED) AGENTS=$(AGENTS) TRACE=$(if $(SEED),1) cargo test -q -p timonier-tests --test simulation seeds -- --exact --nocapture

sim-bugs: ## prove that the simulation finds bugs: each of five is put into a copy, and must be found
	@tests/sim-bugs/run.sh $(BUG)
