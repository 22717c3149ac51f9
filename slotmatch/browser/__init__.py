"""Masks of a video to step through, in a notebook or as a page of its own; and a model live."""

from slotmatch.extras import require

require("notebooks", "anywidget", "matplotlib")

from slotmatch.browser.live import LiveStudent
from slotmatch.browser.widget import SlotBrowser

__all__ = ["LiveStudent", "SlotBrowser"]
