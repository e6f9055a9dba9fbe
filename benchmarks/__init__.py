"""Each module prints a table and one JSON line. Figures are ratios within one run; see ``ground.py``."""
