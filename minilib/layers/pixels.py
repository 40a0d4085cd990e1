"""From images to the pixels that a model sees: here and only here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SLACK = 0.01
"""How far pixels may lie outside [0, 1], as those of a bicubic resize do."""


def check_images(image: Tensor, model: nn.Module | None = None, axes: int = 4) -> None:
    """Refuse what is not an image: every model's ``preprocess`` asks this first.

    The values are read except where that would cost or break something: in the steps
    of a training, and while a program is compiled or exported.

    Args:
        image: (B, 3, H, W) uint8, or float in [0, 1]; (3, H, W) where ``axes`` is 3.
        model: the one that will see them; its training mode tells a training step.
        axes: 4 for a batch, 3 for a single image.

    Raises:
        ValueError: another shape, kind or range of numbers, or pixels that are not
            finite; names what was found, what is expected and how to mend it.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    _check_shape(image, axes)
    training = model is not None and model.training and torch.is_grad_enabled()
    if training or image.dtype == torch.uint8 or image.is_meta or not image.numel():
        return
    low, high = (value.item() for value in torch.aminmax(image.detach()))
    if not (low >= -SLACK and high <= 1 + SLACK):  # nan is neither
        if not image.isfinite().all():
            raise ValueError(
                "the image has pixels that are not finite: expected uint8 in 0 ... 255 "
                "or float in [0, 1]"
            )
        mend = (
            "they look standardised already: pass the image as it was loaded"
            if low < -SLACK
            else "divide them by 255, or pass them as uint8"
        )
        raise ValueError(
            f"the image has pixels from {low:.4g} to {high:.4g}: expected float in "
            f"[0, 1], or uint8; {mend}"
        )


def _check_shape(image: Tensor, axes: int) -> None:
    shape = "(B, 3, H, W)" if axes == 4 else "(3, H, W)"
    if not isinstance(image, Tensor):
        raise ValueError(
            f"the image is a {type(image).__name__}: expected a tensor {shape}"
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(
            f"the image has pixels of the type {image.dtype}: expected torch.uint8 in "
            "0 ... 255 or float in [0, 1]"
        )
    found = tuple(image.shape)
    if len(found) == axes and found[-3] == 3 and 0 not in found[-2:]:
        return
    mend = ""
    if 0 in found[-2:]:
        mend = ": it has no pixels"
    elif len(found) == 3 == found[0] and axes == 4:
        mend = ": a single image is a batch of one, image[None]"
    elif len(found) == 4 and axes == 3:
        mend = ": pass the images of a batch one by one"
    elif len(found) == axes and found[-1] in (3, 4):
        first = "0, 3, 1, 2" if axes == 4 else "2, 0, 1"
        mend = f": channels come before rows and columns, image.permute({first})"
    elif len(found) == axes and found[-3] in (1, 4):
        mend = ": red, green and blue are expected, such as Image.convert('RGB') makes"
    raise ValueError(f"an image of shape {found}, expected {shape}{mend}")


def unit_images(image: Tensor, model: nn.Module | None = None, axes: int = 4) -> Tensor:
    """Return images as float in [0, 1]: uint8 is divided by 255.

    Args and errors as in :func:`check_images`. Half precision becomes single, which
    every device can resize.
    """
    check_images(image, model, axes)
    if image.dtype == torch.uint8:
        return image.float() / 255
    small = image.dtype in (torch.float16, torch.bfloat16)
    return image.float() if small else image


def standardise(
    image: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return (image - mean) / std per RGB channel; images (..., 3, H, W) in [0, 1].

    Args:
        image: from :func:`unit_images`, whatever has been done to it since.
        mean: per RGB channel.
        std: likewise.
        dtype: of the model's weights; None keeps the images' own.
    """
    centre, spread = (image.new_tensor(v)[:, None, None] for v in (mean, std))
    return ((image - centre) / spread).to(dtype or image.dtype)
