// What both pages share. Text from the gateway becomes text nodes and attributes, never markup.

export const $ = (id) => document.getElementById(id);

// put changes a text only when it is another one: what is selected stays so, and nothing is drawn twice.
export function put(node, text) {
  text = String(text);
  if (node.textContent !== text) node.textContent = text;
}

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
export const num = (n) => (n < 1e6 ? whole.format(n) : short.format(n));
export const rate = (n) => (n === 0 ? "0" : n < 10 ? n.toFixed(1) : num(Math.round(n)));

export function bytes(n) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (n < 1024 || unit === "GiB") return (unit === "B" || n >= 100 ? Math.round(n) : n.toFixed(1)) + " " + unit;
    n /= 1024;
  }
}

// span says a time in the two units that matter.
export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
  const days = Math.floor(s / 86400);
  return days < 10 ? days + " d " + Math.floor((s % 86400) / 3600) + " h" : num(days) + " d";
}

// The gateway's clock, which need not be this machine's.
let skew = 0;
export const setNow = (text) => { skew = Date.parse(text) - Date.now(); };
export const now = () => Date.now() + skew;
export const ago = (text) => (now() - Date.parse(text)) / 1000;

export const identityPage = (name) => "/identity?name=" + encodeURIComponent(name);

// life shows how much of a certificate's life is left, in its element's own words too.
export function life(bar, from, until) {
  const whole = Date.parse(until) - Date.parse(from);
  const left = Date.parse(until) - now();
  const share = whole > 0 ? Math.min(1, Math.max(0, left / whole)) : 0;
  bar.className = "life" + (left <= 0 ? " out" : share < 0.2 ? " low" : "");
  bar.firstChild.style.width = (left <= 0 ? 100 : Math.max(2, share * 100)).toFixed(0) + "%";
  bar.setAttribute("aria-label", left <= 0 ? "expired" : Math.round(share * 100) + " % of its life left");
  return left / 1000;
}
export const lifeBar = () => el("span", { class: "life", role: "img", "aria-label": "" }, el("i"));
export const daysLeft = (seconds) => (seconds <= 0 ? "expired " + span(-seconds) + " ago" : span(seconds));

// A chart has 60 minutes; the last one is under way.
const MINUTES = 60;
export function minutes(chart, received, delivered) {
  const run = (counter, mark) => Math.max(0, counter >= mark ? counter - mark : counter);
  const fill = (list, last) => {
    const some = [...(list || []), last].slice(-MINUTES);
    return Array(MINUTES - some.length).fill(null).concat(some); // null: nobody counted yet
  };
  return {
    in: fill(chart && chart.in, chart ? run(received, chart.in0) : 0),
    out: fill(chart && chart.out, chart ? run(delivered, chart.out0) : 0),
  };
}
export const sum = (list) => list.reduce((a, b) => a + b, 0);

function paths(m, width, height, top) {
  const x = (i) => ((i * width) / (MINUTES - 1)).toFixed(1);
  const y = (v) => (height - 1 - ((height - 3) * v) / top).toFixed(1);
  // One point alone would not be seen: it is drawn as a short line.
  const first = Math.min(MINUTES - 2, Math.max(0, m.in.findIndex((v) => v !== null)));
  const line = (list) => list.map((v, i) => (i < first ? "" : (i === first ? "M" : "L") + x(i) + " " + y(v ?? list[i + 1]))).join("");
  return { in: line(m.in), out: line(m.out) + "L" + width + " " + height + "L" + x(first) + " " + height + "Z" };
}
const set = (node, key, value) => { if (node.getAttribute(key) !== value) node.setAttribute(key, value); };

// Spark is the small chart of a row.
export class Spark {
  constructor() {
    this.out = svg("path", { class: "o" });
    this.in = svg("path", { class: "i" });
    this.node = svg("svg", { class: "spark", viewBox: "0 0 150 26", preserveAspectRatio: "none", role: "img" }, this.out, this.in);
  }
  show(m) {
    const p = paths(m, 150, 26, Math.max(1, ...m.in, ...m.out));
    set(this.out, "d", p.out);
    set(this.in, "d", p.in);
    set(this.node, "aria-label", `last hour: ${num(sum(m.in))} in, ${num(sum(m.out))} out`);
  }
}

// Flow is the large one, with a scale and a reading under the pointer or the arrow keys.
export class Flow {
  constructor(place) {
    this.out = svg("path", { class: "o" });
    this.in = svg("path", { class: "i" });
    this.at = svg("line", { class: "at", y1: 0, y2: 132, x1: -9, x2: -9 });
    this.node = svg("svg", { viewBox: "0 0 600 132", preserveAspectRatio: "none", role: "img", tabindex: 0 },
      ...[1, 44, 88, 131].map((y) => svg("line", { class: "grid", x1: 0, x2: 600, y1: y, y2: y })), this.out, this.in, this.at);
    this.reading = el("span");
    this.inSum = el("span", { class: "key" });
    this.outSum = el("span", { class: "key o" });
    this.top = el("span");
    place.append(this.node, el("div", { class: "axis", "aria-hidden": "true" }, "60 min ago", el("span", {}, "30"), el("span", {}, "now")),
      el("div", { class: "legend" }, this.inSum, this.outSum, this.top, this.reading));
    this.point = -1;
    this.node.addEventListener("pointermove", (e) => {
      const box = this.node.getBoundingClientRect();
      this.read(Math.round(((e.clientX - box.left) / box.width) * (MINUTES - 1)));
    });
    this.node.addEventListener("pointerleave", () => this.read(-1));
    this.node.addEventListener("blur", () => this.read(-1));
    this.node.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (!step) return;
      e.preventDefault();
      this.read(this.point < 0 ? MINUTES - 1 : Math.min(MINUTES - 1, Math.max(0, this.point + step)));
    });
  }
  read(point) {
    this.point = point;
    const x = point < 0 ? "-9" : ((point * 600) / (MINUTES - 1)).toFixed(1);
    set(this.at, "x1", x);
    set(this.at, "x2", x);
    if (point < 0 || !this.m) return put(this.reading, "");
    const when = point === MINUTES - 1 ? "this minute" : MINUTES - 1 - point + " min ago";
    put(this.reading, this.m.in[point] === null ? `${when}: not counted` : `${when}: ${num(this.m.in[point])} in, ${num(this.m.out[point])} out`);
  }
  show(m) {
    this.m = m;
    const top = Math.max(1, ...m.in, ...m.out);
    const p = paths(m, 600, 132, top);
    set(this.out, "d", p.out);
    set(this.in, "d", p.in);
    put(this.inSum, num(sum(m.in)) + " in");
    put(this.outSum, num(sum(m.out)) + " out");
    put(this.top, "highest " + num(top) + " per minute");
    set(this.node, "aria-label", `Messages per minute over the last hour: ${num(sum(m.in))} in, ${num(sum(m.out))} out, highest ${num(top)}`);
    this.read(this.point);
  }
}

// Rates keeps a few readings of counters and says what they grow by per second.
export class Rates {
  constructor() { this.seen = []; }
  add(received, delivered) {
    const last = this.seen.at(-1);
    if (last && (received < last.in || delivered < last.out)) this.seen = [];
    this.seen.push({ t: performance.now(), in: received, out: delivered });
    if (this.seen.length > 6) this.seen.shift();
  }
  get() {
    const a = this.seen[0], b = this.seen.at(-1);
    if (!a || b.t - a.t < 500) return null;
    const seconds = (b.t - a.t) / 1000;
    return { in: (b.in - a.in) / seconds, out: (b.out - a.out) / seconds };
  }
}

// What says most comes first; thumbprints beside the fingerprint are on the identity's page.
const first = ["error", "err", "reason", "gap", "hint", "state"];
const fields = (e) => e.fields.filter((f) => f.k !== "sha1" && f.k !== "sha256" && f.v !== "")
  .sort((a, b) => (first.indexOf(b.k) >= 0) - (first.indexOf(a.k) >= 0));
export function brief(text) {
  if (/\S \S/.test(text)) return document.createTextNode(text); // prose
  const code = el("code", {}, /^[0-9a-fA-F]{32,}$/.test(text) ? text.slice(0, 12) + "…" : text.replace(/^(\d+\.\d)\d+(µs|ms|s)$/, "$1$2"));
  if (code.textContent !== text) code.title = text;
  return code;
}

// eventItem is a line of the list of events.
export function eventItem(e, withIdentity) {
  const at = new Date(e.at);
  const day = at.toDateString() === new Date().toDateString() ? "" : at.toLocaleDateString(undefined, { month: "short", day: "numeric" }) + " ";
  const body = el("span", {}, el("b", {}, e.text));
  if (e.level !== "info") body.prepend(el("span", { class: "hidden" }, e.level + ": "));
  if (withIdentity && e.identity) body.append(" ", el("a", { href: identityPage(e.identity) }, e.identity));
  const more = fields(e);
  if (more.length) body.append(el("br"), el("small", {}, ...more.map((f) => el("span", {}, f.k.replaceAll("_", " ") + " ", brief(f.v)))));
  return el("li", { class: e.level }, el("time", { datetime: e.at }, day + at.toLocaleTimeString(undefined, { hour12: false })), el("i", { "aria-hidden": "true" }), body);
}

// live keeps a stream open. While it is not, the page says so, and how old it is.
export function live(url, handlers) {
  const pulse = $("pulse");
  let source, last = 0;
  const say = (kind, text) => { pulse.className = "pulse " + kind; put(pulse.lastElementChild, text); };
  const heard = () => { last = Date.now(); say("live", "live"); };
  const open = () => {
    source = new EventSource(url);
    source.onopen = heard;
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (e) => { heard(); handle(JSON.parse(e.data)); });
    }
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) { source.close(); setTimeout(open, 5000); }
      lost();
    };
  };
  const lost = () => say("lost", last ? "no connection, this is " + span((Date.now() - last) / 1000) + " old" : "no connection");
  setInterval(() => { if (last && Date.now() - last > 8000) lost(); }, 1000);
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (e) => { if (e.persisted) open(); });
  open();
}

// Buttons that change something. The answer is text.
for (const form of document.querySelectorAll("form[data-act]")) {
  form.addEventListener("submit", async (e) => {
    e.preventDefault();
    const said = $("acted");
    put(said, "…");
    try {
      const answer = await fetch(form.dataset.act, { method: "POST", body: new URLSearchParams(new FormData(form)) });
      put(said, (await answer.text()).trim());
      said.className = answer.ok ? "" : "bad-text";
    } catch {
      put(said, "The gateway does not answer.");
      said.className = "bad-text";
    }
  });
}
