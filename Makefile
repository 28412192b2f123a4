# make demo          the demo from a bare clone: environment, workspace, evaluation tables, app on localhost
# make demo SERVE=0  the same without the server
# make test          the whole test suite
# make results       docs/results.md from docs/results/*.json
# make bench-decoding, make bench-index: what is timed beside others; each writes its records
# make bench-gpu     decoding and training of the retriever where there is a GPU

PYTHON ?= python3
BIN := .venv/bin
# FAISS comes as faiss-cpu or faiss-gpu, never both.
FAISS := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
SERVE ?= 1
PORT ?= 8501

.PHONY: env demo test lint results bench-decoding bench-index bench-gpu clean

env: .venv/installed-$(FAISS)

.venv/installed-$(FAISS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mmrec needs Python 3.11 or later; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(FAISS),dev]' -c constraints.txt
	touch $@

demo: env
	$(BIN)/mmrec run recipes/demo.yaml
ifeq ($(SERVE),1)
	$(BIN)/mmrec app -w workspaces/demo --port $(PORT)
else
	@echo "to open the app: $(BIN)/mmrec app -w workspaces/demo"
endif

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

results: env
	$(BIN)/python -m mmrec.results

bench-decoding: env
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.decoding --record docs/results
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.decoding_scale --record docs/results

bench-index: env
	$(BIN)/python benchmarks/index_million.py

bench-gpu: env
	$(BIN)/python -m benchmarks.decoding --device cuda --record docs/results
	$(BIN)/python -m benchmarks.decoding_scale --device cuda --seeds 0 --record docs/results
	$(BIN)/python -m benchmarks.training --shape whole --record docs/results
	$(BIN)/python -m benchmarks.training --shape wide --record docs/results

clean:
	rm -rf .venv workspaces
