"""Curves of a run's metrics, as a figure that a notebook shows."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..system.escapes import plot_text


class Curves(Figure):
    """A figure with one curve for each metric, over the iterations."""

    def __init__(self, columns: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
        """Plot the named columns, each in a panel of its own, where it was measured."""
        height = max(1, -(-len(names) // 2))
        super().__init__(figsize=(9, 2.6 * height), layout="constrained")
        panels = self.subplots(height, 2 if len(names) > 1 else 1, squeeze=False).flatten()
        for panel, name in zip(panels, names):
            measured = np.isfinite(columns[name])
            panel.plot(columns["step"][measured], columns[name][measured])
            panel.set(title=plot_text(name), xlabel="iteration")
            panel.grid(alpha=0.3)
        for panel in panels[len(names) :]:
            panel.remove()

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
