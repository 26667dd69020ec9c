# "make help" lists what there is. Only Go is needed; what else a target uses
# (a C compiler for the race detector, npm, systemd) is used where it is found.

GO          ?= go
STATICCHECK  = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK  = golang.org/x/vuln/cmd/govulncheck@v1.9.0
NFPM         = github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
CYCLONEDX    = github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

FUZZTIME ?= 20s
BENCH    ?= .
FOR      ?= 0s
TARGETS   = linux-amd64 linux-arm64 linux-armv7

VERSION  ?= $(shell git describe --tags --match 'v*' --dirty 2>/dev/null || echo devel)
COMMIT   ?= $(shell git rev-parse HEAD 2>/dev/null)
BUILT    ?= $(shell git log -1 --format=%cI 2>/dev/null)
# The time in the packages; that of the commit, so that everybody gets the same ones.
EPOCH    ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
LDFLAGS   = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.built=$(BUILT)

# The race detector needs cgo, a C compiler and a 64-bit machine.
RACE     := $(shell [ "$$($(GO) env CGO_ENABLED)" = 1 ] && command -v "$$($(GO) env CC)" >/dev/null && $(GO) env GOARCH | grep -qE '^(amd64|arm64)$$' && echo -race)

.DEFAULT_GOAL := help
.PHONY: help check test fmt vet lint vuln unit node demo bench fuzz build packages sbom shipped stamp clean $(TARGETS)

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

check: fmt vet lint unit test vuln ## everything that a change must pass

test: ## all tests, with the race detector where there is a C compiler
	@[ -n "$(RACE)" ] || echo "no C compiler found: testing without the race detector"
	$(GO) test $(RACE) -timeout 15m ./...

fmt: ## gofmt finds nothing to do
	@files=$$(git ls-files '*.go' | xargs gofmt -l); [ -z "$$files" ] || { echo "gofmt would change:"; echo "$$files"; exit 1; }

vet: ## go vet, for all systems that are built for
	$(GO) vet ./...
	GOOS=linux GOARCH=arm GOARM=7 CGO_ENABLED=0 $(GO) vet ./...
	$(GO) vet -tags pages ./cmd/gatewayd

lint: ## staticcheck
	$(GO) run $(STATICCHECK) ./...

vuln: ## govulncheck, where its database can be reached
	@.ci/vulncheck $(GOVULNCHECK)

unit: ## the systemd unit is valid and well locked down
	@.ci/unit

node: ## install what the tests drive with Node.js
	@git ls-files '*package-lock.json' | while read -r f; do echo "npm ci in $${f%/*}"; (cd "$${f%/*}" && npm ci --no-audit --no-fund --loglevel=error) || exit 1; done

demo: ## the whole gateway with a stand-in hub; FOR=30s ends by itself
	$(GO) run ./cmd/gatewayd demo --for $(FOR)

bench: ## benchmarks; BENCH=regexp chooses
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m ./...
	[ ! -f bench/go.mod ] || (cd bench && $(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m ./...)

fuzz: ## each fuzz target for FUZZTIME=20s
	@for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; done; done

build: $(TARGETS) ## static programs for linux in dist/

linux-amd64: export GOARCH = amd64
linux-arm64: export GOARCH = arm64
linux-armv7: export GOARCH = arm
linux-armv7: export GOARM = 7
$(TARGETS):
	GOOS=linux CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o dist/gatewayd-$@ ./cmd/gatewayd

packages: build ## .deb and .rpm for amd64, arm64 and armhf in dist/
	deploy/packages/build '$(VERSION)' '$(EPOCH)' $(NFPM) $(TARGETS)

sbom: linux-amd64 ## what the program is made of, as CycloneDX, in dist/gatewayd.cdx.json
	$(GO) run $(CYCLONEDX) bin -json -std -licenses -noserial -version '$(VERSION)' -output dist/gatewayd.cdx.json dist/gatewayd-linux-amd64
	@sed -i '0,/"timestamp": "[^"]*"/s//"timestamp": "'$$(date -u -d '@$(EPOCH)' +%Y-%m-%dT%H:%M:%SZ)'"/' dist/gatewayd.cdx.json

shipped: packages sbom ## packages are reproducible, and install, upgrade, downgrade and remove well; needs root or sudo
	@.ci/packages

stamp: # what is stamped into the program, for the shell
	@printf "VERSION='%s' COMMIT='%s' BUILT='%s' EPOCH='%s'\n" '$(VERSION)' '$(COMMIT)' '$(BUILT)' '$(EPOCH)'

clean: ## remove what was built
	rm -rf dist
