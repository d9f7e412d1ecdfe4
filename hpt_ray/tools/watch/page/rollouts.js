// Rollouts: search and filter at the left, one prompt with its responses and its demonstration at the right.

import { ask, choice, el, number, visible, words } from "./dom.js";
import * as state from "./state.js";

// [name in the question and the address, what it is called, kind]
const FILTERS = [
  ["text", "Text in prompt or response", "search"], ["prompt", "Prompt id", "search"],
  ["set", "Set", "choice"], ["outcome", "Outcome", "choice"], ["branch", "Trained on", "choice"], ["finish", "Ended by", "choice"],
  ["score", "Reward", "range"], ["tokens", "Tokens", "range"], ["step", "Step", "range"],
];
const NAMES = FILTERS.flatMap(([name, , kind]) => kind === "range" ? [`min_${name}`, `max_${name}`] : [name]);
const MOST_TOKENS = 20000; // that are coloured; the rest of a longer response is plain
const address = name => `f.${name}`;

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
  if (shownForm !== run.id + runs.length) {
    shownForm = run.id + runs.length;
    runBox.replaceChildren(choice("Run", runs.map(one => [one.id, one.id]), run.id, id => state.set({ run: id, step: null, group: null, of: null })));
    await showForm(run);
  }
  await Promise.all([showHits(run), showGroup(run)]);
}

async function showForm(run) {
  const choices = await ask("choices", { run: run.id });
  const change = name => event => state.set({ [address(name)]: event.target.value });
  form.replaceChildren(...FILTERS.map(([name, title, kind]) => {
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
  return Object.fromEntries(NAMES.map(name => [name, state.get(address(name))]).filter(([, value]) => value !== ""));
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
    count.textContent = answer.steps ? `${number(list.children.length)} rollouts ${whole}${answer.next ? "" : ", all"}` : "No rollouts are dumped here (observe.rollouts_every).";
  } while (after && !answer.rollouts.length);
  more.hidden = !after;
  more.onclick = () => load(run, after).catch(error => error.name === "AbortError" || (count.textContent = error.message));
}

function hit(line) {
  const none = line.sample === null;
  return el("button", { className: "hit", onclick: () => state.set({ run: current.id, step: line.step, group: line.group, of: null, row: line.row }, false) },
    el("span", { className: "head" }, el("b", { textContent: `step ${line.step}` }), el("span", { className: `tag ${line.outcome === "correct" ? "good" : "bad"}`, textContent: none ? "no rollout" : words(line.outcome) }),
      el("span", { className: "soft", textContent: none ? "" : `${number(line.score)} · ${number(line.tokens)} tokens${line.finish === "length" ? " · truncated" : ""}` })),
    el("span", { className: "soft id", textContent: visible(line.prompt_id) }),
    el("span", { className: "preview", textContent: visible(line.text) }));
}

async function showGroup(run) {
  const step = state.get("step"), group = state.get("group"), of = state.get("of");
  const key = JSON.stringify([run.id, step, group, of, state.get("row")]);
  if (key === shownGroup) return;
  shownGroup = key;
  if (!step || (group === "" && !of)) {
    detail.replaceChildren(el("p", { className: "soft", textContent: "Choose a rollout, or a cell of the gate map." }));
    return;
  }
  let found;
  try {
    found = await ask("group", { run: run.id, step, ...(of ? { prompt: of } : { group }) });
  } catch (error) {
    detail.replaceChildren(el("p", { className: "soft", textContent: error.message }));
    return;
  }
  if (key !== shownGroup) return;
  const picked = Number(state.get("row", -1));
  const responses = [...found.responses].sort((a, b) => (b.row === picked) - (a.row === picked));
  detail.replaceChildren(
    el("h2", { textContent: visible(found.prompt_id) }),
    el("p", {}, `Step ${found.step} · ${found.num_correct ?? "?"} of ${found.num_rollouts ?? "?"} correct · trained on `, el("b", { textContent: words(found.branch) }),
      el("span", { className: "soft", textContent: ` (${words(found.reason)}; α ${number(found.rollout_weight)}, β ${number(found.demo_weight)})` })),
    box("Prompt", found.prompt), el("p", { className: "soft" }, "Ground truth: ", el("code", { textContent: visible(found.reference) })),
    el("div", { className: "columns" },
      ...(found.demonstration ? [el("article", { className: "response demonstration" }, el("header", {}, el("b", { textContent: "Demonstration" })), el("pre", { textContent: visible(found.demonstration) }))] : []),
      ...responses.map(one => response(run, found.step, one, one.row === picked))));
}

const box = (title, text) => el("div", {}, el("div", { className: "soft", textContent: title }), el("pre", { textContent: visible(text) }));

function response(run, step, one, isPicked) {
  const text = el("pre", { textContent: visible(one.text) });
  const color = el("button", { textContent: "log-probs", title: "Colour each token by how likely it was to the sampler", ariaPressed: "false" });
  let plain = true;
  color.addEventListener("click", async () => {
    plain = !plain;
    color.ariaPressed = String(!plain);
    if (plain) text.replaceChildren(visible(one.text));
    else try { text.replaceChildren(...coloured(await ask("tokens", { run: run.id, step, row: one.row }))); } catch (error) { text.textContent = error.message; }
  });
  const why = [one.extracted === null ? null : `read as ${visible(one.extracted)}`, one.detail ? visible(one.detail) : null].filter(Boolean).join(" · ");
  return el("article", { className: `response${isPicked ? " picked" : ""}` },
    el("header", {}, el("b", { textContent: `#${one.sample}` }), el("span", { className: `tag ${one.outcome === "correct" ? "good" : "bad"}`, textContent: words(one.outcome) }),
      el("span", { className: "soft", textContent: `reward ${number(one.score)} · ${number(one.tokens)} tokens · ended by ${words(one.finish)}` }), color),
    el("p", { className: "soft why", textContent: why || "The reward function gave no reason." }), text);
}

// One span a token: the less likely it was, the stronger its ground.
function coloured({ texts, logprobs, decoded }) {
  const spans = texts.slice(0, MOST_TOKENS).map((text, i) => {
    const strength = Math.min(1, -logprobs[i] / 4);
    return el("span", { textContent: visible(text), title: `${visible(text)}  log π ${logprobs[i]}  (${(100 * Math.exp(logprobs[i])).toPrecision(3)} %)`, style: { "background-color": `rgb(224 120 0 / ${(0.75 * strength).toFixed(2)})` } });
  });
  const note = [decoded ? "" : "The model's tokenizer is not on this machine: numbers of tokens.\n", texts.length > MOST_TOKENS ? `\n… and ${texts.length - MOST_TOKENS} more tokens` : ""];
  return [note[0], ...spans, note[1]];
}
