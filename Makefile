# Everything is set up in .venv by the first target that needs it, and reused while it is current.
#   make demo    segment drawn scenes with the embedded model, and three real photos, into demo/
#   make test    run the test suite
#   make test-full  that, every published training at full size, and whole corpora of damaged and
#                   hostile files, whose counts are printed: some minutes more
#   make test-lowest  the suite with the lowest versions that pyproject.toml allows
#   make check   lint, types and import layers
#   make docs    build the site of docs/ in build/site; a broken link is an error
#   make dist    build the files of a release in dist/, check them, and try them in environments of
#                their own: the oldest Python here with the lowest versions, the newest with the
#                highest, and the steps of the Dockerfile (DIST=--extras tries all extras, too)
#   make package  build and check them alone
#   make lock    pin the dependencies anew

ifeq ($(OS),Windows_NT)  # with the shell and tools of Git for Windows
PYTHON ?= python
SCRIPTS := Scripts
else
PYTHON ?= python3
SCRIPTS := bin
endif
VENV := .venv
BIN := $(VENV)/$(SCRIPTS)
READY := $(VENV)/.ready
UV := VIRTUAL_ENV=$(VENV) $(BIN)/uv --quiet

.PHONY: demo test test-full test-lowest check lint types layers format docs package dist lock clean

demo: $(READY)
	@echo "== drawing four scenes of the embedded world into demo/scenes"
	$(BIN)/maskclip emoji scenes --out demo/scenes --count 4 --size 512
	@echo "== labelling every pixel of them, with the embedded model and its 60 words"
	$(BIN)/maskclip segment demo/scenes/JPEGImages --vocabulary emoji --model emoji --out demo
	@echo "== labelling three real photos by everyday words, with a preview that is no CLIP (docs/models.md)"
	photos="$$($(BIN)/python -c 'import skimage; print(skimage.data_dir)')" && $(BIN)/maskclip segment \
		"$$photos/chelsea.png" "$$photos/coffee.png" "$$photos/rocket.jpg" \
		--vocabulary photo --background 0.5 --model photo --regions slic --out demo
	@echo "== look at demo/*_overlay.png; demo/*_labels.png are the labels. Next, try:"
	@echo "   $(BIN)/maskclip segment demo/scenes/JPEGImages -c dog -c car -c grass -c sky --model emoji"
	@echo "   $(BIN)/maskclip eval emoji"
	@echo "   $(BIN)/maskclip segment YOUR_PHOTO.jpg -c dog -c 'red car' -c grass   # downloads CLIP"

# As many workers as processors and free memory allow: tests/running.py.
WORKERS := -n auto --maxprocesses 8 --dist worksteal
test: $(READY)
	@echo "== running the test suite"
	$(BIN)/python -m pytest $(WORKERS)

test-full: $(READY)
	@echo "== running the test suite, with every published training at full size and whole corpora"
	$(BIN)/python -m pytest $(WORKERS) -m ""

# 6 GB more, where PyTorch comes with CUDA.
LOWEST := build/lowest
test-lowest: $(READY)
	$(UV) venv --clear --python $(BIN)/python $(LOWEST)
	$(UV) pip install --python $(LOWEST) --resolution lowest-direct --requirement pyproject.toml --extra dev .
	$(LOWEST)/$(SCRIPTS)/python -m pytest $(WORKERS)

check: lint types layers

lint: $(READY)
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	@echo "== mypy"
	$(BIN)/mypy

layers: $(READY)
	@echo "== import-linter"
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m tools.site
	$(BIN)/zensical build --clean --strict
	@echo "== open build/site/index.html"

package: $(READY)
	$(BIN)/python -m tools.dist --check

dist: $(READY)
	$(BIN)/python -m tools.dist $(DIST)

$(READY): pyproject.toml requirements.txt requirements-uv.txt
	@echo "== setting up $(VENV): Python, then the pinned packages (torch is large: a few minutes)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	$(UV) pip install --require-hashes --compile-bytecode -r requirements.txt
	$(UV) pip install --no-deps --no-build-isolation --editable .
	@touch $@

# The locks name no index, so that any mirror serves; hashes say what is accepted.
LOCK := --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --custom-compile-command 'make lock'
lock: $(READY)
	$(UV) pip compile $(LOCK) --upgrade --extra dev pyproject.toml --output-file requirements.txt
	echo uv | $(UV) pip compile $(LOCK) --upgrade - --output-file requirements-uv.txt

clean:
	rm -rf $(VENV) demo build dist
