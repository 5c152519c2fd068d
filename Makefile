# Two commands: `make demo` (pictures) and `make test`. Both set up .venv on a machine that has Python >= 3.11 only.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fashion-mnist clean

demo: .venv/.smalti
	$(BIN)/smalti run configs/composition/pipeline.yaml
	@echo "Captions and what was drawn: runs/composition/captions.png (the best of 16: chosen_captions.png)"
	@echo "Images, codes, new images:   runs/composition/overview.png reconstructions.png codes.png"

test: .venv/.smalti-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python --warnings
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal

# Fashion-MNIST where torchvision would look for it: from the Debian package dataset-fashion-mnist if that is installed;
# otherwise torchvision downloads it by itself when a recipe asks for it.
FASHION := /usr/share/datasets/fashion-mnist
fashion-mnist:
	mkdir -p data/FashionMNIST/raw
	for file in $(FASHION)/*.gz; do gunzip -kc $$file > data/FashionMNIST/raw/$$(basename $$file .gz); done

.venv/.smalti: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.smalti-dev: .venv/.smalti
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
