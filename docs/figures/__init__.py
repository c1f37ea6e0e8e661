"""Figures of docs/cost.md and docs/scale.md: `make figures` writes them, tests compare them."""
