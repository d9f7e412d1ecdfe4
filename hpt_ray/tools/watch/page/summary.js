// What the chosen run came to: result, warnings, evaluations, data, faults, settings. `summary` of the report says it.

import { ask, choice, el, visible } from "./dom.js";
import { saved } from "./saved.js";
import * as state from "./state.js";

const EVERY_MS = 20000; // a run that goes on is not read anew with each of its steps

let root, bar, content, shown = "", at = 0;

export function enter(into) {
  root = into;
  root.append(bar = el("div", { className: "bar" }), content = el("div", { className: "summary" }));
  shown = "";
}

export async function show(runs) {
  const run = runs.find(one => one.id === state.get("run")) ?? runs[0];
  bar.replaceChildren(...(runs.length > 1 ? [choice("Run", runs.map(one => [one.id, one.id]), run.id, id => state.set({ run: id }))] : []));
  bar.hidden = runs.length < 2;
  if (!run) { shown = ""; content.replaceChildren(el("p", { className: "soft", textContent: "Choose a run." })); return; }
  if (shown === run.id && (saved || run.version === root.dataset.version || Date.now() - at < EVERY_MS)) return;
  if (shown !== run.id) content.replaceChildren();
  shown = run.id;
  at = Date.now();
  const blocks = await ask("summary", { run: run.id });
  if (shown !== run.id) return;
  root.dataset.version = run.version;
  content.replaceChildren(el("h1", { textContent: run.id }), ...(saved?.note ? [el("p", { className: "soft", textContent: `Saved ${saved.at}. Kept in this file: ${saved.note}.` })] : []), ...blocks.map(block));
}

function block(one, i) {
  const parts = [
    one.lead ? el("p", { textContent: visible(one.lead) }) : null,
    one.warnings ? el("div", { className: "warning", role: "alert" }, el("b", { textContent: "Look at the data first" }), ...one.warnings.map(text => el("p", { textContent: visible(text) }))) : null,
    one.facts ? el("dl", { className: "facts" }, ...one.facts.map(([name, value]) => el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: visible(value) })))) : null,
    ...(one.notes ?? []).map(text => el("p", { className: "soft", textContent: text })),
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
  el("tbody", {}, ...one.rows.map(([head, ...rest]) => el("tr", {}, el("th", { scope: "row", textContent: visible(head) }), ...rest.map(text => el("td", { textContent: visible(text), className: text.length < 20 ? "short" : "" })))))));
