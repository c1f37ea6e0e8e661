"""`make bench`: Glimpse beside bare baselines, in one run, as ratios."""
