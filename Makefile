# Everything that a person types. The work is in scripts/, so that each part can also be run by itself.

.DEFAULT_GOAL := help
SEEDS ?= 1000
ROUNDS ?= 30
SECONDS ?= 300

.PHONY: help demo test soak fuzz bench fmt setup

help: ## Show this list
	@echo "servicekit: discovery and leases for plain Linux hosts. Start with 'make demo'."
	@echo
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: ## Build, then show the main job on real HTTP servers; under a minute, leaves nothing behind
	@scripts/setup demo
	@scripts/demo

test: ## Run all that CI runs: format, lints, licences, docs, tests, examples, demo
	@scripts/setup test
	@scripts/test

soak: ## Run all tests with many more seeds, and rounds of failing servers: make soak SEEDS=1000 ROUNDS=30
	@scripts/setup test
	SERVICEKIT_SEEDS=$(SEEDS) SERVICEKIT_ROUNDS=$(ROUNDS) cargo test --workspace --locked

fuzz: ## Feed random bytes to every parser of untrusted input: make fuzz SECONDS=300 (each); needs a nightly Rust
	@scripts/setup build
	@scripts/fuzz $(SECONDS)

bench: ## Measure speed and memory, and hold them against the budgets in benches/README.md
	@scripts/setup bench
	@scripts/bench

fmt: ## Format the code
	cargo fmt --all

setup: ## Install what demo and test need, and nothing else
	@scripts/setup test
