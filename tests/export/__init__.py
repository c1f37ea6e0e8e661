"""What needs PyTorch and transformers: run by `make test-export` in its own environment."""
