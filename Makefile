# Each target is also one Python command; see utils/tasks.py.
.PHONY: demo test
PYTHON ?= python3

demo:
	$(PYTHON) -m utils.tasks demo

test:
	$(PYTHON) -m utils.tasks test
