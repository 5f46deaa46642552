# Three commands for a newcomer: `make demo`, `make test`, `make vm`. They install what they need (root, apt, pip).
.PHONY: help demo test vm vm-long bench faults fmt lint static charmcraft unit alerts adapters integration lifecycle clean
PYTHON ?= python3

help:
	@echo "make demo         from an empty machine to a job's metrics, on a real LXD (root)"
	@echo "make test         every quality gate: lint, types, unit and integration tests on a real LXD (root)"
	@echo "make vm           runners that are real virtual machines, in software emulation where there is no KVM (root, apt)"
	@echo "make vm-long      the same at length, every step of the runners' image among it (root, an hour and more)"
	@echo "make bench        how fast it is beside raw LXD; figures and pictures to docs/benchmarks/ (root, 15 min)"
	@echo "                  a virtual machine, in emulation where there is no KVM: make bench ONLY=vm (half an hour)"
	@echo "make faults       faults at length: kills, churn, attacks, fuzzing; figures to docs/reference/ (root, five hours and more)"
	@echo "                  a part of it: make faults ONLY=mutations"
	@echo "make fmt|lint|static|charmcraft|unit|alerts|adapters|integration|lifecycle    one gate"
	@echo "make clean        remove what the sandbox and the gates made"

demo:
	@$(PYTHON) -m sandbox demo

test: .venv/bin/tox
	@rm -f .coverage .coverage.*  # of a run that was cut off: it may name files that are gone
	@.venv/bin/tox run-parallel --parallel 3

vm: .venv/bin/tox
	@.venv/bin/tox run -e vm

vm-long: .venv/bin/tox
	@.venv/bin/tox run -e vm -- -m long tests/vm

bench: .venv/bin/tox
	@.venv/bin/tox run -e bench -- $(ONLY)

faults: .venv/bin/tox
	@.venv/bin/tox run -e faults -- $(ONLY)

unit adapters: export MEASURED = python

adapters: .venv/bin/tox
	@.venv/bin/tox run-parallel --parallel 3 -e adapters,agents,runners

fmt lint static charmcraft unit alerts integration lifecycle: .venv/bin/tox
	@.venv/bin/tox run -e $@

.venv/bin/tox:
	@$(PYTHON) tools/make_venv.py .venv --require-hashes -r tools/requirements.txt

clean:
	@$(PYTHON) -m sandbox down --all
	@rm -rf .venv .tox .coverage* build
