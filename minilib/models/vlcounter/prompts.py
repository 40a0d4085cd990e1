"""What VLCounter asks CLIP: its plural templates, the singular ones of its ablation,
and plurals of class names."""

from __future__ import annotations

from collections.abc import Sequence

from minilib.tokenizer import check_templates

PLURAL_TEMPLATES = (
    *(
        f"a photo of a number of {size}{{}}."
        for size in ("", "small ", "medium ", "large ")
    ),
    *(
        f"there are a photo of a number of {size}{{}}."
        for size in ("", "small ", "medium ", "large ")
    ),
    "a number of {} in the scene.",
    "a photo of a number of {} in the scene.",
    "there are a number of {} in the scene.",
)
"""The 11 templates of training and testing; "there are a photo of" is [sic]."""

SINGULAR_TEMPLATES = (
    *(f"A photo of a {size}{{}}." for size in ("", "small ", "medium ", "large ")),
    *(
        f"This is a photo of a {size}{{}}."
        for size in ("", "small ", "medium ", "large ")
    ),
    "A {} in the scene.",
    "A photo of a {} in the scene.",
    "There is a {} in the scene.",
    "There is the {} in the scene.",
    "This is a {} in the scene.",
    "This is the {} in the scene.",
    "This is one {} in the scene.",
)
"""The 15 templates of the ablation."""

_PLURALS = {
    "chopstick": "chopsticks",
    "cupcake tray": "cupcake trays",
    "donuts tray": "donuts trays",
    "fresh cut": "fresh cuts",
    "go game": "go games",
    "goldfish snack": "goldfish snacks",
    "ice cream": "ice creams",
    "lipstick": "lipsticks",
    "naan bread": "naan breads",
    "nail polish": "nail polishes",
    "skateboard": "skateboards",
    "spoon": "spoons",
    "supermarket shelf": "supermarket shelves",
    "watermelon": "watermelons",
}


def plural(name: str) -> str:
    """Return a class name of FSC-147 in the plural: 133 of its 147 names
    are plural already."""
    return _PLURALS.get(name, name)


def prompts_for(name: str, templates: Sequence[str]) -> list[str]:
    """Fill every template with ``name``.

    Raises:
        ValueError: an empty name, no templates, or a template without ``{}``.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name {name!r} is empty: expected one such as 'red apples'")
    check_templates(templates)
    return [text.replace("{}", name.strip()) for text in templates]
