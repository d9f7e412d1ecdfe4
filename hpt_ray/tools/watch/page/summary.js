// What the chosen run came to, as `summary` of the report says it, or the chosen runs beside each other: `comparison`.

import { ask, choice, el, visible } from "./dom.js";
import { saved } from "./saved.js";
import * as state from "./state.js";

const EVERY_MS = 20000; // for each run: one that goes on is not read anew with each of its steps
const MOST_COMPARED = 24;

let root, bar, content, shown = "", at = 0;

export function enter(into) {
  root = into;
  root.append(bar = el("div", { className: "bar" }), content = el("div", { className: "summary" }));
  shown = "";
}

export async function show(runs) {
  const several = saved ? saved.comparison : runs.length > 1 && runs.length <= MOST_COMPARED;
  const run = runs.find(one => one.id === state.get("run")) ?? (several ? null : runs[0]);
  bar.replaceChildren(choice("Run", [...(several ? [["", "all, compared"]] : []), ...runs.map(one => [one.id, one.id])], run?.id ?? "", id => state.set({ run: id })));
  bar.hidden = runs.length < 2 && !several;
  if (!run && !several) { shown = ""; content.replaceChildren(el("p", { className: "soft", textContent: "Choose a run." })); return; }
  const read = run ? [run] : saved?.runs ?? runs, key = JSON.stringify(read.map(one => one.id)), version = JSON.stringify(read.map(one => one.version));
  if (shown === key && (saved || version === root.dataset.version || Date.now() - at < EVERY_MS * read.length)) return;
  if (shown !== key) content.replaceChildren();
  shown = key;
  at = Date.now();
  const blocks = await (run ? ask("summary", { run: run.id }) : ask("comparison", { runs: key }));
  if (shown !== key) return;
  root.dataset.version = version;
  const kept = saved && [`Saved ${saved.at}.`, ...(run ? [`Kept in this file: ${saved.of[run.id].note}.`] : [])].join(" ");
  content.replaceChildren(el("h1", { textContent: visible(run?.id ?? saved?.title ?? `${read.length} runs`) }), ...(kept ? [el("p", { className: "soft", textContent: kept })] : []), ...blocks.map(block));
}

function block(one, i) {
  const parts = [
    one.lead ? el("p", { textContent: visible(one.lead) }) : null,
    one.warnings ? el("div", { className: "warning", role: "alert" }, el("b", { textContent: "Look at the data first" }), ...one.warnings.map(text => el("p", { textContent: visible(text) }))) : null,
    one.facts ? el("dl", { className: "facts" }, ...one.facts.map(([name, value]) => el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: visible(value) })))) : null,
    ...(one.notes ?? []).map(text => el("p", { className: "soft", textContent: text })),
    ...(one.pictures ?? []).map(([src, alt, caption]) => el("figure", { className: "card" }, el("img", { src, alt }), caption ? el("figcaption", { className: "soft", textContent: visible(caption) }) : null)),
    ...(one.tables ?? []).map(table),
    ...(one.texts ?? []).map(([title, pairs]) => el("article", { className: "card" }, el("b", { textContent: visible(title) }),
      ...pairs.flatMap(([name, text]) => [el("div", { className: "soft", textContent: name }), el("pre", { textContent: visible(text) })]))),
  ].filter(Boolean);
  if (one.folded) return el("details", {}, el("summary", { textContent: one.title }), ...parts);
  return el("section", {}, i ? el("h2", { textContent: one.title }) : null, ...parts);
}

const table = one => el("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: one.caption }, el("table", {},
  el("caption", { textContent: visible(one.caption) }),
  el("thead", {}, el("tr", {}, ...one.header.map(text => el("th", { scope: "col", textContent: visible(text) })))),
  el("tbody", {}, ...one.rows.map(([head, ...rest]) => el("tr", {}, el("th", { scope: "row", textContent: visible(head) }), ...rest.map(cell))))));

const cell = text => el("td", { textContent: visible(text.best ?? text), className: text.best ? "short best" : text.length < 20 ? "short" : "" });
