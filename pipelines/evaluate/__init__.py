"""Measures of what was made: fidelity to the original, and whether labels are obeyed."""
