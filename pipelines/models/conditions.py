"""What an image is drawn under: a label, a prompt, or neither."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.base.errors import UserError

Prompts = str | Sequence[str]


@dataclass(frozen=True)
class ImageCondition:
    """`label` is a class number, `prompt` a caption in the user's words. Neither: no condition."""

    label: int | None = None
    prompt: str | None = None

    @property
    def is_null(self) -> bool:
        return self.label is None and self.prompt is None

    def title(self, classes: Sequence[str] | None) -> str:
        """What to write beside the image; empty without a condition."""
        if self.prompt is not None:
            return self.prompt
        return "" if self.label is None else classes[self.label] if classes else str(self.label)


def prompt_texts(prompt: Prompts, takes_captions: bool, num_classes: int | None, what: str) -> list[str]:
    """The prompts of a call, as a new list, for a model that messages call `what`.

    Raises:
        UserError: the model takes no captions, there is not a single prompt, or one is no text.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not takes_captions:
        found = repr(texts[0]) if texts else "an empty list"
        if num_classes is not None:
            raise UserError(f"prompt: found {found}, but this {what} was trained on labels; expected a label")
        raise UserError(f"prompt: found {found}, but this {what} is unconditional: it was trained without captions")
    if not texts:
        raise UserError("prompt: found an empty list, expected at least one prompt, or None for no caption")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise UserError(f"prompt: found {wrong[0]!r}, expected text")
    return texts
