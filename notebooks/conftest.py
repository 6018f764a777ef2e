"""pytest reads this when it runs the notebooks; tests/notebook_checks.py says how."""
from notebook_checks import pytest_collection_modifyitems  # noqa: F401
