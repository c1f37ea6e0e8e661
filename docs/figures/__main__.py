"""Write every figure of docs/cost.md and docs/scale.md: `python -m docs.figures`."""

from docs.figures import cost, scale
from docs.figures.measured import read_measured

if __name__ == "__main__":
    measured = read_measured()
    cost.write(measured)
    scale.write(measured)
