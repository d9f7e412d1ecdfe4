// Elements, requests to the server, numbers as text. Data becomes text nodes only, never markup.

import { answer, saved } from "./saved.js";

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

export const $ = selector => document.querySelector(selector);

// The answer to a request; throws an Error with what the server said.
export async function ask(what, params = {}, signal = undefined) {
  if (saved) return answer(what, Object.fromEntries(Object.entries(params).map(([name, value]) => [name, typeof value === "number" ? value : String(value ?? "")])));
  const response = await fetch(`api/${what}?${new URLSearchParams(params)}`, { signal });
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

// Control characters as pictures of themselves; what turns the reading direction, as its code.
export function visible(text) {
  return String(text ?? "").replace(/[\0-\x08\x0b-\x1f]/g, c => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
      c => `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

const digits = { maximumSignificantDigits: 4 };
const plain = new Intl.NumberFormat("en", digits), short = new Intl.NumberFormat("en", { ...digits, notation: "compact" }); // slow to make

export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e5) return short.format(value);
  if (size && size < 1e-3) return value.toExponential(2);
  return plain.format(value);
}

export function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

export const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const words = name => String(name ?? "").replaceAll("_", " ");

export function choice(label, options, value, onpick) {
  const select = el("select", { onchange: () => onpick(select.value) },
    ...options.map(([key, text]) => el("option", { value: key, textContent: text, selected: String(key) === String(value) })));
  return el("label", {}, `${label} `, select);
}
