"""What the rest of `pipelines` stands on: errors, files, reading recipes, progress, figures, processes and devices."""
