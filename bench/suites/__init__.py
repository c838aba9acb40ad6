"""The benchmarks that `fasttransfer bench` runs, and the harness of all benchmarks; imported as fasttransfer.bench."""
