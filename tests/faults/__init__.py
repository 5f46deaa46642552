"""Faults forced on the real parts: `python -m tests.faults`, or `make faults`; short forms are in `make test`."""
