"""An HTML page that needs nothing beside it: what the pages on runs and on sweeps share."""

from __future__ import annotations

from html import escape
from string import Template

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2937; margin: 2rem auto; max-width: 78rem;
       padding: 0 1rem; }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block;
        overflow-x: auto }
th, td { padding: .3rem .55rem; border-bottom: 1px solid #e5e7eb; text-align: right;
         white-space: nowrap }
th { font-weight: 600; color: #4b5563 } th:first-child, td:first-child { text-align: left }
.mark { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em }
$style</style></head><body>
<h1>$title</h1>
$body
</body></html>
""")


def whole_page(title: str, body: str, style: str = "") -> str:
    """A page of this title, a plain text. ``body`` is HTML, ``style`` CSS of the page's own."""
    return _PAGE.substitute(title=escape(title), body=body, style=style)
