"""Masks of a video to step through, in a notebook or as a page of its own."""

from slotmatch.browser.widget import SlotBrowser, browse

__all__ = ["SlotBrowser", "browse"]
