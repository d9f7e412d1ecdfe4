// Where a step's time goes: seconds by phase, stacked, one figure a run; and how busy engines and learner were.

import { ask, css, el, number } from "./dom.js";

const PHASES = [["sampling", "#4faee5"], ["training after it", "#e09900"], ["weight sync", "#b0558f"], ["evaluation", "#009e73"], ["checkpoint", "#8c6d46"]];
const METRICS = ["time/*", "rollout/busy_share", "learner/busy_share"];
const MOST = 240;

let grid;
const figures = new Map(); // run → {node, chart, legend, plot, key}

export function enter(root) {
  grid = el("div", { className: "panels" });
  root.append(el("p", { className: "soft note", textContent: "Seconds of a step by phase. Sampling includes grading and the training that goes on beside it." }), grid);
}

export function leave() {
  figures.forEach(figure => figure.plot?.destroy());
  figures.clear();
}

export const recolor = () => figures.forEach(figure => { figure.key = ""; });

export async function show(runs) {
  for (const [id, figure] of figures) if (!runs.some(run => run.id === id)) { figure.plot?.destroy(); figure.node.remove(); figures.delete(id); }
  for (const run of runs.slice(0, 24)) {
    const figure = figures.get(run.id) ?? newFigure(run);
    const key = `${run.version} ${css("--ink")}`;
    if (figure.key === key) continue;
    const width = Math.max(1, Math.ceil((run.step + 1) / MOST));
    const { curves } = await ask("curves", { run: run.id, metrics: METRICS.join(","), first: 1, width, count: Math.max(1, Math.ceil(run.step / width)), smooth: 1 });
    figure.key = key;
    draw(figure, curves, width);
  }
  if (!runs.length) grid.replaceChildren(el("p", { className: "soft", textContent: "Choose a run." }));
}

function newFigure(run) {
  const chart = el("div", { className: "chart" }), legend = el("div", { className: "legend" });
  const node = el("figure", { className: "panel" }, el("figcaption", {}, el("i", { className: "swatch", style: { background: run.color } }), el("b", { textContent: run.id, title: run.id })), chart, legend);
  if (!figures.size) grid.replaceChildren();
  grid.append(node);
  const figure = { node, chart, legend, key: "" };
  figures.set(run.id, figure);
  return figure;
}

function draw(figure, curves, width) {
  figure.plot?.destroy();
  const of = name => curves[name]?.mean ?? [];
  const size = of("time/step_s").length;
  if (!size) { figure.legend.textContent = "No step is done yet."; return; }
  const at = (name, i) => of(name)[i] ?? 0;
  const parts = Array.from({ length: size }, (_, i) => [
    at("time/rollout_s", i), Math.max(0, at("time/step_s", i) - at("time/rollout_s", i) - at("time/sync_s", i)), at("time/sync_s", i), at("time/evaluation_s", i), at("time/checkpoint_s", i)]);
  const x = parts.map((_, i) => 1 + i * width);
  const sums = PHASES.map((_, k) => parts.map(part => part.slice(0, k + 1).reduce((sum, value) => sum + value, 0)));
  const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const legend = index => {
    const mean = k => parts.reduce((sum, part) => sum + part[k], 0) / size;
    const busy = name => curves[name] ? el("span", { className: "entry" }, el("span", { className: "name soft", textContent: name === "rollout/busy_share" ? "engines busy" : "learner busy" }), el("b", { textContent: share(curves[name].mean, index) })) : null;
    figure.legend.replaceChildren(el("span", { className: "soft", textContent: index === null || index === undefined ? "mean over the run" : `step ${x[index]}` }),
      ...PHASES.map(([title, color], k) => el("span", { className: "entry" }, el("i", { className: "swatch", style: { background: color } }), el("span", { className: "name", textContent: title }), el("b", { textContent: `${number(index === null || index === undefined ? mean(k) : parts[index][k])} s` }))),
      ...[busy("rollout/busy_share"), busy("learner/busy_share")].filter(Boolean));
  };
  // The highest sum is drawn first, so that each phase shows its own part of the column.
  const order = [...PHASES.keys()].reverse();
  figure.plot = new uPlot({
    width: figure.chart.clientWidth || 360, height: 220, legend: { show: false }, padding: [8, 8, 0, 0],
    scales: { x: { time: false, range: (_, low, high) => [low - width / 2, high + width / 2] }, y: { range: (_, low, high) => [0, 1.05 * high || 1] } },
    axes: [{ ...axis, size: 26, grid: { show: false }, values: (_, ticks) => ticks.map(tick => Number.isInteger(tick) ? number(tick) : "") }, { ...axis, size: 52 }],
    series: [{}, ...order.map(k => ({ stroke: PHASES[k][1], fill: PHASES[k][1], width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.9, 60], align: 0 }) }))],
    cursor: { points: { show: false }, sync: { key: "time" }, drag: { x: false, y: false } },
    hooks: { setCursor: [plot => legend(plot.cursor.idx)] },
  }, [x, ...order.map(k => sums[k])], figure.chart);
  legend(null);
}

function share(values, index) {
  const there = values.filter(value => value !== null);
  const value = index === null || index === undefined ? there.reduce((sum, one) => sum + one, 0) / Math.max(1, there.length) : values[index];
  return value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`;
}
