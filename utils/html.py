"""Parts that all HTML pages share: style, frame and tables."""

import html

import numpy as np

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #667078; --line: #e3e6e9; --page: #fff; --band: #f6f7f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #98a1a9; --line: #2d3339; --page: #14171a; --band: #1b1f23; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.25rem 5rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.25rem; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p, li, dd { max-width: 48rem; }
p, figcaption, .note { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; font-size: .92rem; margin: 0 0 1.5rem; }
dt { color: var(--soft); } dd { margin: 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .4rem .85rem .4rem 0; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
tr.mean td { font-weight: 600; }
figure { margin: 1.5rem 0; overflow-x: auto; }
figure svg { width: 100%; min-width: 40rem; max-width: 60rem; height: auto; display: block; }
figcaption { font-size: .875rem; margin-top: .4rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1rem; }
.pictures figure { margin: 0; } .pictures img { width: 100%; height: auto; display: block; border-radius: 4px; }
details { margin-top: .5rem; } summary { cursor: pointer; color: var(--soft); }
.warning { border-left: 4px solid #d55e00; padding: .3rem .9rem; margin: .6rem 0; color: var(--ink); }
.remark { border-left: 4px solid var(--line); padding: .1rem .9rem; margin: .3rem 0; font-size: .92rem; }
.research { border: 1px solid var(--line); border-radius: 6px; background: var(--band); padding: .4rem .9rem;
  color: var(--ink); font-size: .92rem; max-width: none; margin: .6rem 0; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --band: #fff; }
  @page { margin: 12mm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  html { font-size: 11.5px; }
  body { padding: 0; max-width: none; font-size: 1rem; }
  h1 { font-size: 1.6rem; } h2 { margin: .3cm 0 .1cm; padding-top: .1cm; }
  .scroll { overflow: visible; margin: .2cm 0; } a { color: inherit; }
}
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
"""


def html_page(title, body, style=""):
    """A page of the HTML `body` that needs no other file; `style` is CSS after `STYLE`."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def html_table(table):
    """A DataFrame as an HTML table. It scrolls if the page is narrow."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = []
    for row in table.to_dict("records"):
        cells = "".join(f"<td>{html.escape(cell_text(value))}</td>" for value in row.values())
        rows.append(f"<tr{' class=mean' if row.get('fluid') == 'mean' else ''}>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def cell_text(value):
    """A table's value as text; floats have three decimals."""
    return number(value) if isinstance(value, float) else str(value)


def number(value):
    """Three decimals, or "-" for nan."""
    return "-" if np.isnan(value) else f"{value:.3f}"
