// Rollouts: search and filter at the left, one prompt with its responses and its demonstration at the right; of an
// evaluation, beside the responses at another step or of another run.

import { ask, choice, el, number, visible, words } from "./dom.js";
import { saved } from "./saved.js";
import * as state from "./state.js";

// [name in the request and the address, what it is called, kind]
const FILTERS = [
  ["text", "Text of prompt or response", "search"], ["prompt", "Prompt id", "search"],
  ["set", "Set", "choice"], ["outcome", "Outcome", "choice"], ["branch", "Trained on", "choice"], ["finish", "Ended by", "choice"],
  ["score", "Reward", "range"], ["advantage", "Advantage", "range"], ["tokens", "Tokens", "range"], ["step", "Step", "range"],
];
const OF_TRAINING = ["branch", "advantage"]; // filters that say nothing of an evaluation
const COLORS = { logprob: ["log-prob", "The stronger, the less likely it was when it was sampled."], advantage: ["advantage", "Blue: above 0. Orange: below 0. The stronger, the larger, of this prompt's."], mask: ["loss mask", "Green: in the loss of this step."] };
const MOST_COMPARED = 12; // runs whose evaluations are offered
const NAMES = FILTERS.flatMap(([name, , kind]) => kind === "range" ? [`min_${name}`, `max_${name}`] : [name]);
const MOST_TOKENS = 20000; // that are coloured; the rest of a longer response is plain
const address = name => `f.${name}`;
const kind = () => state.get("kind", "step");

let form, list, detail, more, count, fresh, runBox, current = null, shown = "", shownGroup = "", shownForm = "", asking = null;

export function enter(root) {
  form = el("form", { className: "filters", onsubmit: event => event.preventDefault() });
  runBox = el("span");
  count = el("span", { className: "soft", role: "status" });
  list = el("div", { className: "hits" });
  more = el("button", { textContent: "More", hidden: true });
  detail = el("div", { className: "detail" });
  fresh = el("button", { textContent: "New steps: search again", hidden: true, onclick: () => { shown = ""; state.set({}); } });
  root.append(el("div", { className: "bar" }, runBox, count, fresh), form, el("div", { className: "rollouts" }, el("div", {}, list, more), detail));
  shown = shownGroup = shownForm = "";
}

export function leave() {
  asking?.abort();
}

export async function show(runs) {
  const run = runs.find(one => one.id === state.get("run")) ?? runs[0];
  current = run;
  if (!run) { count.textContent = "Choose a run."; return; }
  const formKey = JSON.stringify([run.id, runs.length, kind()]);
  if (shownForm !== formKey) {
    shownForm = formKey;
    const nothing = { step: null, group: null, of: null, row: null, against: null };
    runBox.replaceChildren(choice("Run", runs.map(one => [one.id, one.id]), run.id, id => state.set({ run: id, ...nothing })), " ",
      choice("Responses of", [["step", "training"], ["eval", "evaluations"]], kind(), of => state.set({ kind: of === "step" ? null : of, ...nothing })));
    await showForm(run);
  }
  await Promise.all([showHits(run), showGroup(run, runs)]);
}

async function showForm(run) {
  const choices = await ask("choices", { run: run.id, kind: kind() });
  const change = name => event => state.set({ [address(name)]: event.target.value });
  form.replaceChildren(...FILTERS.filter(([name]) => kind() === "step" || !OF_TRAINING.includes(name)).map(([name, title, kind]) => {
    const value = state.get(address(name));
    if (kind === "choice") {
      const known = [...new Set([...(choices[name] ?? []), ...(value ? [value] : [])])];
      return choice(title, [["", "any"], ...known.map(one => [one, words(one)])], value, picked => state.set({ [address(name)]: picked }));
    }
    if (kind === "range") {
      const end = (side, what) => el("input", { type: "number", step: "any", name: `${side}_${name}`, placeholder: what, ariaLabel: `${title} ${what}`, value: state.get(address(`${side}_${name}`)), onchange: change(`${side}_${name}`) });
      return el("span", { className: "range" }, `${title} `, end("min", "from"), "–", end("max", "to"));
    }
    return el("input", { type: "search", name, placeholder: title, ariaLabel: title, value, onchange: change(name) });
  }), el("button", { type: "reset", textContent: "Clear", onclick: () => { shownForm = ""; state.set(Object.fromEntries(NAMES.map(name => [address(name), null]))); } }));
}

function filters() {
  return Object.fromEntries([["kind", kind()], ...NAMES.map(name => [name, state.get(address(name))]).filter(([, value]) => value !== "")]);
}

async function showHits(run) {
  const now = JSON.stringify([run.id, filters()]);
  if (now === shown) { // new steps do not move what is being read
    fresh.hidden = run.version === list.dataset.version;
    return;
  }
  shown = now;
  fresh.hidden = true;
  list.dataset.version = run.version;
  list.replaceChildren();
  await load(run, null);
}

// The next page. Where nothing was found in time, it searches on by itself.
async function load(run, after) {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  more.hidden = true;
  let answer;
  do {
    answer = await ask("rollouts", { run: run.id, ...filters(), ...(after ? { after } : {}) }, signal);
    list.append(...answer.rollouts.map(hit));
    after = answer.next;
    const whole = answer.next ? `in the newest ${number(answer.searched)} of ${number(answer.steps)} steps` : `in ${number(answer.steps)} steps`;
    count.textContent = answer.steps ? `${number(list.children.length)} rollouts ${whole}${answer.next ? "" : ", all"}` : "No responses are kept here (observe.rollouts_every).";
  } while (after && !answer.rollouts.length);
  more.hidden = !after;
  more.onclick = () => load(run, after).catch(error => error.name === "AbortError" || (count.textContent = error.message));
}

function hit(line) {
  const none = line.sample === null;
  return el("button", { className: "hit", onclick: () => state.set({ run: current.id, step: line.step, group: line.group, of: null, row: line.row }, false) },
    el("span", { className: "head" }, el("b", { textContent: `step ${line.step}` }), el("span", { className: `tag ${line.outcome === "correct" ? "good" : "bad"}`, textContent: none ? "no rollout" : words(line.outcome) }),
      el("span", { className: "soft", textContent: none ? "" : `${number(line.score)} · ${number(line.tokens)} tokens${line.finish === "length" ? " · truncated" : ""}` })),
    el("span", { className: "soft id", textContent: visible(kind() === "eval" ? line.request_id : line.prompt_id) }),
    el("span", { className: "preview", textContent: visible(line.text) }));
}

async function showGroup(run, runs) {
  const step = state.get("step"), group = state.get("group"), of = state.get("of"), against = state.get("against");
  const key = JSON.stringify([run.id, kind(), step, group, of, state.get("row"), against, state.get("color")]);
  if (key === shownGroup) return;
  shownGroup = key;
  if (!step || (group === "" && !of)) {
    detail.replaceChildren(el("p", { className: "soft", textContent: "Choose a rollout, or a cell of the gate map." }));
    return;
  }
  let found, other = null, evaluated = [];
  try {
    found = await ask("group", { run: run.id, kind: kind(), step, ...(of ? { prompt: of } : { group }) });
    if (kind() === "eval") evaluated = (await Promise.all(runs.slice(0, MOST_COMPARED).map(async one =>
      (await ask("choices", { run: one.id, kind: "eval" })).evaluated.map(at => [`${at}@${one.id}`, one.id === run.id ? `step ${at}` : `step ${at} · ${one.id}`])))).flat().filter(([at]) => at !== `${step}@${run.id}`);
    if (against) {
      const [, at, id] = /^(\d+)@(.*)$/.exec(against);
      other = { id, ...await ask("group", { run: id, kind: "eval", step: at, prompt: found.request_id }) };
    }
  } catch (error) {
    if (key !== shownGroup) return;
    found ? detail.replaceChildren(compared(evaluated, against), el("p", { className: "soft", textContent: error.message }))
      : detail.replaceChildren(el("p", { className: "soft", textContent: error.message }));
    return;
  }
  if (key !== shownGroup) return;
  const picked = Number(state.get("row", -1)), isEval = kind() === "eval";
  const responses = other ? found.responses : [...found.responses].sort((a, b) => (b.row === picked) - (a.row === picked));
  const correct = of => `${of.responses.filter(one => one.outcome === "correct").length} of ${of.responses.length} correct`;
  const most = Math.max(1e-9, ...found.responses.map(one => Math.abs(one.advantage ?? 0)));
  const card = (where, one) => response(where, one, one.row === picked && !other, most);
  const head = (name, of) => el("p", {}, el("b", { textContent: name }), ` · ${correct(of)}`);
  const here = { run: run.id, step: found.step }, there = other && { run: other.id, step: other.step };
  detail.replaceChildren(
    el("h2", { textContent: visible(isEval ? found.request_id : found.prompt_id) }),
    isEval ? el("p", {}, `Evaluation of step ${found.step} · ${correct(found)}`)
      : el("p", {}, `Step ${found.step} · ${found.num_correct ?? "?"} of ${found.num_rollouts ?? "?"} correct · trained on `, el("b", { textContent: words(found.branch) }),
        el("span", { className: "soft", textContent: ` (${words(found.reason)}; α ${number(found.rollout_weight)}, β ${number(found.demo_weight)})` })),
    box("Prompt", found.prompt), el("p", { className: "soft" }, "Ground truth: ", el("code", { textContent: visible(found.reference) })),
    el("div", { className: "bar" }, isEval ? compared(evaluated, against) : null,
      choice("Colour tokens by", [["", "nothing"], ...Object.entries(COLORS).filter(([name]) => name === "logprob" ? !saved : !isEval).map(([name, [title]]) => [name, title])], state.get("color"), color => state.set({ color })),
      el("span", { className: "soft", textContent: COLORS[state.get("color")]?.[1] ?? "" })),
    other ? el("div", { className: "pairs" }, ...[[run.id, found], [other.id, other]].map(([id, of]) => head(other.id === run.id ? `step ${of.step}` : `step ${of.step} · ${id}`, of)),
      ...Array.from({ length: Math.max(responses.length, other.responses.length) }, (_, i) => [[here, responses[i]], [there, other.responses[i]]]).flat()
        .map(([where, one]) => one ? card(where, one) : el("span")))
      : el("div", { className: "columns" }, ...(found.demonstration ? [demonstration(found)] : []), ...responses.map(one => card(here, one))));
}

const compared = (evaluated, against) => choice("Compare with", [["", "nothing"], ...evaluated], against, at => state.set({ against: at }));

const box = (title, text) => el("div", {}, el("div", { className: "soft", textContent: title }), el("pre", { textContent: visible(text) }));

const tinted = (text, color) => el("span", { textContent: visible(text), style: { "background-color": color } });
const GREEN = "rgb(0 158 115 / 0.25)";

function demonstration(found) {
  const trains = state.get("color") === "mask" && found.demo_weight;
  return el("article", { className: "response demonstration" }, el("header", {}, el("b", { textContent: "Demonstration" })),
    el("pre", {}, trains ? tinted(found.demonstration, GREEN) : visible(found.demonstration)));
}

function response(where, one, isPicked, most) {
  const text = el("pre"), color = state.get("color");
  if (color === "advantage" && one.advantage) text.append(tinted(one.text, `rgb(${one.advantage > 0 ? "0 114 178" : "224 120 0"} / ${(0.1 + 0.4 * Math.abs(one.advantage) / most).toFixed(2)})`));
  else if (color === "mask" && one.trains) text.append(tinted(one.text, GREEN));
  else text.append(visible(one.text));
  if (color === "logprob") ask("tokens", { ...where, kind: kind(), row: one.row }).then(answer => text.replaceChildren(...coloured(answer)), error => { text.textContent = error.message; });
  const why = [one.extracted === null ? null : `read as ${visible(one.extracted)}`, one.detail ? visible(one.detail) : null].filter(Boolean).join(" · ");
  const facts = [`reward ${number(one.score)}`, one.advantage === null ? null : `advantage ${number(one.advantage)}`, `${number(one.tokens)} tokens`, one.prefix_length ? `the first ${number(one.prefix_length)} from the demonstration` : null, `ended by ${words(one.finish)}`,
    color === "mask" ? one.trains ? "in the loss" : "not in the loss" : null];
  return el("article", { className: `response${isPicked ? " picked" : ""}` },
    el("header", {}, el("b", { textContent: `#${one.sample}` }), el("span", { className: `tag ${one.outcome === "correct" ? "good" : "bad"}`, textContent: words(one.outcome) }),
      el("span", { className: "soft", textContent: facts.filter(Boolean).join(" · ") })),
    el("p", { className: "soft why", textContent: why || "The reward function gave no reason." }), text);
}

// One span a token: the less likely it was, the stronger its ground. A prefix was given, not sampled.
function coloured({ texts, logprobs, decoded }) {
  const spans = texts.slice(0, MOST_TOKENS).map((text, i) => {
    if (logprobs[i] === null) return el("span", { className: "soft", textContent: visible(text), title: `${visible(text)}  from the demonstration` });
    const strength = Math.min(1, -logprobs[i] / 4);
    return el("span", { textContent: visible(text), title: `${visible(text)}  log π ${logprobs[i]}  (${(100 * Math.exp(logprobs[i])).toPrecision(3)} %)`, style: { "background-color": `rgb(224 120 0 / ${(0.75 * strength).toFixed(2)})` } });
  });
  const note = [decoded ? "" : "The model's tokenizer is not on this machine: numbers of tokens.\n", texts.length > MOST_TOKENS ? `\n… and ${texts.length - MOST_TOKENS} more tokens` : ""];
  return [note[0], ...spans, note[1]];
}
