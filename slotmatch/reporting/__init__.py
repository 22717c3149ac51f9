"""From runs to pages: result files, statistics, figures, tables, and the book made of them."""
