// Curves of several runs over steps: one panel a topic, smoothed, linear or logarithmic, with marks at faults. Only
// what is in view is drawn.

import { ask, choice, css, el, number } from "./dom.js";
import { saved } from "./saved.js";
import * as state from "./state.js";

// A pattern with * stands for one line a match; with several runs, for one panel a match.
const PANELS = [
  ["Reward", "mean score of the graded rollouts", ["reward/mean"]],
  ["Offline ratio", "share of prompts that trained on a demonstration", ["selection/demo_prompt_ratio"]],
  ["Weight of demonstrations", "share of all weight", ["selection/demo_share"]],
  ["Entropy", "nats per response token", ["policy/entropy"]],
  ["Response length", "mean tokens of a rollout", ["rollout/length_mean"]],
  ["Evaluation", "mean score", ["eval/*/mean"]],
  ["Truncated responses", "share of rollouts", ["rollout/truncated_ratio"]],
  ["Sampler against learner", "mean |Δ log π|, nats", ["policy/logprob_gap_mean"]],
  ["Gradient norm", "before clipping", ["optim/grad_norm"]],
  ["Loss on demonstrations", "nats per token", ["learner/demo_loss", "learner/rehearsal_loss"]],
  ["KL from the sampler", "nats per token", ["policy/kl_old"]],
  ["Sampled tokens", "tokens per second", ["rollout/tokens_per_s"]],
  ["Trained tokens", "tokens per second", ["learner/tokens_per_s"]],
  ["Step", "seconds", ["time/step_s"]],
  ["Engines busy", "share of the step", ["rollout/busy_share"]],
  ["Learner busy", "share of the step", ["learner/busy_share"]],
  ["Memory", "MiB of the largest process of its kind; dotted: planned", ["memory/*_mb"]],
  ["Outcomes of grading", "share of the graded rollouts", ["reward/outcome/*"]],
  ["Reasons of the gate", "prompts of a step", ["selection/reason/*"]],
  ["Learning rate", "of the last update of the step", ["optim/lr"]],
  ["Loss terms", "nats", ["loss/*"]],
  ["Clipped and corrected", "share of rollout tokens", ["policy/clip_share", "policy/correction_share"]],
  ["KL from the reference", "nats per token", ["policy/kl_ref"]],
  ["Critic", "score", ["critic/value_mean", "critic/return_mean", "critic/explained_variance"]],
  ["Off-policy steps", "versions behind the learner, mean", ["rollout/off_policy_steps_mean"]],
  ["Rewards that failed", "share of responses", ["reward/failure_share"]],
];
const MARKS = ["faults/*", "*/skipped_updates", "run/resumed", "phase"];
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
const LINE_COLORS = ["#0072b2", "#d55e00", "#009e73", "#b0558f", "#e09900", "#4faee5", "#8c6d46", "#7a7f87"];
const WIDTHS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 1000000];
const MANY_RUNS = 12; // of which only means are drawn
const AT_ONCE = 16; // runs that one request is for, where there are many
const HEIGHT = 190;

const ofMethods = () => state.get("draw", saved && saved.methods.length < saved.runs.length ? "methods" : "runs") === "methods";

let root, grid, meanings = new Map(), methods = [], methodsOf = ""; // `methods`: [label, runs], of the runs in `methodsOf`
const panels = new Map(); // key → {node, plot, signature, visible, late: what to draw once it is in view}
const inView = new IntersectionObserver(entries => {
  for (const entry of entries) {
    const panel = [...panels.values()].find(one => one.node === entry.target);
    if (!panel) continue;
    panel.visible = entry.isIntersecting;
    if (panel.visible) { panel.late?.(); panel.late = null; }
  }
}, { rootMargin: "200px" });
let cache = new Map(); // run → {asked, version, step, begun, num: of buckets, curves, planned}
let asking = null;

export function enter(into) {
  root = into;
  grid = el("div", { className: "panels" });
  const filter = el("input", { type: "search", placeholder: "Find a metric: any name of metrics.jsonl", value: state.get("find"), ariaLabel: "Find a metric" });
  filter.addEventListener("input", () => state.set({ find: filter.value }));
  root.append(el("div", { className: "bar" }, filter,
    choice("Smooth", [[1, "off"], ...[5, 10, 25, 50, 100, 250].map(n => [n, `${n} steps`])], state.get("smooth", 1), value => state.set({ smooth: value === "1" ? null : value })),
    el("span", { id: "draw", hidden: true }, choice("Draw", [["runs", "each run"], ["methods", "seeds together, mean ± sd"]], ofMethods() ? "methods" : "runs", draw => state.set({ draw }))),
    el("button", { id: "whole", textContent: "Whole run", hidden: true, onclick: () => state.set({ from: null, to: null }) })), grid);
  ask("metrics").then(all => { meanings = new Map(all.map(one => [one.name, one])); });
}

export function leave() {
  panels.forEach(panel => panel.plot?.destroy());
  inView.disconnect();
  panels.clear();
  cache = new Map();
  asking?.abort();
}

export function recolor() {
  panels.forEach(panel => { panel.signature = ""; });
}

// The buckets that all runs share: `first`, `width` in steps, `count`; with `bands` also their lowest and highest.
function buckets(runs) {
  const first = Number(state.get("from", 0));
  const last = Number(state.get("to", Math.max(1, ...runs.map(run => run.step))));
  const most = runs.length > 4 * MANY_RUNS ? 120 : runs.length > MANY_RUNS ? 240 : 400;
  const width = WIDTHS.find(width => (last - first + 1) / width <= most) ?? 1e6;
  return { first, width, count: Math.ceil((last - first + 1) / width), bands: runs.length <= MANY_RUNS };
}

export async function show(runs) {
  const query = { ...buckets(runs), smooth: Number(state.get("smooth", 1)) };
  document.getElementById("whole").hidden = !state.get("to");
  document.getElementById("draw").hidden = runs.length < 2;
  const metrics = [...PANELS.flatMap(panel => panel[2]), ...MARKS, ...(state.get("find") ? [`*${state.get("find")}*`] : [])].join(",");
  query.asked = JSON.stringify([query.first, query.width, query.bands, query.smooth, metrics]);
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking, ids = JSON.stringify(runs.map(run => run.id));
  if (ofMethods() && methodsOf !== ids) [methods, methodsOf] = [await ask("methods", { runs: ids }, signal), ids];
  draw(runs, query);
  const waiting = [...runs];
  let ready = 0, next = 1; // what has come is drawn each time that it is four times as much
  const worker = async () => {
    while (waiting.length) {
      const come = await more(waiting.splice(0, runs.length > MANY_RUNS ? AT_ONCE : 1), query, metrics, signal);
      ready += come; // after the wait: the other workers add to it meanwhile
      if (ready < next) continue;
      next = 4 * ready;
      draw(runs, query);
    }
  };
  await Promise.all([worker(), worker(), worker()]);
  draw(runs, query);
}

// Ask for the buckets of some runs that are not there yet, and the last one that is, which may have grown. How many runs had any.
async function more(runs, query, metrics, signal) {
  const { first, width, count, smooth, bands, asked } = query, wanted = [];
  for (const run of runs) {
    const num = Math.max(1, Math.min(count, Math.floor((run.step - first) / width) + 1));
    let old = cache.get(run.id);
    if (old?.asked !== asked || old.step > run.step) old = null;
    if (old?.version !== run.version || old.num < num) wanted.push({ run, num, old, from: old ? Math.min(old.num, num) - 1 : 0 });
  }
  if (!wanted.length) return 0;
  const spans = JSON.stringify(wanted.map(({ run, num, from }) => [run.id, first + from * width, num - from]));
  const answers = await ask("curves", { runs: spans, metrics, width, smooth, bands }, signal), again = [];
  wanted.forEach(({ run, num, old, from }, i) => {
    const { curves, planned, begun } = answers[i];
    if (old && old.begun !== begun) { // what was written is another
      cache.delete(run.id);
      again.push(run);
      return;
    }
    for (const [name, parts] of Object.entries(old?.curves ?? {})) {
      curves[name] ??= Object.fromEntries(Object.keys(parts).map(part => [part, []]));
      for (const [part, values] of Object.entries(curves[name])) curves[name][part] = [...parts[part].slice(0, from), ...values];
    }
    for (const [name, parts] of Object.entries(curves))
      if (!old?.curves[name]) for (const part of Object.keys(parts)) parts[part] = [...Array(from).fill(null), ...parts[part]];
    cache.set(run.id, { asked, version: run.version, step: run.step, begun, num, curves, planned });
  });
  return wanted.length - again.length + (again.length ? await more(again, query, metrics, signal) : 0);
}

function matcher(pattern) {
  const expression = new RegExp(`^${pattern.split("*").map(part => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&")).join("(.*)")}$`);
  return name => expression.exec(name);
}

// The panels to draw: {key, title, unit, lines: [[label, metric]]}.
function wanted(runs) {
  const find = state.get("find").toLowerCase();
  const names = new Set(runs.flatMap(run => Object.keys(cache.get(run.id)?.curves ?? {})));
  const found = [], used = new Set();
  for (const [title, unit, patterns] of PANELS) {
    const lines = patterns.flatMap(pattern => [...names].sort().map(name => [matcher(pattern)(name), name])
      .filter(([match]) => match).map(([match, name]) => [match[1] ?? "", name]));
    lines.forEach(([, name]) => used.add(name));
    if (find && !title.toLowerCase().includes(find) && !lines.some(([, name]) => name.includes(find))) continue;
    if (patterns[0].includes("*") && runs.length > 1)
      for (const [label, name] of lines) found.push({ key: name, title: `${title}: ${label}`, unit, lines: [["", name]] });
    else if (lines.length) found.push({ key: title, title, unit, lines });
  }
  if (find)
    for (const name of names)
      if (!used.has(name) && name.toLowerCase().includes(find))
        found.push({ key: name, title: name, unit: meaning(name)?.unit ?? "", lines: [["", name]] });
  return found;
}

function meaning(name) {
  if (meanings.has(name)) return meanings.get(name);
  for (const [known, one] of meanings) if (known.includes("<") && matcher(known.replace(/<\w+>/g, "*"))(name)) return one;
}

function draw(runs, query) {
  const ready = runs.filter(run => cache.get(run.id)?.asked === query.asked);
  const list = wanted(ready.length ? ready : []);
  if (!ready.length && runs.length) return; // what is there stays until something new has come
  const keys = new Set(list.map(panel => panel.key));
  for (const [key, panel] of panels) if (!keys.has(key)) { panel.plot?.destroy(); inView.unobserve(panel.node); panel.node.remove(); panels.delete(key); }
  list.forEach((spec, i) => {
    const panel = panels.get(spec.key) ?? newPanel(spec);
    if (grid.children[i] !== panel.node) grid.insertBefore(panel.node, grid.children[i] ?? null);
    if (panel.visible) fill(panel, spec, ready, query);
    else panel.late = () => fill(panel, spec, ready, query);
  });
  grid.querySelector(".empty")?.remove();
  if (!list.length) grid.append(el("p", { className: "empty soft", textContent: runs.length ? "No step is done yet, or no metric has this name." : "Choose a run." }));
}

function newPanel(spec) {
  const is = name => state.list(name).includes(spec.key);
  const toggle = name => state.set({ [name]: is(name) ? state.list(name).filter(key => key !== spec.key) : [...state.list(name), spec.key] });
  const panel = { signature: "" };
  panel.log = el("button", { textContent: "log", title: "Logarithmic axis", onclick: () => toggle("log") });
  panel.save = el("button", { textContent: "png", title: "Save as a picture", onclick: () => picture(panel, spec) });
  panel.wide = el("button", { textContent: "⤢", title: "Wide", ariaLabel: "Wide", onclick: () => toggle("wide") });
  panel.chart = el("div", { className: "chart" });
  panel.legend = el("div", { className: "legend" });
  panel.node = el("figure", { className: "panel" },
    el("figcaption", {}, el("b", { textContent: spec.title, title: spec.lines.map(([, name]) => name).join("\n") }),
      el("span", { className: "soft", textContent: spec.unit, title: meaning(spec.lines[0][1])?.meaning ?? "" }), panel.log, panel.save, panel.wide),
    panel.chart, panel.legend);
  panels.set(spec.key, panel);
  inView.observe(panel.node);
  return panel;
}

function fill(panel, spec, runs, query) {
  const isLog = state.list("log").includes(spec.key), isWide = state.list("wide").includes(spec.key);
  panel.log.ariaPressed = String(isLog);
  panel.wide.ariaPressed = String(isWide);
  panel.node.classList.toggle("wide", isWide);
  const x = Array.from({ length: query.count }, (_, i) => query.first + i * query.width + (query.width - 1) / 2);
  const data = [x], series = [{}], bands = [], entries = [], groups = grouped(runs);
  const several = groups.length > 1, few = groups.length <= MANY_RUNS;
  for (const group of groups) {
    spec.lines.forEach(([label, name], i) => {
      const curve = curveOf(group.runs, name);
      if (!curve) return;
      const color = several || spec.lines.length === 1 ? group.runs[0].color : LINE_COLORS[i % LINE_COLORS.length];
      const dash = DASHES[several ? i % DASHES.length : Math.floor(i / LINE_COLORS.length) % DASHES.length];
      const full = values => x.map((_, i) => values[i] === undefined || (isLog && !(values[i] > 0)) ? null : values[i]);
      const add = (values, look) => { data.push(full(values)); series.push({ spanGaps: true, points: { show: false }, ...look }); return data.length - 1; };
      const main = curve.smooth ?? curve.mean;
      if (few && curve.low) {
        const high = add(curve.high, { stroke: "transparent", width: 0 }), low = add(curve.low, { stroke: "transparent", width: 0 });
        bands.push({ series: [high, low], fill: `${color}30` });
      } else if (few && curve.smooth) add(curve.mean, { stroke: `${color}55`, width: 1 });
      for (const tail of curve.tails ?? []) add(tail, { stroke: `${color}88`, width: 1 });
      const lonely = main.filter(value => value !== null).length < 40;
      const index = add(main, { stroke: color, width: 1.75, dash, points: { show: lonely, size: 5, fill: color, stroke: color } });
      const planned = cache.get(group.runs[0].id).planned[name];
      if (few && planned) add(x.map(() => planned), { stroke: color, width: 1, dash: [1, 4] });
      entries.push({ index, color, planned, text: [several ? group.label : "", label].filter(Boolean).join(" · ") || name, last: main.findLast(value => value !== null) });
    });
  }
  const marks = runs.length <= MANY_RUNS ? runs.flatMap(run => marksOf(run, query)) : [];
  const signature = JSON.stringify([series.length, bands.length, series.map(one => [one.stroke, one.points?.show]), isLog, isWide, query.first, query.width, css("--ink")]);
  panel.marks = marks;
  panel.entries = entries;
  if (panel.signature !== signature) {
    panel.plot?.destroy();
    panel.plot = new uPlot(options(panel, series, bands, isLog), data, panel.chart);
    panel.signature = signature;
  } else panel.plot.setData(data);
  legend(panel, null, x);
}

// What is drawn as one line each: runs, or the seeds of one method.
function grouped(runs) {
  if (!ofMethods()) return runs.map(run => ({ label: run.id, runs: [run] }));
  return methods.map(([label, ids]) => ({ label, runs: runs.filter(run => ids.includes(run.id)) })).filter(group => group.runs.length);
}

// Of several seeds their mean ± one sample standard deviation, as far as all of them went; beyond, each for itself.
function curveOf(runs, name) {
  const curves = runs.map(run => cache.get(run.id).curves[name]);
  if (runs.length < 2) return ofMethods() && curves[0] ? { mean: curves[0].smooth ?? curves[0].mean } : curves[0]; // no shade: it is not over seeds
  if (!curves.every(Boolean)) return null; // a mean over some of the seeds is not the method's
  const seeds = curves.map(curve => curve.smooth ?? curve.mean), ends = seeds.map(values => values.findLastIndex(value => value !== null));
  const end = Math.min(...ends), found = { mean: [], low: [], high: [] };
  for (let i = 0; i <= end; i++) {
    const values = seeds.map(seed => seed[i]).filter(value => value !== null), sum = of => of.reduce((a, b) => a + b, 0);
    const mean = values.length ? sum(values) / values.length : null;
    const deviation = values.length > 1 ? Math.sqrt(sum(values.map(value => (value - mean) ** 2)) / (values.length - 1)) : 0;
    found.mean.push(mean);
    found.low.push(mean === null ? null : mean - deviation);
    found.high.push(mean === null ? null : mean + deviation);
  }
  return { ...found, tails: seeds.filter((_, k) => ends[k] > end).map(seed => seed.map((value, i) => i < end ? null : value)) };
}

function marksOf(run, query) {
  const found = [];
  for (const [name, curve] of Object.entries(cache.get(run.id).curves)) {
    const at = i => query.first + i * query.width;
    if (name === "phase") curve.mean.forEach((value, i) => i && value !== null && curve.mean[i - 1] !== null && value !== curve.mean[i - 1] && found.push({ x: at(i), color: run.color, text: `phase ${value}`, line: true }));
    else if (name === "run/resumed" || name.startsWith("faults/") || name.endsWith("/skipped_updates")) (curve.high ?? curve.mean).forEach((value, i) => value > 0 && found.push({ x: at(i) + (query.width - 1) / 2, color: run.color, text: `${name} ${number(value)}` }));
  }
  return found;
}

function options(panel, series, bands, isLog) {
  const soft = css("--soft"), line = css("--line");
  const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  return {
    width: panel.chart.clientWidth || 360, height: panel.node.classList.contains("wide") ? 2 * HEIGHT : HEIGHT,
    series, bands, legend: { show: false }, padding: [8, 14, 0, 0],
    scales: { x: { time: false }, y: isLog ? { distr: 3 } : { range: (_, low, high) => rangeOf(low, high) } },
    axes: [{ ...axis, size: 26, grid: { show: false }, values: (_, ticks) => ticks.map(tick => Number.isInteger(tick) ? number(tick) : "") },
      { ...axis, size: 52, values: (_, ticks) => ticks.map(tick => tick === null ? "" : number(tick)) }],
    cursor: { sync: { key: "step" }, points: { size: 6 }, drag: { setScale: false }, bind: { dblclick: () => () => state.set({ from: null, to: null }) } },
    hooks: {
      setCursor: [plot => legend(panel, plot.cursor.idx, plot.data[0])],
      setSelect: [plot => {
        if (plot.select.width < 5) return;
        const [from, to] = [plot.select.left, plot.select.left + plot.select.width].map(left => Math.round(plot.posToVal(left, "x")));
        plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        if (to > from) state.set({ from: Math.max(0, from), to }, false);
      }],
      draw: [plot => drawMarks(plot, panel.marks)],
    },
  };
}

// A little room above and below; a constant has its own height.
function rangeOf(low, high) {
  if (low === null) return [0, 1];
  const room = high > low ? 0.05 * (high - low) : Math.abs(high) / 10 || 0.5;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

function drawMarks(plot, marks) {
  const { ctx, bbox } = plot, size = 5 * devicePixelRatio;
  for (const mark of marks) {
    const x = plot.valToPos(mark.x, "x", true), bottom = bbox.top + bbox.height;
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.fillStyle = ctx.strokeStyle = mark.color;
    ctx.beginPath();
    if (mark.line) { ctx.setLineDash([3, 3]); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bottom); ctx.stroke(); ctx.setLineDash([]); }
    else { ctx.moveTo(x - size, bottom); ctx.lineTo(x + size, bottom); ctx.lineTo(x, bottom - 1.6 * size); ctx.fill(); }
  }
}

// The chart with its title above and the names of its lines below, as a file.
function picture(panel, spec) {
  const chart = panel.plot.ctx.canvas, line = 20 * devicePixelRatio, into = el("canvas", { width: chart.width, height: chart.height + line * (1 + panel.entries.length) }), pen = into.getContext("2d");
  pen.fillStyle = css("--card");
  pen.fillRect(0, 0, into.width, into.height);
  pen.drawImage(chart, 0, line);
  pen.font = `${0.6 * line}px system-ui`;
  [[css("--ink"), `${spec.title}: ${spec.unit}`], ...panel.entries.map(entry => [entry.color, entry.text])].forEach(([color, text], i) => {
    pen.fillStyle = color;
    pen.fillText(text, 8, (i ? chart.height : 0) + (i + 0.7) * line);
  });
  el("a", { href: into.toDataURL(), download: `${spec.key.replace(/[^\w.-]+/g, "-")}.png` }).click();
}

// Values at the cursor, or the last ones.
function legend(panel, index, x) {
  const step = index === null || index === undefined ? null : x[index];
  const rows = panel.entries.slice(0, MANY_RUNS).map(entry => el("span", { className: "entry", title: entry.text },
    el("i", { className: "swatch", style: { background: entry.color } }), el("span", { className: "name", textContent: entry.text }),
    el("b", { textContent: number(step === null ? entry.last : near(panel.plot.data[entry.index], index)) }), entry.planned ? el("span", { className: "soft planned", textContent: `of ${number(entry.planned)} planned` }) : null));
  const width = x.length > 1 ? x[1] - x[0] : 1;
  const marks = step === null ? [] : panel.marks.filter(mark => Math.abs(mark.x - step) <= width / 2).map(mark => `▲ ${mark.text}`);
  const more = panel.entries.length - MANY_RUNS;
  const head = step === null ? "last" : width > 1 ? `steps ${number(step - (width - 1) / 2)}–${number(step + (width - 1) / 2)}` : `step ${step}`;
  panel.legend.replaceChildren(el("span", { className: "soft", textContent: [head, ...marks].join(" · ") }), ...rows, ...(more > 0 ? [el("span", { className: "soft", textContent: `and ${more} more` })] : []));
}

// The value at a place, or the nearest before it: evaluations are not at every step.
function near(values, index) {
  for (let i = index; i >= 0; i--) if (values[i] !== null && values[i] !== undefined) return values[i];
  return null;
}

addEventListener("resize", () => panels.forEach(panel => panel.plot?.setSize({ width: panel.chart.clientWidth, height: panel.plot.height })));
