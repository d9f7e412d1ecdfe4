// The configurations of the chosen runs beside each other: what differs, or every key.

import { ask, el, visible } from "./dom.js";
import * as state from "./state.js";

let table, filter, all;
const known = new Map();

export function enter(root) {
  filter = el("input", { type: "search", placeholder: "Find a key or value", value: state.get("key"), ariaLabel: "Find a key" });
  filter.addEventListener("input", () => state.set({ key: filter.value }));
  all = el("input", { type: "checkbox", onchange: () => state.set({ all: all.checked ? 1 : null }) });
  table = el("table");
  root.append(el("div", { className: "bar" }, filter, el("label", {}, all, " keys that are the same too")), el("div", { className: "scroll" }, table));
}

function flat(nested, prefix = "", into = {}) {
  for (const [name, value] of Object.entries(nested))
    if (value && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) flat(value, `${prefix}${name}.`, into);
    else into[prefix + name] = value;
  return into;
}

const nothing = value => value === undefined || value === null || (typeof value === "object" && !Object.keys(value).length);
const text = value => nothing(value) ? "–" : typeof value === "string" ? value : JSON.stringify(value);

export async function show(runs) {
  all.checked = Boolean(state.get("all"));
  await Promise.all(runs.filter(run => !known.has(run.id)).map(async run => known.set(run.id, flat(await ask("config", { run: run.id })))));
  const configs = runs.map(run => known.get(run.id));
  const keys = [...new Set(configs.flatMap(config => Object.keys(config)))].sort();
  const wanted = state.get("key").toLowerCase();
  const rows = keys.filter(key => {
    const values = configs.map(config => text(config[key]));
    const same = new Set(values).size < 2;
    return (all.checked || runs.length < 2 || !same) && `${key} ${values.join(" ")}`.toLowerCase().includes(wanted);
  });
  table.replaceChildren(
    el("thead", {}, el("tr", {}, el("th", { textContent: "key" }), ...runs.map(run => el("th", {}, el("i", { className: "swatch", style: { background: run.color } }), run.id)))),
    el("tbody", {}, ...rows.map(key => el("tr", {}, el("th", { textContent: key }), ...configs.map((config, i) =>
      el("td", { textContent: visible(text(config[key])), className: i && text(config[key]) !== text(configs[0][key]) ? "differs" : "" }))))));
  if (!rows.length) table.append(el("caption", { textContent: runs.length ? "Nothing differs." : "Choose a run." }));
}
