"""Comparisons with what else there is: `python -m benchmarks NAME`. Quoted results lie in `results/`."""
