// The list of runs, the views, and the clock that asks for what is new.

import * as config from "./config.js";
import * as curves from "./curves.js";
import { $, ago, ask, el, number } from "./dom.js";
import * as gate from "./gate.js";
import * as rollouts from "./rollouts.js";
import { saved } from "./saved.js";
import * as state from "./state.js";
import * as summary from "./summary.js";
import * as time from "./time.js";

const VIEWS = { summary: ["Summary", summary], curves: ["Curves", curves], gate: ["Gate", gate], rollouts: ["Rollouts", rollouts], time: ["Time", time], config: ["Configuration", config] };
const FIRST_RUNS = 6; // that are drawn where the address names none
const EVERY_S = [3, 10]; // from the newest step: a quarter of its age, at least and at most
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#b0558f", "#e09900", "#4faee5", "#8c6d46", "#7a7f87"];

let runs = [];
let shownView = null;
const slots = new Map(); // run → its colour's number, the lowest that is free

function chosen() {
  const known = new Map(runs.map(run => [run.id, run]));
  const picked = state.list("runs").filter(id => known.has(id));
  for (const id of [...slots.keys()]) if (!picked.includes(id)) slots.delete(id);
  for (const id of picked) {
    if (slots.has(id)) continue;
    const used = new Set(slots.values());
    let slot = 0;
    while (used.has(slot)) slot++;
    slots.set(id, slot);
  }
  return picked.map(id => ({ ...known.get(id), color: COLORS[slots.get(id) % COLORS.length] }));
}

function pick(id, on) {
  const rest = state.list("runs").filter(other => other !== id);
  state.set({ runs: on ? [...rest, id] : rest.length ? rest : "-" });
}

// Changed in place, so that what is being clicked or focused stays.
function showRuns() {
  const wanted = $("#runs-filter").value.toLowerCase();
  const picked = new Map(chosen().map(run => [run.id, run]));
  const shown = runs.filter(run => `${run.id} ${run.algorithm} ${run.model}`.toLowerCase().includes(wanted));
  $("#runs-count").textContent = `${picked.size} of ${runs.length}`;
  const box = $("#runs");
  const rows = new Map([...box.children].map(row => [row.dataset.id, row]));
  const order = shown.map(run => {
    const row = rows.get(run.id) ?? runRow(run.id);
    const on = picked.get(run.id);
    row.querySelector("input").checked = Boolean(on);
    row.querySelector(".swatch").style.setProperty("background", on ? on.color : "transparent");
    row.querySelector(".name").textContent = run.id;
    const age = Date.now() / 1000 - run.changed;
    const isNew = !run.done && age < 120;
    row.querySelector(".dot").className = `dot ${run.done ? "done" : isNew ? "live" : "quiet"}`;
    row.querySelector(".facts").textContent = [
      run.algorithm, `step ${number(run.step)}${run.total ? ` of ${number(run.total)}` : ""}`,
      run.reward === null ? null : `reward ${number(run.reward)}`,
      run.done ? "done" : ago(age), run.unreadable ? `${run.unreadable} unreadable lines` : null,
    ].filter(Boolean).join(" · ");
    return row;
  });
  if (order.length !== box.children.length || order.some((row, i) => row !== box.children[i])) box.replaceChildren(...order);
  return shown;
}

function runRow(id) {
  const row = el("label", { className: "run", title: id },
    el("input", { type: "checkbox", onchange: event => pick(id, event.target.checked) }),
    el("span", { className: "swatch" }),
    el("span", { className: "text" }, el("span", { className: "name" }),
      el("span", {}, el("i", { className: "dot" }), el("span", { className: "facts soft" }))));
  row.dataset.id = id;
  return row;
}

function showView() {
  const first = saved ? "summary" : "curves", name = state.get("view", first) in VIEWS ? state.get("view", first) : first;
  $("#views").replaceChildren(...Object.entries(VIEWS).map(([key, [title]]) =>
    el("button", { role: "tab", ariaSelected: String(key === name), textContent: title, onclick: () => state.set({ view: key }, false) })));
  const view = VIEWS[name][1];
  if (shownView !== view) {
    shownView?.leave?.();
    shownView = view;
    $("#view").replaceChildren();
    view.enter($("#view"));
  }
  view.show(chosen()).then(() => say(""), error => error.name === "AbortError" || say(error.message));
}

function say(problem) {
  $("#problem").textContent = problem;
  $("#problem").hidden = !problem;
}

function newest(number) {
  return [...runs].sort((a, b) => b.changed - a.changed).slice(0, number).map(run => run.id).sort();
}

let before = "", next;
async function look() {
  clearTimeout(next);
  try {
    runs = await ask("runs");
    const versions = () => JSON.stringify(chosen().map(run => [run.id, run.version]));
    if (!state.get("runs") && runs.length) state.set({ runs: newest(saved ? runs.length : FIRST_RUNS) }); // which shows them
    else {
      showRuns();
      if (versions() !== before) showView();
    }
    before = versions();
    document.body.dataset.ready = "yes";
    $("#problem").textContent.startsWith("The server") && say("");
  } catch (error) {
    say(error instanceof TypeError ? "The server does not answer: it was ended, or the tunnel is closed." : error.message);
  }
  const age = Date.now() / 1000 - Math.max(...runs.map(run => run.changed)), [least, most] = EVERY_S;
  clearTimeout(next); // of another look meanwhile
  if (!saved && !document.hidden) next = setTimeout(look, 1000 * Math.min(most, Math.max(least, age / 4)));
}

$("#runs-filter").addEventListener("input", showRuns);
$("#runs-none").addEventListener("click", () => state.set({ runs: "-" }));
$("#runs-all").addEventListener("click", () => state.set({ runs: showRuns().map(run => run.id) }));
state.onchange(() => { showRuns(); showView(); });
addEventListener("visibilitychange", () => saved || document.hidden || look());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { shownView?.recolor?.(); showView(); });
if (matchMedia("(max-width: 800px)").matches) $("#runs-box").open = false;
if (saved?.runs.length === 1) for (const part of ["#runs-filter", "#runs-box .row"]) $(part).style.setProperty("display", "none");
if (saved) document.title = saved.title;
look();
