"""Grids of networks that halve them."""


def halved(image_size: int, times: int, kind: str) -> int:
    """image_size / 2^times. Raises ValueError, naming the `kind` of backbone, when that is not a whole number."""
    if image_size % 2**times:
        raise ValueError(
            f"image_size {image_size} is not a multiple of {2**times}, the downsampling of this {kind} backbone"
        )
    return image_size // 2**times
