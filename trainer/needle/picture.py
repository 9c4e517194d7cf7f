"""What was found, as a picture: length of the text across, depth of the needle down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.needle.measure import Found
from trainer.report.picture import save_figure


def draw(results: Sequence[Found], path: Path) -> None:
    """One panel for each checkpoint, as PNG. Raises RunError where it cannot be written."""
    from matplotlib.figure import Figure

    def figure() -> Figure:
        made = Figure(figsize=(1.5 + 3.2 * len(results), 3.4), layout="constrained")
        axes = made.subplots(1, len(results), squeeze=False)[0]
        for each, found in zip(axes, results):
            columns = [list(column) for column in zip(*found.shares)]  # by depth
            each.imshow(columns, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            each.set_xticks(range(len(found.lengths)), [f"{n:,}" for n in found.lengths])
            each.set_yticks(range(len(found.depths)), [f"{d:.0%}" for d in found.depths])
            each.set_title(found.name, fontsize=9)
            each.set_xlabel("characters")
            for row, shares in enumerate(columns):
                for column, share in enumerate(shares):
                    colour = "black" if share > 0.6 else "white"
                    each.text(
                        column, row, f"{share:.0%}", ha="center", va="center", fontsize=7,
                        color=colour,
                    )  # fmt: skip
        axes[0].set_ylabel("depth of the needle")
        made.colorbar(axes[0].images[0], ax=list(axes), label="found")
        return made

    save_figure(figure, path)
