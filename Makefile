# Leafmill. `make demo` shows it at work, `make test` tests it; `make help` lists the rest.
# Go is all that must be there; what else is needed, scripts/setup installs or says.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
# v1.2.3, v1.2.3-4-gabc1234 after a tag, v0.0.0-dev+abc1234 before the first.
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null || echo v0.0.0-dev+$$(git rev-parse --short HEAD 2>/dev/null || echo unknown))
LDFLAGS := -s -w -X main.version=$(VERSION)

LINT_VERSION := v2.6.2
LINT_DIR := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/leafmill/tools/golangci-lint-$(LINT_VERSION)

.PHONY: help setup build test check vet tidy generated lint race bench demo clean need-go

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

need-go:
	@command -v $(GO) >/dev/null || { echo 'Go is missing: install Go 1.26 or later, https://go.dev/dl/' >&2; exit 1; }

setup: ## install what is missing: tesseract, poppler, a C compiler, the local model
	@scripts/setup

build: need-go ## bin/leafmill
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/leafmill ./cmd/leafmill
	@echo "built bin/leafmill $(VERSION)"

test: need-go ## setup, then all tests
	@scripts/setup --test
	$(GO) test -timeout 10m ./...
	@echo 'make test: all tests passed'

check: need-go vet tidy generated lint race bench ## all that is checked beside the tests
	@echo 'make check: nothing to complain about'

vet: need-go
	$(GO) vet ./...

tidy: need-go
	$(GO) mod tidy -diff
	$(GO) mod verify

# What is generated must be what is committed: generating changes nothing, whatever else is
# being changed in the tree.
generated: need-go
	@before=$$(git status --porcelain; git diff); $(GO) generate ./...; after=$$(git status --porcelain; git diff); \
	if [ "$$before" != "$$after" ]; then git diff --stat; echo 'make generated: generated files were out of date; commit them' >&2; exit 1; fi
	@echo 'generated files are up to date'

$(LINT_DIR)/golangci-lint:
	GOBIN=$(LINT_DIR) GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

lint: need-go $(LINT_DIR)/golangci-lint ## golangci-lint, pinned
	$(LINT_DIR)/golangci-lint run ./...

race: need-go ## all tests and fuzz seeds under the race detector
	$(GO) test -race -timeout 20m ./...

bench: need-go ## one iteration of every benchmark, so that they cannot rot
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 20m ./...

demo: setup build ## start it, hand in sample documents, search them, stop it
	@scripts/demo

clean: ## remove what was built
	rm -rf bin
