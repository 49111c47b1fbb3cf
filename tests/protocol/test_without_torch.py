"""Claim: plans and protocol know nothing of torch, so that a party without a model can speak it."""

import subprocess
import sys

PROGRAM = """
import importlib, importlib.util, pkgutil, sys, types
spec = importlib.util.find_spec("cutlayer")
sys.modules["cutlayer"] = bare = types.ModuleType("cutlayer")  # the package itself offers `simulate`, which needs torch
bare.__path__ = spec.submodule_search_locations
for room in ("cutlayer.plan", "cutlayer.protocol"):
    package = importlib.import_module(room)
    for module in pkgutil.iter_modules(package.__path__, room + "."):
        importlib.import_module(module.name)
print(*sorted({"torch", "numpy", "pandas", "pyarrow", "cryptography"} & set(sys.modules)))
"""


def test_importing_all_of_plan_and_protocol_imports_no_library_but_msgspec() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
