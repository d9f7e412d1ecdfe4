// Where a step's time goes: seconds by phase, stacked, one figure a run; how busy engines and learner were; and of one
// step who did what when, and who waited for whom.

import { ask, css, el, number } from "./dom.js";
import * as state from "./state.js";

const PHASES = [["sampling", "#4faee5"], ["training after it", "#e09900"], ["weight sync", "#b0558f"], ["evaluation", "#009e73"], ["checkpoint", "#8c6d46"]];
const METRICS = ["time/*", "rollout/busy_share", "learner/busy_share"];
const MOST = 240;
const SPANS = { generate: "#4faee5", backward: "#e09900", learn: "#e09900", step: "#8c6d46", score: "#009e73", evaluate: "#009e73", save: "#8c6d46", rollout: "#4faee5" };
const spanColor = name => SPANS[name] ?? (/weights|sync/.test(name) ? "#b0558f" : "#7a7f87");
const ROW = 20;

let grid, card, line = null, shownStep = "";
const figures = new Map(); // run → {node, chart, legend, plot, key}

export function enter(root) {
  grid = el("div", { className: "panels" });
  root.append(el("p", { className: "soft note", textContent: "Seconds of a step by phase. Sampling includes grading and the training that goes on beside it. Click a step for its timeline." }), grid, card = el("div", { className: "card timeline", hidden: true }));
  addEventListener("resize", paint);
}

export function leave() {
  removeEventListener("resize", paint);
  figures.forEach(figure => figure.plot?.destroy());
  figures.clear();
  shownStep = "";
}

export const recolor = () => { figures.forEach(figure => { figure.key = ""; }); paint(); };

export async function show(runs) {
  for (const [id, figure] of figures) if (!runs.some(run => run.id === id)) { figure.plot?.destroy(); figure.node.remove(); figures.delete(id); }
  for (const run of runs.slice(0, 24)) {
    const figure = figures.get(run.id) ?? newFigure(run);
    const key = `${run.version} ${css("--ink")}`;
    if (figure.key === key) continue;
    const width = Math.max(1, Math.ceil((run.step + 1) / MOST));
    const spans = JSON.stringify([[run.id, 1, Math.max(1, Math.ceil(run.step / width))]]);
    const [{ curves }] = await ask("curves", { runs: spans, metrics: METRICS.join(","), width, smooth: 1 });
    figure.key = key;
    draw(figure, curves, width);
  }
  if (!runs.length) grid.replaceChildren(el("p", { className: "soft", textContent: "Choose a run." }));
  card.hidden = !runs.length;
  if (runs.length) await showStep(runs.find(one => one.id === state.get("run")) ?? runs[0]);
}

const seconds = value => value.toLocaleString("en", { maximumSignificantDigits: 3 });

// The timeline of one step, of the newest where none was chosen.
async function showStep(run) {
  const step = Number(state.get("at")) || run.step;
  const key = JSON.stringify([run.id, step, line?.newest ? run.version : ""]);
  if (key === shownStep || !step) return;
  line = { ...await ask("timeline", { run: run.id, step }), newest: step === run.step };
  shownStep = JSON.stringify([run.id, step, line.newest ? run.version : ""]);
  const go = by => el("button", { textContent: by < 0 ? "‹" : "›", ariaLabel: by < 0 ? "Step before" : "Next step", disabled: step + by < 1 || step + by > run.step, onclick: () => state.set({ run: run.id, at: step + by }) });
  const kinds = [...new Set(line.tracks.flatMap(track => Object.keys(track.waits)))].sort((a, b) => (a === "nobody") - (b === "nobody"));
  const names = [...new Set(line.tracks.flatMap(track => track.spans.map(([name]) => name)))];
  line.canvas = el("canvas", { ariaLabel: `Timeline of step ${step}: what each actor did when` });
  line.tip = el("p", { className: "tip soft" });
  line.canvas.addEventListener("pointermove", hover);
  card.replaceChildren(el("div", { className: "bar" }, go(-1), go(1), el("b", { textContent: `Step ${step}` }), el("span", { className: "soft", textContent: `of ${run.id}${line.seconds ? `: ${seconds(line.seconds)} s to the next step` : ""}` })),
    ...(!line.tracks.length ? [el("p", { className: "soft", textContent: line.note ?? "trace.json does not hold this step." })] : [
      el("p", { className: "legend-row soft" }, ...names.map(name => el("span", {}, el("i", { className: "swatch", style: { background: spanColor(name) } }), name))), line.canvas, line.tip,
      el("div", { className: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...["actor", "busy", ...kinds.map(kind => kind === "nobody" ? "all idle" : `waited for ${kind}`)].map(text => el("th", { textContent: text })))),
        el("tbody", {}, ...line.tracks.filter(track => track.actor !== "driver").map(track => el("tr", {}, el("th", { textContent: track.actor }), el("td", { textContent: `${seconds(track.busy_s)} s` }), ...kinds.map(kind => el("td", { textContent: track.waits[kind] ? `${seconds(track.waits[kind])} s` : "–" })))))))]));
  paint();
}

const scaleOf = () => { const left = line.canvas.clientWidth > 500 ? 110 : 64; return { left, dx: (line.canvas.clientWidth - left - 4) / line.seconds }; };

function paint() {
  if (!line?.canvas?.isConnected || !line.tracks.length) return;
  const { canvas, tracks } = line, ratio = devicePixelRatio, height = ROW * tracks.length + 18;
  canvas.style.setProperty("height", `${height}px`);
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d"), { left, dx } = scaleOf();
  pen.scale(ratio, ratio);
  pen.font = "11px system-ui";
  tracks.forEach((track, i) => {
    pen.fillStyle = css("--ground");
    pen.fillRect(left, i * ROW, dx * line.seconds, ROW - 3);
    for (const [name, begin, end] of track.spans) {
      pen.fillStyle = spanColor(name);
      pen.globalAlpha = track.actor === "driver" && name === "rollout" ? 0.3 : 1; // beside it goes all else
      pen.fillRect(left + begin * dx, i * ROW, Math.max((end - begin) * dx, 0.7), ROW - 3);
    }
    pen.globalAlpha = 1;
    pen.fillStyle = css("--soft");
    pen.fillText(track.actor, 0, i * ROW + 13, left - 8);
  });
  for (let i = 0; i <= 4; i++) {
    pen.textAlign = i === 4 ? "right" : i ? "center" : "left";
    pen.fillText(`${seconds(line.seconds * i / 4)} s`, left + dx * line.seconds * i / 4, height - 3);
  }
}

function hover(event) {
  const box = line.canvas.getBoundingClientRect(), { left, dx } = scaleOf();
  const track = line.tracks[Math.floor((event.clientY - box.top) / ROW)], at = (event.clientX - box.left - left) / dx;
  const here = track?.spans.filter(([, begin, end]) => begin <= at && at <= end) ?? [];
  line.tip.textContent = track ? `${track.actor}: ${here.map(([name, begin, end]) => `${name}, ${seconds(end - begin)} s from ${seconds(begin)} s`).join("; ") || "idle"}` : "";
}

function newFigure(run) {
  const chart = el("div", { className: "chart" }), legend = el("div", { className: "legend" });
  const node = el("figure", { className: "panel" }, el("figcaption", {}, el("i", { className: "swatch", style: { background: run.color } }), el("b", { textContent: run.id, title: run.id })), chart, legend);
  if (!figures.size) grid.replaceChildren();
  grid.append(node);
  const figure = { node, chart, legend, key: "" };
  chart.addEventListener("click", () => figure.plot?.cursor.idx != null && state.set({ run: run.id, at: figure.plot.data[0][figure.plot.cursor.idx] }));
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
    width: figure.chart.clientWidth || 360, height: 220, legend: { show: false }, padding: [8, 14, 0, 0],
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
