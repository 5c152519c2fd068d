import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from tests.tokenizer.members import examples
from tokenizer.schedules import Constant, Cosine, Cyclical, Linear, Schedule

ADAPTER: TypeAdapter = TypeAdapter(Schedule)


MEMBERS = examples(Schedule)
every_member = pytest.mark.parametrize("schedule", MEMBERS.values(), ids=MEMBERS)


class Recipe(BaseModel):
    weight: Schedule


@every_member
def test_no_value_is_below_the_lowest_or_above_the_highest(schedule):
    values = [schedule.at(step) for step in range(60)]
    assert (min(values), max(values)) == (schedule.lowest, schedule.highest)


@every_member
def test_a_schedule_ends_and_is_finite(schedule):
    assert all(-1e9 < schedule.at(step) < 1e9 for step in (0, 10**9, 2**62))


@every_member
def test_every_schedule_survives_being_written_down(schedule):
    recipe = Recipe(weight=schedule)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    "schedule", [Linear(start=1, end=0.3, begin=10, steps=7), Cosine(start=1, end=0.3, begin=10, steps=7)]
)
def test_ramp_holds_its_ends_exactly(schedule):
    assert [schedule.at(step) for step in (0, 10)] == [1, 1]
    assert [schedule.at(step) for step in (17, 18, 10**9)] == [0.3, 0.3, 0.3]
    assert 1 > schedule.at(11) > schedule.at(16) > 0.3


def test_linear_is_straight_and_cosine_meets_it_halfway():
    linear, cosine = Linear(start=0, end=4, steps=8), Cosine(start=0, end=4, steps=8)
    assert [linear.at(step) for step in range(9)] == pytest.approx([i / 2 for i in range(9)])
    assert cosine.at(4) == pytest.approx(2)
    assert cosine.at(1) < linear.at(1) and cosine.at(7) > linear.at(7)


def test_cyclical_rises_holds_and_falls_back_at_each_period():
    schedule = Cyclical(start=0, end=1, begin=100, period=10, ramp=0.5)
    assert [schedule.at(step) for step in (0, 100, 101, 105, 109, 110, 111)] == pytest.approx([0, 0, 0.2, 1, 1, 0, 0.2])


def test_cyclical_stays_at_its_end_after_the_last_cycle():
    schedule = Cyclical(start=0, end=1, period=10, cycles=2)
    assert [schedule.at(step) for step in (19, 20, 21, 10**6)] == [1, 1, 1, 1]
    assert schedule.at(10) == 0


@pytest.mark.parametrize("number", [0, 2, 0.25, "1e-3"])  # YAML 1.1 reads 1e-3 as a string
def test_a_bare_number_is_a_constant(number):
    assert ADAPTER.validate_python(number) == Constant(value=float(number))


@pytest.mark.parametrize(
    "wrong", [True, None, "fast", float("nan"), {"kind": "linear", "start": 0, "end": 1}, {"kind": "stairs"}]
)
def test_what_is_no_schedule_is_refused(wrong):
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)


def test_the_schema_tells_editors_that_a_number_will_do():
    assert {"type": "number"} in Recipe.model_json_schema()["properties"]["weight"]["anyOf"]
