"""Small example configurations of every member of a discriminated union, derived from the option models themselves.

The first example of a member has its defaults. Then each option with a few possible values (booleans, literals, and
those that give `examples`) is changed alone, or, where it needs another one, with the first examples of all. A new
member or option is therefore tested without being listed.
"""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo


def members(union: Any) -> tuple[type[BaseModel], ...]:
    """The option models of `Annotated[A | B, ...]`, and of unions within it."""
    if get_origin(union) is Annotated:
        return members(get_args(union)[0])
    if get_origin(union) in (Union, types.UnionType):
        return tuple(member for part in get_args(union) for member in members(part))
    return (union,)


def examples(union: Any) -> dict[str, Any]:
    """By name, e.g. "vq" and "vq distance=cosine"."""
    found = {}
    for member in members(union):
        required = {name: values(field)[0] for name, field in member.model_fields.items() if field.is_required()}
        basis = member(**required)
        kind = str(getattr(basis, "kind"))  # noqa: B009
        found[kind] = basis
        for name, field in member.model_fields.items():
            for value in values(field):
                if value != getattr(basis, name):
                    found[f"{kind} {name}={value}"] = _changed(member, required, name, value)
    return found


def _changed(member: type[BaseModel], required: dict[str, Any], name: str, value: Any) -> BaseModel:
    try:
        return member(**{**required, name: value})
    except ValidationError:
        firsts = {other: field.examples[0] for other, field in member.model_fields.items() if field.examples}
        return member(**{**required, **firsts, name: value})


def small(config: BaseModel) -> BaseModel:
    """`config` with the first example of every number that gives examples."""
    fields = type(config).model_fields.items()
    sizes = {name: field.examples[0] for name, field in fields if field.examples and field.annotation is int}
    return config.model_copy(update=sizes)


def of_latent_prior(config: Any) -> dict[str, Any]:
    """Options of an autoencoder with this latent prior: one that depends on labels needs a condition.

    Labels may be those of `shapes`, of which there are 24.
    """
    condition = {"condition": {"kind": "film", "num_classes": 24, "dim": 4}} if config.conditional else {}
    return {"latent_prior": config.model_dump()} | condition


def values(field: FieldInfo) -> list[Any]:
    """Values worth trying for one option."""
    return [*(field.examples or []), *_literals(field.annotation)]


def _literals(annotation: Any) -> Iterator[Any]:
    if annotation is bool:
        yield from (False, True)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _literals(part)
