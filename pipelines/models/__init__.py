"""Folders of models: tokenizers, priors, and both together as an image pipeline."""
