"""What several test suites and the benchmarks share: real bundles and real pictures."""
