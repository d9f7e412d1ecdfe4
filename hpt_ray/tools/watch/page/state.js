// What is looked at, kept in the address behind #, so that a link shows the same again.

let params = new URLSearchParams(location.hash.slice(1));
const listeners = [];

export const get = (name, fallback = "") => params.get(name) ?? fallback;

// Runs are joined by a comma, which no folder of a run has in its name.
export const list = name => get(name).split(",").filter(Boolean);

// Change some of it, null to forget; `quiet` replaces the address instead of adding to the browser's history.
export function set(changes, quiet = true) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "" || (Array.isArray(value) && !value.length)) params.delete(name);
    else params.set(name, Array.isArray(value) ? value.join(",") : value);
  }
  const hash = `#${params.toString().replaceAll("%2F", "/").replaceAll("%2C", ",")}`;
  if (quiet) history.replaceState(null, "", hash); else history.pushState(null, "", hash);
  listeners.forEach(listener => listener());
}

export function onchange(listener) {
  listeners.push(listener);
}

function reread() {
  params = new URLSearchParams(location.hash.slice(1));
  listeners.forEach(listener => listener());
}
addEventListener("popstate", reread);
addEventListener("hashchange", reread);
