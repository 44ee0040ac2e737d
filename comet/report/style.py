"""How report.html looks, on a desk and on a phone, by day and by night."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --muted: #5b6470; --grid: #e3e6ea; --line: #d3d8de;
  --student: #2469c4; --teacher: #c2570c; --best: #137a3f; --marked: #fff1c2; --right: #137a3f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1d2126; --ink: #e8ebee; --muted: #a0a9b4; --grid: #2d333a; --line: #3a424b;
    --student: #6aa5f2; --teacher: #f0924b; --best: #5cc98a; --marked: #4d4116; --right: #5cc98a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 24px 16px 64px; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.2rem; margin: 40px 0 8px; }
h3 { font-size: 1rem; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 75ch; }
.tiles, .grid { display: grid; gap: 12px; margin: 16px 0; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); }
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); }
.tiles > div, figure, .card, .facts { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tiles > div, .card { padding: 12px; }
dt { color: var(--muted); font-size: 0.85rem; line-height: 1.3; }
dd { margin: 4px 0 0; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
dd.small { font-size: 0.85rem; color: var(--muted); margin-top: 2px; }
figure { margin: 0; padding: 12px; min-width: 0; }
figcaption { font-size: 0.9rem; line-height: 1.35; margin-bottom: 8px; }
figcaption strong, figcaption small { display: block; }
figcaption small { color: var(--muted); font-size: 0.8rem; }
.key { margin-right: 12px; white-space: nowrap; color: var(--muted); font-size: 0.8rem; }
.key::before { content: ""; display: inline-block; width: 10px; height: 10px; margin-right: 4px; border-radius: 2px; }
.key.student::before { background: var(--student); }
.key.teacher::before { background: var(--teacher); }
svg { display: block; width: 100%; height: auto; font-size: 11px; font-variant-numeric: tabular-nums; }
svg text { fill: var(--muted); }
svg text.strong { fill: var(--best); font-weight: 600; font-size: 12px; }
svg .grid { stroke: var(--grid); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.student { stroke: var(--student); }
.line.teacher { stroke: var(--teacher); }
.line.ideal { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 4 4; }
.dot { stroke: var(--card); }
.dot.student, .bar.student { fill: var(--student); }
.dot.teacher, .bar.teacher { fill: var(--teacher); }
.dot.few { fill: var(--card); stroke-width: 1.5; }
.dot.few.student { stroke: var(--student); }
.dot.few.teacher { stroke: var(--teacher); }
.dot.best { fill: var(--best); }
.mark { stroke: var(--best); stroke-dasharray: 3 3; }
.maps { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; font-size: 0.8rem; color: var(--muted); }
.maps img { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; border: 1px solid var(--line); }
.card { margin: 12px 0; }
.text { line-height: 1.9; max-width: none; }
mark { background: var(--marked); color: inherit; border-radius: 4px; padding: 2px 4px; }
sup { font-size: 0.7em; line-height: 0; color: var(--muted); margin-left: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 6px 8px 6px 0; border-top: 1px solid var(--grid); }
thead th { border-top: 0; color: var(--muted); font-weight: 500; }
.guesses { table-layout: fixed; }
.guesses th:nth-child(1) { width: 2em; }
.guesses th:nth-child(2) { width: 26%; }
.guesses td > span { display: inline-block; margin-right: 12px; }
.wide { overflow-x: auto; }
.wide th, .wide td { overflow-wrap: normal; white-space: nowrap; }
.n, small { color: var(--muted); }
.right { color: var(--right); font-weight: 600; }
.facts { border-collapse: separate; border-spacing: 0; }
.facts th { width: 30%; font-weight: 500; color: var(--muted); }
.facts th, .facts td { padding: 6px 12px; }
.facts tr:first-child > * { border-top: 0; }
@media print { figure, .card, tr { break-inside: avoid; } }
"""
