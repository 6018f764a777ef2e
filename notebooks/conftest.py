"""pytest reads this when it runs the notebooks; how they are checked stands in tests/notebook_checks.py."""
from notebook_checks import pytest_collection_modifyitems  # noqa: F401
