# make install [VENV=path] [PYTHON=interpreter]; everything else installs what it needs first, which costs a second if
# it is there.
VENV ?= .venv
PYTHON ?= python3
DEVICE ?= cpu
# Test files are shared out among so many processes.
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.nnunet_logvmamba_installed
# A file stays in one process, so that what its tests have in common is made once; their order stays, long files last
# would leave one process idle.
SHARED_OUT := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# What an installation depends on: these files, and where this checkout is (the installation is an editable one). Behind
# it stands what was installed: "tests" is what developers need, and all that users do.
STATE = $$(cat pyproject.toml constraints.txt nnunet_logvmamba/plugin/nnunet_logvmamba.pth \
	nnunet_logvmamba/plugin/environment.py | cksum) $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help install install-dev lint test test-all demo clean

help:
	@echo "make install      virtual environment in $(VENV) from constraints.txt   (VENV=path, PYTHON=interpreter)"
	@echo "make install-dev  the same with what lint and tests need; they install it themselves"
	@echo "make demo         stock nnU-Net trains and predicts on a generated tumour phantom   (DEVICE=cpu or cuda)"
	@echo "make lint         what ruff and mypy say of the code, its layout and its types"
	@echo "make test         the test suite without its slow part"
	@echo "make test-all     every test"
	@echo "make clean        remove what demo, tests and builds left behind (the environment stays)"

EXTRA :=
install-dev: EXTRA := tests
install install-dev:
	@case "$$(cat "$(STAMP)" 2>/dev/null)" in \
		"$(STATE) $(EXTRA)" | "$(STATE) tests") exit 0;; \
	esac; \
	set -e; \
	if [ ! -x "$(BIN)/python" ] || ! "$(BIN)/python" -c "import pip" 2>/dev/null; then \
		command -v "$(PYTHON)" >/dev/null || \
			{ echo "install: there is no interpreter '$(PYTHON)'; name one with PYTHON=/path/to/python3" >&2; exit 1; }; \
		"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
			{ echo "install: '$(PYTHON)' is older than Python 3.10; name a newer one with PYTHON=/path/to/python3" >&2; \
			exit 1; }; \
		"$(PYTHON)" -m venv "$(VENV)"; \
	fi; \
	"$(BIN)/python" -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "install: '$(VENV)' holds a Python older than 3.10; choose another folder with VENV=path" >&2; exit 1; }; \
	"$(BIN)/python" -m pip install -c constraints.txt "pip>=23.1" setuptools hatchling hatch-fancy-pypi-readme; \
	"$(BIN)/python" -m pip install -c constraints.txt --no-build-isolation -e ".$(if $(EXTRA),[dev])"; \
	"$(BIN)/python" -m nnunet_logvmamba.plugin.environment $(EXTRA:%=--%); \
	echo "$(STATE) $(EXTRA)" > "$(STAMP)"; \
	echo "installed: next, type  . $(BIN)/activate  and set nnU-Net's three folders as README.md shows; then  logvmamba doctor"

lint: install-dev
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

test: install-dev
	"$(BIN)/python" -m pytest $(SHARED_OUT) -m "not slow"

test-all: install-dev
	"$(BIN)/python" -m pytest $(SHARED_OUT)

demo: install
	"$(BIN)/python" benchmarks/demo.py --device $(DEVICE)

clean:
	rm -rf .demo .test build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
