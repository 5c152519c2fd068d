"""All cases. A family of them is a function that yields cases; it stands here to be run."""

from tests.benchmarks.hostile_inputs.case import Case
from tests.benchmarks.hostile_inputs.command_line import command_line
from tests.benchmarks.hostile_inputs.damaged_folders import (
    damaged_configs,
    damaged_files,
    damaged_tokens,
    damaged_unfinished_runs,
)
from tests.benchmarks.hostile_inputs.images import broken_images, broken_tables
from tests.benchmarks.hostile_inputs.outputs import outputs
from tests.benchmarks.hostile_inputs.recipe_files import recipe_files
from tests.benchmarks.hostile_inputs.values import values
from tests.benchmarks.hostile_inputs.weights import broken_weights

FAMILIES = (
    recipe_files,
    values,
    command_line,
    outputs,
    damaged_files,
    damaged_unfinished_runs,
    damaged_configs,
    damaged_tokens,
    broken_weights,
    broken_images,
    broken_tables,
)


def all_cases() -> list[Case]:
    return [case for family in FAMILIES for case in family()]
