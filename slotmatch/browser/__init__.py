"""Masks of a video to step through, in a notebook or as a page of its own; and a model live."""

from slotmatch.browser.live import LiveStudent
from slotmatch.browser.widget import SlotBrowser, browse

__all__ = ["LiveStudent", "SlotBrowser", "browse"]
