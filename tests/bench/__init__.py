"""`make bench`: compares Glimpse with bare baselines in one run, as ratios."""
