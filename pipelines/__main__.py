"""`python -m pipelines …` is `smalti …`."""

from pipelines.cli import main

main()
