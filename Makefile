# Tidegate. `make help` lists the targets; `make run` and `make test` do their own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The toolchain the project is built and tested with; TOOLCHAIN=local uses the installed one.
TOOLCHAIN ?= go1.24.13
ifneq ($(TOOLCHAIN),local)
export GOTOOLCHAIN := $(TOOLCHAIN)
endif
export CGO_ENABLED := 0
unexport GOFLAGS

MODULES := proto libs $(patsubst %/go.mod,%,$(wildcard services/*/go.mod)) e2e
SERVICES := ingest classify enforce persist gateway
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/tidegate-mesh/tidegate/libs/telemetry.Version=$(VERSION)
# The same in every environment, so that a binary depends on its sources only.
BUILD_FLAGS := -trimpath -buildvcs=auto -ldflags '$(LDFLAGS)'
BIN ?= bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tidegate
TOOLS := $(CACHE)/tools
# A test binary of each package at a time: several tests load both CPUs or own a namespace.
# Of the tests in e2e those named TestFull… belong to test-full, the others to test.
TEST_FLAGS ?= -count=1 -timeout 10m
GO := go
# sudo and cron drop the caller's PATH. Then Go is looked for where go.dev's instructions put it.
ifeq ($(shell command -v go),)
export PATH := $(PATH):/usr/local/go/bin
endif

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: build ## the demo: real packets through XDP, an attack seen and dropped (root), else a replay of a bundled capture
	@if [ "$$(id -u)" = 0 ]; then \
	  if [ -t 1 ]; then exec bin/tidegate demo; else exec bin/tidegate demo --for 60s; fi; \
	else \
	  echo "Not root: XDP, AF_XDP and network namespaces need it, so nothing is captured or dropped here."; \
	  echo "Replaying a bundled capture instead; run 'sudo make run' for the real thing."; \
	  exec bin/tidegate replay --detect deploy/samples/syn-flood.pcap.gz; \
	fi

.PHONY: build
build: ## build every binary into bin/; IN_DOCKER=1 builds the same inside the builder image
ifdef IN_DOCKER
	@tools/in-builder.sh make build TOOLCHAIN=local VERSION='$(VERSION)' BIN='$(BIN)'
else
	@v=$$(cd / && GOTOOLCHAIN=local $(GO) version 2>&1 || true); [[ $$v =~ go1\.(2[1-9]|[3-9][0-9])|devel ]] || \
	  { echo "make: Go 1.21 or later is needed, which fetches the pinned toolchain by itself: https://go.dev/dl. Here is: $$v" >&2; exit 1; }
	@# With sudo the folder stays the caller's, who then builds without it.
	@[ -d $(BIN) ] || { mkdir -p $(BIN); [ -z "$${SUDO_UID:-}" ] || chown "$$SUDO_UID:$$SUDO_GID" $(BIN); }
	@$(GO) build $(BUILD_FLAGS) -o $(BIN)/tidegate ./services/tidegate
	@for s in $(SERVICES); do $(GO) build $(BUILD_FLAGS) -o $(BIN)/tidegate-$$s ./services/$$s/cmd/$$s; done
	@$(GO) build $(BUILD_FLAGS) -o $(BIN)/tidegate-health ./libs/cmd/tidegate-health
	@$(GO) build $(BUILD_FLAGS) -o $(BIN)/tidegate-loadgen ./e2e/loadgen
endif

.PHONY: setup
setup: ## install what tests and generation need (Debian, root) and the commit hook
	@tools/setup.sh

.PHONY: test
test: export TIDEGATE_NATS_SERVER := $(TOOLS)/nats-server
test: setup build ## quick tests: unit, real XDP, embedded and apt-installed servers
	@tools/build.sh nats-server
	@tools/check.sh format modules generated
	@for m in $(MODULES); do [ $$m = e2e ] && continue; echo "== $$m"; (cd $$m && $(GO) vet ./... && $(GO) test $(TEST_FLAGS) -p 1 ./...); done
	@echo "== e2e (quick)"; cd e2e && $(GO) vet ./... && $(GO) test $(TEST_FLAGS) -p 1 -skip '^TestFull' ./...

.PHONY: test-full
test-full: export TIDEGATE_NATS_SERVER := $(TOOLS)/nats-server
test-full: setup build tools ## everything: the quick tests' slower siblings, lint, newest toolchain, fuzzing, end to end
	@tools/check.sh lint cross newest
	@tools/fuzz.sh 60s all
	@echo "== 50,000 generated requests"; cd services/gateway && TIDEGATE_FULL=1 $(GO) test $(TEST_FLAGS) -run '^TestGenerated' ./internal/rest
	@echo "== MySQL and Galera"; cd services/persist && TIDEGATE_FULL=1 $(GO) test $(TEST_FLAGS) -run 'TestConformance/(mysql|galera)|TestGaleraMoves' ./internal/sqlstore
	@tools/kernels.sh
	@echo "== e2e (full)"; cd e2e && TIDEGATE_KERNELS=$(CACHE)/kernels $(GO) test $(TEST_FLAGS) -timeout 45m -p 1 -run '^TestFull' ./...
	@$(MAKE) --no-print-directory test-containers

.PHONY: images
images: ## the images tidegate/SERVICE; AIR_GAPPED=1 makes the base images too, and those that Compose names
	@tools/images.sh
	@[ -z "$(AIR_GAPPED)" ] || deploy/air-gapped/build.sh

.PHONY: test-containers
test-containers: export TIDEGATE_CONTAINERS := 1
test-containers: export AIR_GAPPED := 1
test-containers: ## images and the Compose stack, once a database, on a real Docker engine
	@tools/build.sh docker-compose
	@trap '$(CURDIR)/tools/engine.sh stop' EXIT; $(MAKE) --no-print-directory images; \
	  echo "== containers"; cd e2e && $(GO) test $(TEST_FLAGS) -timeout 30m -v -run '^Test(Containers|Images?)' .

.PHONY: tools
tools: ## build the pinned tools into the cache outside the checkout
	@tools/build.sh golangci-lint nats-server jaeger

.PHONY: lint
lint: ## golangci-lint over every module
	@tools/build.sh golangci-lint
	@tools/check.sh lint

# The commit hook's: with the pinned toolchain, on the modules that it names.
.PHONY: check-lint
check-lint:
	@tools/check.sh lint

.PHONY: gen
gen: ## generate protobuf and BPF code again
	@tools/check.sh generate

.PHONY: bench
bench: build ## measure: throughput, time to first drop, the gateway, hot-path functions (root, about 28 minutes)
	@cd e2e && TIDEGATE_BENCH=1 $(GO) test -count=1 -timeout 40m -run '^TestBench' -v ./bench/
	@cd e2e && TIDEGATE_BENCH=1 $(GO) test -count=1 -timeout 10m -run '^TestFullTracesInJaeger$$' -v .
	@cd libs && $(GO) test -run '^$$' -bench . -benchtime 1s ./packet/ ./xdp/
	@cd services/enforce && $(GO) test -run '^$$' -bench AddRule -benchtime 1000x .
	@cd services/ingest && $(GO) test -run '^$$' -bench . -benchtime 1s ./internal/pipeline/
	@cd services/classify && $(GO) test -run '^$$' -bench . -benchtime 1s ./internal/hostlist/
	@cd services/classify && $(GO) test -run '^$$' -bench . -skip Labels -benchtime 1s ./internal/app/
	@cd services/classify && $(GO) test -run '^$$' -bench Labels -benchtime 50ms ./internal/app/
	@cd services/gateway && $(GO) test -run '^$$' -bench . -benchtime 1s ./internal/edge/ ./internal/auth/ ./internal/rest/
	@cd services/persist && $(GO) test -run '^$$' -bench . -benchtime 1x ./internal/sqlstore/

.PHONY: soak
soak: export TIDEGATE_NATS_SERVER := $(TOOLS)/nats-server
soak: build tools ## an hour of fuzzing, 2 h of good traffic, 4 h under load with restarts; SOAK=20m for both
	@tools/fuzz.sh 3600s all
	@cd e2e && TIDEGATE_SOAK=$(or $(SOAK),2h) $(GO) test -count=1 -timeout 0 -run '^TestFullBenignMix$$' -v .
	@cd e2e && TIDEGATE_SOAK=$(or $(SOAK),4h) $(GO) test -count=1 -timeout 0 -run '^TestFull(RestartsUnderLoad|GaleraNodesLost)$$' -v .

.PHONY: clean
clean: ## remove what the build made
	@rm -rf bin artifacts
