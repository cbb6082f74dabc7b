"""What we are measured against, each a program of its own that the benchmarks start."""
