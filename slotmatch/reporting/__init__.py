"""From runs to pages: result files, statistics, figures, tables, and the book made of them."""

from slotmatch.extras import require

require("train", "pandas")
