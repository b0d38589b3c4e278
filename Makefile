# SPDX-License-Identifier: Apache-2.0
# Bare `make` lists the targets. `make demo` and `make test` need nothing but
# Debian 12, Go and root: they install the packages they need themselves.

.DEFAULT_GOAL := help
.PHONY: help demo test build check pure program lab crash long fuzz mutants bench-port bench-ports bench-flood bench-upgrade bench-vm bench-propagation bench-nlb bench-eventlog race generate format sweep

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## the whole cloud on this machine: traffic, failover, figures (KEEP=1 leaves it running)
	@scripts/demo.sh $(if $(KEEP),--keep)

test: ## all checks and all three rings of tests, as CI runs them
	@scripts/test.sh

build: ## build the binaries into bin/
	@scripts/build.sh

check: ## format, vet, static analysis, generated code, laws of the tree
	@scripts/check.sh

pure: ## tests that need neither root nor a kernel feature
	@scripts/test.sh pure

program: ## BPF programs, packet in and packet out
	@scripts/test.sh program

lab: ## stories in network namespaces
	@scripts/test.sh lab

crash: ## the control plane killed after every single commit of a story (seven minutes)
	@scripts/test.sh crash

long: ## the stories that take longer than a test may
	CAIRN_LONG=1 scripts/test.sh lab

fuzz: ## programs and model side by side on what is made up (FUZZ_TIME=10m, SEED=...)
	FUZZ_TIME=$(or $(FUZZ_TIME),10m) CGO_ENABLED=0 go test -tags program -count=1 -timeout 0 -p 1 -run '^Test(ProgramsAgreeWithTheModel|HostsAgreeWithTheDescription)$$' -v ./test/model/kernel ./test/model/balance

mutants: ## faults in the C of the firewall, each of which the tests have to find
	@scripts/mutants.sh

bench-port: ## time the programs of a VM port beside their floor and nftables
	@CGO_ENABLED=0 go run ./test/bench/port

bench-ports: ## what 1,000 idle ports cost: time to attach, map memory, size of the agent
	@scripts/build.sh
	@CGO_ENABLED=0 go run ./test/bench/ports

bench-eventlog: ## time what an event costs the control plane
	@CGO_ENABLED=0 go test -vet=off -run '^$$' -bench . -benchtime 2s ./controlplane/eventlog

bench-flood: ## floods of SYNs and datagrams at one port, and who notices
	@CGO_ENABLED=0 go run ./test/bench/flood

bench-upgrade: ## 100 upgrades of the programs and 20 agents killed, under traffic (six minutes)
	@scripts/build.sh
	@CGO_ENABLED=0 go run ./test/bench/upgrade

bench-vm: ## TCP between machines with TAPs on two hypervisors, beside bridge and vxlan
	@CGO_ENABLED=0 go run ./test/bench/vm

bench-propagation: ## how long a rule takes to 100 simulated and 3 real agents
	@scripts/build.sh
	@CGO_ENABLED=0 go run ./test/bench/propagation

bench-nlb: ## time the programs that balance load beside floors, and live frames beside nftables DNAT
	@CGO_ENABLED=0 go run ./test/bench/nlb

race: ## the pure ring with the race detector throughout (half an hour)
	CGO_ENABLED=1 go test -race -timeout 60m ./...

generate: ## regenerate the BPF objects and the protocol
	@scripts/packages.sh
	go generate ./...

format: ## format Go and C
	gofmt -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$')
	clang-format-19 -i $$(git ls-files '*.c' '*.h')

sweep: ## remove what an interrupted test or demo left behind
	@scripts/sweep.sh
