// The gate map: prompts × steps (or attempts) on a canvas. Hue is what trained, strength is the share solved.

import { ask, choice, css, el, number } from "./dom.js";
import { saved } from "./saved.js";
import * as state from "./state.js";

const ROLLOUTS = [0, 114, 178], BOTH = [176, 85, 143], DEMONSTRATION = [224, 146, 0], NOTHING = [150, 155, 162];
const LEFT = 150, FOOT = 24;

let root, canvas, tip, bar, map = null, asked = "", drag = null, current = null;

export function enter(into) {
  root = into;
  bar = el("div", { className: "bar" });
  canvas = el("canvas", { tabIndex: 0, ariaLabel: "Gate map: prompts by steps, by share solved and by what trained" });
  tip = el("p", { className: "tip soft" });
  root.append(bar, el("div", { className: "card" }, legend(), canvas, tip));
  canvas.addEventListener("pointerdown", event => { drag = place(event); });
  canvas.addEventListener("pointermove", hover);
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("dblclick", whole);
  addEventListener("resize", paint);
}

export function leave() {
  removeEventListener("resize", paint);
  map = null;
  asked = "";
}

const whole = () => state.set({ rows: null, columns: null }, false);

function legend() {
  const color = palette();
  const ramp = (hue, text) => el("span", { className: "ramp" }, ...[0, 25, 50, 75, 100].map(share =>
    el("i", { style: { background: color(share, hue) } })), ` ${text}`);
  return el("p", { className: "soft legend-row" }, "trained on: ", ramp(0, "rollouts"), ramp(50, "both"), ramp(100, "demonstration"), ramp(null, "nothing"), "strength: share of correct rollouts, 0 to 100 %");
}

// Colours of (share solved, share of the demonstration), both in percent: a demonstration of null is nothing. Each is made
// once, and the ground that it is mixed with read once: a map has up to 96,000 cells.
function palette() {
  const ground = css("--card").match(/[\da-f]{2}/gi).map(hex => parseInt(hex, 16)), made = [];
  return (share, demo) => made[(demo ?? 101) * 101 + (share ?? 0)] ??= `rgb(${mixed(ground, share ?? 0, demo).join(" ")})`;
}

function mixed(ground, share, demo) {
  const [from, to, part] = demo < 50 ? [ROLLOUTS, BOTH, demo / 50] : [BOTH, DEMONSTRATION, demo / 50 - 1];
  const hue = demo === null ? NOTHING : from.map((value, i) => value + (to[i] - value) * part);
  const strength = 0.28 + 0.72 * share / 100;
  return hue.map((value, i) => Math.round(ground[i] + (value - ground[i]) * strength));
}

export async function show(runs) {
  const run = runs.find(one => one.id === state.get("run")) ?? runs[0];
  const controls = [
    choice("Run", runs.map(one => [one.id, one.id]), run?.id, id => state.set({ run: id, rows: null, columns: null })),
    choice("Across", [["step", "steps"], ["attempt", "attempts of a prompt"]], state.get("by", "step"), by => state.set({ by: by === "step" ? null : by, columns: null })),
    choice("Order", [["solved", "first solved"], ["met", "first met"], ["last", "share solved at last"], ["name", "name"]].filter(([order]) => !saved || `${order} ${state.get("by", "step")}` in saved.of[run.id].gate), state.get("order", "solved"), order => state.set({ order: order === "solved" ? null : order })),
    el("input", { type: "search", placeholder: "Find a prompt by its id", value: state.get("gatefind"), ariaLabel: "Find a prompt", onchange: event => state.set({ gatefind: event.target.value, rows: null }) }),
    el("button", { textContent: "Whole map", hidden: !state.get("rows") && !state.get("columns"), onclick: whole }),
  ];
  const key = JSON.stringify([runs.map(one => one.id), state.get("run"), state.get("by"), state.get("order"), state.get("gatefind"), state.get("rows"), state.get("columns")]);
  if (bar.dataset.key !== key) { bar.replaceChildren(...controls); bar.dataset.key = key; }
  current = run;
  if (!run) { map = null; tip.textContent = "Choose a run."; return paint(); }
  const now = key + run.version;
  if (now === asked) return paint();
  const answer = await ask("gate", { run: run.id, order: state.get("order", "solved"), by: state.get("by", "step"), find: state.get("gatefind"), rows: state.get("rows"), columns: state.get("columns") });
  if (current !== run) return;
  map = answer;
  asked = now;
  map.at = new Map(map.cells.map(cell => [cell[0] * map.columns[2] + cell[1], cell]));
  tip.textContent = map.cells.length ? summary() : "No attempt is recorded yet (prompt_history.jsonl).";
  canvas.dataset.cells = map.cells.length;
  paint();
}

function summary() {
  const [, height] = map.rows, [, width] = map.columns;
  const cell = height * width === 1 ? "A cell is one attempt: click it for its rollouts." : `A cell is ${height} prompt${height > 1 ? "s" : ""} × ${width} ${state.get("by") ? "attempt" : "step"}${width > 1 ? "s" : ""}, their mean: click to zoom in.`;
  return `${number(map.prompts)} prompts. ${cell} Drag to zoom in, double-click for the whole map. Pale: as at the last attempt.`;
}

function geometry() {
  const [, , rows] = map.rows, [, , columns] = map.columns;
  const left = map.names.length && rows <= 60 && canvas.clientWidth > 500 ? LEFT : 8;
  const width = canvas.clientWidth - left - 8;
  const height = Math.max(rows <= 60 ? 14 * rows : 2 * rows, 60);
  return { left, width, height, dx: width / Math.max(1, columns), dy: height / Math.max(1, rows), rows, columns };
}

function paint() {
  if (!canvas?.isConnected) return;
  const pen = canvas.getContext("2d");
  if (!map?.cells.length) { canvas.style.setProperty("height", "0px"); return; }
  const { left, width, height, dx, dy, rows } = geometry(), scale = devicePixelRatio;
  canvas.style.setProperty("height", `${height + FOOT}px`);
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round((height + FOOT) * scale);
  pen.scale(scale, scale);
  const gap = dx > 5 && dy > 5 ? 1 : 0, color = palette();
  const fill = (cell, x0, x1, alpha) => {
    pen.globalAlpha = alpha;
    pen.fillStyle = color(cell[3], cell[4]);
    pen.fillRect(left + x0 * dx, cell[0] * dy, Math.max((x1 - x0) * dx - gap, 0.5), Math.max(dy - gap, 0.5));
  };
  map.cells.forEach((cell, i) => { // what holds until the next attempt, then the attempt itself
    const next = map.cells[i + 1];
    const end = next && next[0] === cell[0] ? next[1] : map.columns[2];
    if (end > cell[1] + 1) fill(cell, cell[1] + 1, end, 0.3);
  });
  map.cells.forEach(cell => fill(cell, cell[1], cell[1] + 1, 1));
  pen.globalAlpha = 1;
  pen.fillStyle = css("--soft");
  pen.font = "11px system-ui";
  if (left === LEFT) map.names.slice(0, rows).forEach((name, i) => pen.fillText(name.length > 24 ? `…${name.slice(-23)}` : name, 0, i * dy + dy / 2 + 4, LEFT - 6));
  const [first, step, columns] = map.columns, every = Math.max(1, Math.ceil(60 / dx));
  for (let i = 0; i < columns; i += every) pen.fillText(number(first + i * step), left + i * dx, height + 16);
}

// The cell under the pointer: {row, column}; may be outside of the map.
function place(event) {
  if (!map?.cells.length) return null;
  const box = canvas.getBoundingClientRect(), { left, dx, dy } = geometry();
  return { row: Math.floor((event.clientY - box.top) / dy), column: Math.floor((event.clientX - box.left - left) / dx), x: event.clientX, y: event.clientY };
}

const clamp = (value, most) => Math.max(0, Math.min(most, value));

function range({ row, column }) {
  const [top, height] = map.rows, [first, width] = map.columns;
  return { rows: [top + row * height, top + (row + 1) * height], columns: [first + column * width, first + (column + 1) * width - 1] };
}

function cellAt(at) {
  return at && at.column >= 0 && at.column < map.columns[2] ? map.at.get(at.row * map.columns[2] + at.column) : undefined;
}

function hover(event) {
  const at = place(event);
  const cell = cellAt(at);
  canvas.style.setProperty("cursor", cell ? "pointer" : "crosshair");
  if (drag && at && Math.hypot(at.x - drag.x, at.y - drag.y) > 6) { paint(); outline(drag, at); }
  if (!cell) { tip.textContent = map?.cells.length ? summary() : tip.textContent; return; }
  const here = range(at), one = map.names[cell[0]];
  const what = cell[4] === null ? "nothing" : cell[4] === 0 ? "rollouts" : cell[4] === 100 ? "demonstration" : `both (${cell[4]} % demonstration by weight)`;
  const when = here.columns[0] === here.columns[1] ? here.columns[0] : here.columns.join("–");
  tip.textContent = `${one ?? `prompts ${here.rows[0] + 1}–${Math.min(here.rows[1], map.prompts)}`} · ${state.get("by", "step")} ${when} · ${cell[2]} attempt${cell[2] > 1 ? "s" : ""} · ${cell[3] === null ? "not graded" : `${cell[3]} % correct`} · trained on ${what}`;
}

function outline(a, b) {
  const pen = canvas.getContext("2d"), box = canvas.getBoundingClientRect();
  pen.strokeStyle = css("--accent");
  pen.lineWidth = 1.5;
  pen.strokeRect(Math.min(a.x, b.x) - box.left, Math.min(a.y, b.y) - box.top, Math.abs(a.x - b.x), Math.abs(a.y - b.y));
}

function release(event) {
  const begin = drag, end = place(event);
  drag = null;
  if (!begin || !end) return;
  const { rows, columns } = geometry();
  if (Math.hypot(end.x - begin.x, end.y - begin.y) > 6) {
    const [a, b] = [begin, end].map(at => ({ row: clamp(at.row, rows - 1), column: clamp(at.column, columns - 1) }));
    const [low, high] = [range({ row: Math.min(a.row, b.row), column: Math.min(a.column, b.column) }), range({ row: Math.max(a.row, b.row), column: Math.max(a.column, b.column) })];
    return state.set({ rows: [low.rows[0], high.rows[1]], columns: [low.columns[0], high.columns[1]] }, false);
  }
  const cell = cellAt(end);
  if (!cell) return;
  const here = range(end);
  if (map.rows[1] > 1) return state.set({ rows: [Math.max(0, here.rows[0] - 20), here.rows[1] + 20] }, false);
  if (cell[2] > 1) return state.set({ columns: here.columns }, false);
  state.set({ view: "rollouts", run: current.id, kind: null, step: cell[5], of: map.names[cell[0]], group: null }, false);
}
