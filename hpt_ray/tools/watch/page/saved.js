// The page saved as one file: what the server would answer, from the data that the file holds.

const block = document.getElementById("saved");
export const saved = block && JSON.parse(block.textContent);

// The answer to a request; throws an Error for what was not saved.
export function answer(what, asked) {
  if (what === "curves") return JSON.parse(asked.runs).map(([id, first, count]) => curves(saved.of[id].curves, { ...asked, first, count }));
  if (what === "methods") return saved.methods.map(([label, ids]) => [label, ids.filter(id => JSON.parse(asked.runs).includes(id))]).filter(([, ids]) => ids.length);
  const run = saved.of[asked.run];
  if (!run) return saved[what];
  if (what === "gate") return gate(run.gate, asked);
  if (what === "rollouts") return rollouts(run.groups[asked.kind], asked);
  if (what === "choices") return run.choices[asked.kind];
  if (what === "group") return group(run.groups[asked.kind], asked);
  if (what === "timeline") return run.timelines[asked.step] ?? { step: asked.step, seconds: 0, tracks: [], note: missing("The timeline of this step") };
  if (what === "tokens") throw new Error(missing("The log-prob of each token"));
  return run[what];
}

const missing = name => `${name} is not in the saved page; hpt_ray watch shows it where the run folder has it.`;

// As `curves` of reader.py, from points that may be means of several steps themselves.
function curves(kept, { metrics, first, width, count, smooth }) {
  const patterns = metrics.split(",").map(pattern => new RegExp(`^${pattern.split("*").map(part => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&")).join(".*")}$`));
  const wide = Math.max(width, kept.width), found = {};
  for (const [name, curve] of Object.entries(kept.curves)) {
    if (!patterns.some(pattern => pattern.test(name))) continue;
    const window = Math.max(1, Math.round(smooth / kept.width)), recent = [];
    const sums = Array(count).fill(0), smoothed = Array(count).fill(0), num = Array(count).fill(0), low = Array(count).fill(null), high = Array(count).fill(null);
    curve.mean.forEach((value, i) => {
      if (value === null) return;
      if (recent.push(value) > window) recent.shift();
      const at = Math.floor((kept.first + i * kept.width - first) / width);
      if (at < 0 || at >= count) return;
      num[at]++;
      sums[at] += value;
      smoothed[at] += recent.reduce((sum, one) => sum + one, 0) / recent.length;
      low[at] = Math.min(low[at] ?? Infinity, curve.low?.[i] ?? value);
      high[at] = Math.max(high[at] ?? -Infinity, curve.high?.[i] ?? value);
    });
    if (!num.some(Boolean)) continue;
    const mean = of => of.map((sum, i) => num[i] ? sum / num[i] : null);
    found[name] = { mean: mean(sums), ...(wide > 1 ? { low, high } : {}), ...(smooth > 1 ? { smooth: mean(smoothed) } : {}) };
  }
  return { names: kept.names, curves: found, planned: kept.planned, begun: 0 };
}

// A part of a saved map: the rows and columns that are asked for.
function gate(maps, { order, by, find, rows, columns }) {
  const map = maps[`${order} ${by}`];
  if (!map) throw new Error(missing("This order"));
  const within = ([begin, size, number], asked, more) => {
    const [from, to] = asked ? asked.split(",").map(Number) : [begin, Infinity];
    return [Math.max(0, Math.floor((from - begin) / size)), Math.min(number, Math.ceil((to + more - begin) / size))];
  };
  const shown = map.names.length ? [...map.names.keys()].filter(i => map.names[i].toLowerCase().includes(find.toLowerCase())) : [...Array(map.rows[2]).keys()];
  const [top, bottom] = within([map.rows[0], map.rows[1], shown.length], rows, 0), [left, right] = within(map.columns, columns, 1);
  const place = new Map(shown.slice(top, bottom).map((row, i) => [row, i]));
  return {
    prompts: map.names.length ? shown.length : map.prompts, names: map.names.length ? [...place.keys()].map(row => map.names[row]) : [],
    cells: map.cells.filter(cell => place.has(cell[0]) && cell[1] >= left && cell[1] < right).map(([row, column, ...rest]) => [place.get(row), column - left, ...rest]).sort((a, b) => a[0] - b[0] || a[1] - b[1]),
    rows: [map.rows[0] + top * map.rows[1], map.rows[1], Math.max(0, bottom - top)], columns: [map.columns[0] + left * map.columns[1], map.columns[1], Math.max(0, right - left)],
  };
}

// As `search` of rollouts.py, all at once.
function rollouts(groups, asked) {
  const is = (name, value) => !asked[name] || asked[name] === value;
  const between = (name, value) => (!asked[`min_${name}`] || value >= Number(asked[`min_${name}`])) && (!asked[`max_${name}`] || value <= Number(asked[`max_${name}`]));
  const text = (asked.text ?? "").toLowerCase(), isEval = asked.kind === "eval", found = [];
  for (const group of groups) {
    const set = isEval ? group.request_id.replace(/#[^#]*$/, "") : group.data_source;
    if (!is("set", set) || !is("branch", group.branch) || !between("step", group.step) || !(isEval ? group.request_id : group.prompt_id).includes(asked.prompt ?? "")) continue;
    for (const one of group.responses)
      if (is("outcome", one.outcome) && is("finish", one.finish) && between("score", one.score) && between("advantage", one.advantage) && between("tokens", one.tokens)
        && (!text || `${group.prompt}\n${one.text}`.toLowerCase().includes(text)))
        found.push({ ...group, responses: null, ...one, text: one.text.slice(0, 240) });
  }
  const steps = new Set(groups.map(group => group.step)).size;
  const begin = Number(asked.after ?? 0), page = found.slice(begin, begin + 50);
  return { rollouts: page, next: begin + 50 < found.length ? begin + 50 : null, searched: steps, steps };
}

function group(groups, { kind, step, group, prompt }) {
  const key = kind === "eval" ? "request_id" : "prompt_id";
  const found = groups.find(one => one.step === Number(step) && (prompt === undefined ? one.group === Number(group) : one[key] === prompt));
  if (!found) throw new Error(missing(`What was sampled at step ${step} for this prompt`));
  return found;
}
