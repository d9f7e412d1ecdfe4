// What is looked at, kept in the address behind #, so that a link shows the same again.

let params = new URLSearchParams(location.hash.slice(1));
const listeners = [];

export const get = (name, fallback = "") => params.get(name) ?? fallback;

// Several values are joined by commas; one that is in a value is written as %2C.
export const list = name => get(name).split(",").filter(Boolean).map(one => one.replaceAll("%2C", ",").replaceAll("%25", "%"));
const joined = values => values.map(one => String(one).replaceAll("%", "%25").replaceAll(",", "%2C")).join(",");

// Change some of it, null to forget; `quiet` replaces the address instead of adding to the browser's history.
export function set(changes, quiet = true) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "" || (Array.isArray(value) && !value.length)) params.delete(name);
    else params.set(name, Array.isArray(value) ? joined(value) : value);
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
