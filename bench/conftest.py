"""The benchmarks beside those of `fasttransfer bench`; they share its harness.

make bench                                                # all, into runs/bench.json
python -m pytest -s bench/test_forms.py --benchmark-json=bench/results/forms.json
"""

pytest_plugins = "fasttransfer.bench.harness"
