# What a developer types. Everything works from nothing: each target makes what it needs.
#   make demo   a live move of a PostgreSQL volume in the lab, with proof
#   make test   all tests, the lab's included      make check   style, types, layers, spelling
#   make test-stacks   each stack mirrored under load and compared, and moved, with restarts
#   make test-faults   every fault in the lab      make soak    random faults, for 30 minutes
#   make test-crash    the power cut at every effect, with fakes and in the lab
#   make lab / lab-down                            make bench   the README's figures
#   make lock   requirements.lock anew             make audit   what it names, hash by hash
#
# PYTEST_ARGS narrows the tests: make test PYTEST_ARGS="tests/unit -k fstab"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# As root, and what that wrote here is given to whose folder it is: `clean` and `audit` need no root.
WRITTEN := build .pytest_cache .hypothesis $(VENV)
AS_ROOT = mkdir -p build; trap 'for made in $(WRITTEN); do \
  [ ! -e $$made ] || $(SUDO) chown -R --reference=. $$made; done' EXIT; trap 'exit 130' INT TERM; $(SUDO)
SOURCES := src lab demo tests benchmarks
PYTEST_ARGS ?=
# One process for the lab, one for the rest: see tests/conftest.py.
APART := -n 2 --no-loadscope-reorder
SOAK_ARGS ?=
# 1: what this machine cannot do is skipped instead of failing.
VOLFERRY_MAY_SKIP ?=

.PHONY: install demo test test-stacks check lint format-check types layers spelling lab lab-down \
  bench lock audit clean

install: $(VENV)/.made

$(VENV)/.made: pyproject.toml
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { $(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/pip install -q --disable-pip-version-check -e . --group dev
	touch $@

# The tests of the disks run on this machine itself: loop devices and real filesystems.
TOOLS := rsync xfsprogs btrfs-progs e2fsprogs acl attr fdisk openssh-client util-linux
.PHONY: tools
tools:
	@missing=$$(dpkg-query -W -f '$${Package} $${Status}\n' $(TOOLS) 2>/dev/null | \
	  awk '/ok installed/ {have[$$1]=1} END {n=split("$(TOOLS)",t); \
	  for (i=1;i<=n;i++) if (!(t[i] in have)) print t[i]}'); \
	if [ -n "$$missing" ]; then $(SUDO) apt-get update -q && \
	  $(SUDO) apt-get install -y -q --no-install-recommends $$missing; fi

test: install tools
	$(AS_ROOT) env VOLFERRY_MAY_SKIP=$(VOLFERRY_MAY_SKIP) $(BIN)/python -m pytest $(APART) $(PYTEST_ARGS)

# All faults that are real only in the lab; ``make test`` carries a few of them.
.PHONY: test-faults soak
test-faults: install tools
	$(AS_ROOT) env VOLFERRY_EVERY_FAULT=1 $(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

# The power cut at every effect; ``make test`` has all of them with fakes, and a few in the lab.
.PHONY: test-crash
test-crash: install tools
	$(AS_ROOT) env VOLFERRY_EVERY_CUT=1 $(BIN)/python -m pytest tests/crash $(PYTEST_ARGS)
	@$(BIN)/python tests/crash/tally.py

# SOAK_ARGS="--minutes 5 --seed 7"
soak: install
	$(AS_ROOT) $(BIN)/python -m tests.soak $(SOAK_ARGS)

# Hours under emulation: every stack that the mirror moves, with every filesystem compared byte for
# byte after a load, then restarted at the three worst moments.
test-stacks: install tools
	$(AS_ROOT) env VOLFERRY_EVERY_STACK=1 $(BIN)/python -m pytest tests/lab/test_stacks_under_load.py \
	  tests/lab/test_moved_stacks.py tests/lab/test_transfer.py $(PYTEST_ARGS)

demo: install
	$(AS_ROOT) $(BIN)/python -m demo

lab:
	$(SUDO) $(PYTHON) -m lab up

lab-down:
	$(SUDO) $(PYTHON) -m lab down

bench: TOOLS += fio
bench: install tools
	$(AS_ROOT) $(BIN)/python -m benchmarks

check: lint format-check types layers spelling

lint: install
	$(BIN)/ruff check $(SOURCES)

format-check: install
	$(BIN)/ruff format --check $(SOURCES)

types: install
	$(BIN)/mypy src demo benchmarks lab

layers: install
	$(BIN)/lint-imports

spelling: install
	$(BIN)/codespell $(SOURCES) *.md Makefile

# No index and no host in it: who installs chooses those. With the oldest Python that is supported.
lock: install
	$(BIN)/pip-compile -q --generate-hashes --strip-extras --allow-unsafe --no-header \
	  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
	  $(LOCK_ARGS) -o requirements.lock pyproject.toml

# Installs exactly the files that the lock names, each refused when its hash differs, into a folder
# of its own; then whether they are all that is needed, and whether the program starts with them. It
# is no look-up of known weaknesses: that takes a service on the net, which is asked with
#   pip-audit -r requirements.lock --require-hashes --disable-pip
audit:
	rm -rf build/audit
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install -q --disable-pip-version-check --no-deps --require-hashes \
	  -r requirements.lock
	build/audit/bin/pip install -q --disable-pip-version-check --no-deps .
	build/audit/bin/pip check
	build/audit/bin/volferry --version
	@echo "$$(grep -c '==' requirements.lock) packages installed, every file as its hash in the lock"

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
