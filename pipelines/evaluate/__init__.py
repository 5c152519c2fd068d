"""Figures of finished models: fidelity to the original, bits per token, use of codes, and accuracy of labels."""
