"""Pieces of HTML: tables, figures, the frame of the page."""

import html
import re

_STYLE = """
:root { --ink: #1f2933; --soft: #5f6b7a; --line: #e1e6ec; --paper: #ffffff; --wash: #f5f7fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #98a4b3; --line: #343c47; --paper: #171b21; --wash: #1f252d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 32px 24px 64px; color: var(--ink);
  background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 12px; }
p.note { color: var(--soft); margin: 4px 0 12px; max-width: 82ch; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 0; }
.tile { background: var(--wash); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 18px;
  min-width: 130px; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px 6px 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: normal; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
th:first-child, td:first-child { text-align: left; }
table.words td { text-align: left; overflow-wrap: anywhere; min-width: 10ch; }
table.words th { text-align: left; }
.scroll { overflow-x: auto; }
figure { margin: 0; }
.views > *, .pair > *, .charts > * { min-width: 0; }
img { width: 100%; display: block; border-radius: 4px; background: #fff; }
figcaption { color: var(--soft); font-size: 12.5px; padding: 3px 0 6px; }
.views, .pair, .charts { display: grid; gap: 6px; }
.views { grid-template-columns: repeat(auto-fit, minmax(min(160px, 100%), 1fr));
  margin: 0 0 14px; }
.pair, .charts { grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 14px; }
.map { max-width: 760px; }
.bar { max-width: 480px; margin: 0 0 12px; }
.bar div { height: 14px; border-radius: 4px; }
.bar p { display: flex; justify-content: space-between; margin: 2px 0 0; color: var(--soft);
  font-size: 13px; }
a { color: inherit; }
p.link { margin: 4px 0; }
@media (max-width: 600px) {
  body { padding: 20px 12px 40px; }
  .tile { flex: 1 1 40%; padding: 8px 12px; }
  th, td { padding-right: 10px; }
}
"""


def table(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    """An HTML table of escaped texts; "" without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def picture(url: str, words: str) -> str:
    """A picture that says by itself what it shows."""
    return f'<img src="{url}" alt="{html.escape(words)}" loading="lazy">'


def figure(url: str, caption: str) -> str:
    """A picture with a caption."""
    text = html.escape(caption)
    return f"<figure>{picture(url, caption)}<figcaption>{text}</figcaption></figure>"


def tiles(numbers: list[tuple[str, str]]) -> str:
    """Key numbers: (value, name) each."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
            for value, name in numbers
        )
        + "</div>"
    )


def note(text: str) -> str:
    """An explanation in small letters, commands between backticks; "" for no text."""
    if not text:
        return ""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return f'<p class="note">{marked}</p>'


def section(title: str, content: str, explanation: str = "") -> str:
    """A headed part of the page; "" if it has no content."""
    if not content:
        return ""
    return f"<section><h2>{html.escape(title)}</h2>{note(explanation)}{content}</section>"


def document(title: str, subtitle: str, parts: list[str]) -> str:
    """The whole page, which needs no other file."""
    return (
        '<!doctype html><html lang="en"><head><meta '
        f'charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(title)}</h1><p "
        f'class="note">{html.escape(subtitle)}</p>{"".join(parts)}</body></html>\n'
    )
