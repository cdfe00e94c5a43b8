# Everything a fresh machine with Python (3.11 or newer) and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help demo test test-netns test-slurm bench-place test-parallel test-fuzz test-fuzz-topo test-advice test-guard lint format bench-overhead bench-gpu bench-pipeline bench-placement bench-compare bench-compare-real bench-climb bench-gpu-ladder bench-trace bench-loader clean
help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "stepladder needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(READY) ## install, then train a byte-level decoder on real text with two ranks
	$(BIN)/stepladder run demo

test: $(READY) ## the whole fast suite
	$(BIN)/pytest

test-parallel: $(READY) ## every mesh of up to 8 ranks, pairs of options, large worlds, memory counts: about an hour on 2 cores
	$(BIN)/pytest -m slow
	$(BIN)/pytest tests/parallel
	$(BIN)/python tests/parallel/run_matrix.py

test-fuzz: $(READY) ## 20,000 damaged traces through the whole analysis
	$(BIN)/python tests/fuzz/run_trace_fuzz.py

test-advice: $(READY) ## advice on real runs with one planted fault each, and on clean ones, in some minutes
	$(BIN)/python tests/planted/run_planted.py

test-guard: $(READY) ## how small an error in the mathematics of an arm the parity guard of compare finds, in some minutes
	$(BIN)/python tests/planted/run_guard.py

test-fuzz-topo: $(READY) ## 20,000 damaged outputs of nvidia-smi and its kin through the reader
	$(BIN)/python tests/fuzz/run_topology_fuzz.py

test-netns: $(READY) ## torchrun over hosts in network namespaces, joined in the wrong order, killed, swapped; asks for root
	$(BIN)/pytest tests/netns

test-slurm: $(READY) ## a real Slurm of two nodes on this machine (Debian's, installed if root), in some minutes
	tests/slurm/install.sh
	$(BIN)/pytest tests/slurm

bench-place: $(READY) ## a step of TP x DP over shaped links, ranks placed badly, in order and by us; asks for root, 5 minutes
	$(BIN)/python benchmarks/place.py

bench-placement: $(READY) ## modelled gains of placement on known machines, and of 16,384 GPUs the time to find it
	$(BIN)/python benchmarks/placement_model.py

lint: $(READY) ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY) ## format in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-overhead: $(READY) ## host time per step beside Accelerate, Fabric and Lightning
	$(PIP) --no-build-isolation --editable '.[dev,bench]'
	$(BIN)/python benchmarks/overhead.py

bench-gpu: $(READY) ## FP8, compile modes, checkpointing and CUDA graphs on one GPU, in 8 minutes
	$(BIN)/python benchmarks/gpu_parallel.py

bench-pipeline: $(READY) ## bubble of each schedule: measured on four ranks, by formula, simulated
	$(BIN)/python benchmarks/pipeline.py

bench-compare: $(READY) ## false verdicts, power and cost of a comparison, and of usual designs, in 80,000 simulated ones
	$(BIN)/python benchmarks/compare.py

bench-compare-real: $(READY) ## 60 real comparisons of equal arms, 30 with a delay of 3 %; killed, it goes on: three hours
	$(BIN)/python benchmarks/compare_real.py

bench-climb: $(READY) ## the climber beside an exhaustive grid on two workloads; killed, it goes on: an hour and a half
	$(BIN)/python benchmarks/climb.py

bench-gpu-ladder: $(READY) ## the ladder of a decoder of a billion parameters on one GPU, in 9 minutes
	$(BIN)/python benchmarks/gpu_ladder.py

bench-trace: $(READY) ## the trace analysis beside Meta's HTA (in an environment of its own), with traces of 1 GB, in 12 minutes
	$(PYTHON) -m venv build/hta
	build/hta/bin/python -m pip --disable-pip-version-check install --quiet 'traceinsight==0.6.1' 'pandas<3' ijson
	$(BIN)/python benchmarks/trace.py --hta build/hta/bin/python

bench-loader: $(READY) ## samples/s of the loader beside datasets, WebDataset and a plain DataLoader; packing beside tokenizers
	$(PIP) --no-build-isolation --editable '.[dev,bench]'
	$(BIN)/python benchmarks/loader.py

clean: ## remove the environment and what runs left behind
	rm -rf $(VENV) runs build *.egg-info
