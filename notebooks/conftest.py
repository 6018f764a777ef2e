"""pytest reads this when it runs the notebooks; tests/notebook_checks.py says how."""
import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # kernels inherit them

from notebook_checks import pytest_collection_modifyitems  # noqa: E402, F401

collect_ignore = ["your_own_photos.ipynb"]  # tests/test_your_own_photos.py runs it
