# make demo      the whole story on a throw-away Dovecot
# make test      everything that decides whether a change may land
# make build     the static binary, ./dovepush
# make bench     benchmarks
# make fuzz      every fuzz target, FUZZTIME each (default 60s)
# make vuln      known vulnerabilities in dependencies; needs a network
# make setup     what demo and test need; both run it themselves
# make clean     removes what make build made

GO ?= go
FUZZTIME ?= 60s
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
TOOL = $(GO) tool -modfile=tools/go.mod

.PHONY: build demo test check unit fuzz bench vuln setup setup-demo setup-race setup-systemd setup-bench clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o dovepush ./cmd/dovepush

demo: setup-demo build
	@./dovepush demo

test: setup check unit

# Formatting, vet, staticcheck, and that go.mod is as go mod tidy leaves it.
check:
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(TOOL) staticcheck ./...

unit:
	$(GO) test -race -shuffle=on -timeout 60m ./...

# Each target alone: go test -fuzz takes one.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "== $$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

bench: setup setup-bench
	$(GO) test -run '^$$' -bench . -benchmem ./...
	$(GO) run ./bench

# One contender is a Python loop.
setup-bench:
	@if ! command -v python3 >/dev/null; then \
		echo "bench: installing python3"; \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q --no-install-recommends python3-minimal libpython3-stdlib; \
	fi

vuln:
	$(TOOL) govulncheck ./...

setup: setup-race setup-systemd
	@internal/dovecot/install.sh 2.3 2.4

# The demo is content with one Dovecot, the one that takes least to install.
setup-demo:
	@internal/dovecot/install.sh any

# The race detector needs a C compiler.
setup-race:
	@if ! command -v gcc >/dev/null || ! test -e /usr/include/stdlib.h; then \
		echo "race detector: installing gcc and libc6-dev"; \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q --no-install-recommends gcc libc6-dev; \
	fi

# The units in packaging are judged by systemd itself; it need not run.
setup-systemd:
	@if ! command -v systemd-analyze >/dev/null; then \
		echo "systemd units: installing systemd, without starting it"; \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q --no-install-recommends systemd; \
	fi

clean:
	rm -f dovepush
