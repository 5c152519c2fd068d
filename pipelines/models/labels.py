"""Labels as users write them: a class number or a class name."""

from collections.abc import Sequence

from pipelines.base.errors import UserError

Label = int | str


def label_number(
    label: Label, num_classes: int | None, names: Sequence[str] | None, what: str, option: str = "label"
) -> int:
    """The number of a class of a model, which messages call `what`, and the label that of `option`. `num_classes` None:
    it takes no labels.

    Raises:
        UserError: it takes no labels, or not this one; lists the names.
    """
    if num_classes is None:
        raise UserError(f"{option}: found {label!r}, but this {what} is unconditional: it was trained without labels")
    names = list(names or ())
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, str) and label.isascii() and label.isdigit():
        label = int(label)
    if isinstance(label, int) and 0 <= label < num_classes:
        return int(label)
    listed = f": {', '.join(names)}" if names else ""
    raise UserError(f"{option}: found {label!r}, expected 0 to {num_classes - 1} or a class name{listed}")
