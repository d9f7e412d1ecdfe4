"""The style of the page: one column on a phone, two figures side by side on a desktop, light and dark.

Pictures are drawn on white. In the dark they are inverted and their hues turned back, so that a colour stays
that colour; #121212 is what white becomes, and the background that they lie on.
"""

CSS = """
:root { --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --page: #f6f7f9; --card: #ffffff; --link: #0b5cad;
  --good: #1a7f4b; --bad: #b3402a; --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e9; --soft: #9aa4af; --line: #30353b; --page: #0b0b0c; --card: #121212; --link: #7ab7f5;
    --good: #5fcf96; --bad: #f0907a; }
  img, .swatch { filter: invert(0.93) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 3.2rem; }
body { margin: 0 auto; max-width: 1080px; padding: 0 16px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 32px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 40px 0 12px; }
h3 { font-size: 1rem; margin: 20px 0 6px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); }
.lead, .note, figcaption { color: var(--soft); }
.note, figcaption { font-size: .87rem; }
nav { position: sticky; top: 0; z-index: 1; background: var(--page); border-bottom: 1px solid var(--line);
  margin-top: 16px; }
nav ul { display: flex; gap: 20px; list-style: none; margin: 0; padding: 0; overflow-x: auto; }
nav a { display: block; padding: 10px 0; white-space: nowrap; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 16px;
  align-items: start; margin: 12px 0; }
figure, .card, .scroll, details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figure { margin: 0; padding: 12px; min-width: 0; }
figure > img { display: block; width: 100%; max-width: 560px; height: auto; margin: 0 auto; }
figcaption { margin-top: 6px; }
.facts { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; margin: 16px 0;
  background: var(--line); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.facts div { background: var(--card); padding: 8px 12px; min-width: 0; }
dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 12px 0; background:  /* a shade at the edge where there is more to the side */
  linear-gradient(90deg, var(--card) 40%, transparent) 0 0 / 40px 100% no-repeat local,
  linear-gradient(270deg, var(--card) 40%, transparent) 100% 0 / 40px 100% no-repeat local,
  linear-gradient(90deg, var(--line), transparent) 0 0 / 12px 100% no-repeat scroll,
  linear-gradient(270deg, var(--line), transparent) 100% 0 / 12px 100% no-repeat scroll, var(--card); }
.scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .87rem; padding: 10px 12px 4px; }
caption span { position: sticky; left: 12px; display: inline-block; max-width: min(100%, calc(100vw - 60px)); }
th, td { padding: 5px 12px; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; border-bottom: 1px solid var(--soft); color: var(--soft); font-weight: 600;
  vertical-align: bottom; }
tbody tr:first-child > * { border-top: 0; }
tbody th { font-weight: 500; }
tbody th.l { overflow-wrap: break-word; min-width: 5rem; }
.l { text-align: left; } .r { text-align: right; white-space: nowrap; }
td.l { overflow-wrap: anywhere; min-width: 6rem; }
td.l:last-child { min-width: 14rem; }
details { margin: 12px 0; padding: 0 12px; }
summary { cursor: pointer; padding: 10px 0; font-weight: 600; }
details .scroll, details .card { margin-left: -1px; margin-right: -1px; }
details > :last-child { margin-bottom: 12px; }
.card { padding: 12px; margin: 12px 0; }
.card h3 { margin-top: 0; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 12px; }
.answers > div { min-width: 0; }
pre { margin: 4px 0; padding: 8px 10px; background: var(--page); border-radius: 6px; font: .82rem/1.45 var(--mono);
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22rem; overflow-y: auto; unicode-bidi: isolate; }
code { font: .88em var(--mono); overflow-wrap: anywhere; }
.tag { display: inline-block; border: 1px solid currentColor; border-radius: 99px; padding: 0 8px; font-size: .8rem;
  font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); }
.best { font-weight: 700; } .whole { white-space: nowrap; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .45em;
  vertical-align: -.06em; }
@media (max-width: 640px) { .facts { grid-template-columns: repeat(2, 1fr); } }
@media print { nav { display: none; } body { background: #fff; max-width: none; } }
"""
