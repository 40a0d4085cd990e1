"""Draw the README's picture, one scene four times annotated:
``python book/make_readme_picture.py``."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from minilib.plotting import draw_annotations, style
from minilib.scenes import EmojiScenes, SceneConfig, class_names

PICTURE = Path(__file__).parent / "_static" / "readme.png"
TASKS = {"pairs": "caption", "segment": "mask", "detect": "boxes", "count": "points"}
INDEX = 27
"""Of the validation scene that is drawn."""


def main() -> None:
    """Write the picture."""
    style()
    scenes = EmojiScenes(
        SceneConfig(size=192, objects=(3, 4), scale=(0.75, 1.0), count=(6, 16))
    )
    sheet = Figure(figsize=(9.0, 2.75), dpi=110)
    for ax, (task, title) in zip(
        sheet.subplots(1, len(TASKS)), TASKS.items(), strict=True
    ):
        batch = scenes.batch(task, n=1, split="val", start=INDEX)
        draw_annotations(ax, batch, 0, task, class_names())
        ax.set_title(title, fontweight="bold")
        if task == "pairs":
            sheet.supxlabel(f"“{batch.caption[0]}”", fontsize=11)
    sheet.savefig(
        PICTURE, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None}
    )


if __name__ == "__main__":
    main()
