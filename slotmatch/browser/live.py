"""The student in the reader's own browser: what a page needs for it, and the page's element."""

import json
import shutil
from pathlib import Path

import numpy as np

from slotmatch import palette, paths
from slotmatch.browser.vendor import ONNXRUNTIME, fetch
from slotmatch.browser.widget import asset

__all__ = ["LiveStudent", "stage"]


def stage(folder: Path) -> None:
    """Put beside an ONNX file of ``export_onnx`` what a page needs to run it: runtime and scripts.

    Raises:
        RuntimeError: the runtime is not in the cache and cannot be fetched.
    """
    runtime = fetch(ONNXRUNTIME)
    for name in ONNXRUNTIME.files:
        source = runtime / Path(name).name
        with paths.atomic(folder / source.name) as temporary:
            shutil.copyfile(source, temporary)
    for name in ("live.mjs", "browser.mjs"):
        with paths.atomic(folder / name) as temporary:
            temporary.write_text(asset(name), encoding="utf-8")


class LiveStudent:
    """Shows, in a page, controls that run a model on videos there; nothing is uploaded.

    It offers the videos of all ``SlotBrowser`` of the page, files of the reader's own and a camera.
    Where it cannot run, in a notebook or a page opened from disk, it says what to do.

    Args:
        folder: address of what ``stage`` gave, relative to the page.
        model: name of the ONNX file in it.
    """

    def __init__(self, folder: str, model: str) -> None:
        self.folder, self.model = folder, model

    def _repr_html_(self) -> str:
        rgb = np.rint(255 * palette.slot_colors(len(palette.SLOT_COLORS))).astype(int).tolist()
        colors = json.dumps(rgb, separators=(",", ":"))
        return (
            f'<div class="slotmatch-live" data-model="{self.model}" data-colors="{colors}" '
            'role="group" aria-label="the student, live">\n'
            f"<style>\n{asset('live.css')}</style>\n"
            '<p class="sl-status" role="status">The student runs here where the page comes from a '
            "web server: browsers refuse to run it in a page opened from disk or in a notebook. "
            "In the folder of the built book type <code>python -m http.server</code> and open "
            "<code>http://localhost:8000</code>.</p>\n</div>\n"
            f'<script type="module" src="{self.folder}/live.mjs"></script>\n'
        )
