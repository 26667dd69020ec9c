import { $, Flow, Rates, Spark, ago, bytes, daysLeft, el, eventItem, identityPage, life, lifeBar, live, minutes, now, num, put, rate, setNow, span } from "./lib.js";

const identities = new Map(); // name → last row from the gateway
const rows = new Map(); // name → its elements
const flow = new Flow($("flow"));
const rates = new Rates();
let order = [], charts = {}, head = {};

function total(pick) {
  let n = 0;
  for (const id of identities.values()) n += pick(id);
  return n;
}

function showHead() {
  setNow(head.now);
  put($("machine"), head.machine);
  put($("version"), head.version);
  put($("uptime"), "up " + span(ago(head.started)));
  $("clock").hidden = head.clock === "trusted";
  put($("clock"), "clock not trusted");
  const left = head.unconfigured || [];
  $("unconfigured").hidden = left.length === 0;
  put($("unconfigured"), "Not configured any more, their messages are kept until gatewayd queue drop: " + left.join(", "));
  document.title = (head.first_fault ? "⚠ " : "") + head.machine + " · gatewayd";
}

function showVerdict() {
  const box = $("verdict");
  const faults = total((id) => (id.fault ? 1 : 0));
  const waiting = total((id) => (!id.fault && !id.connected ? 1 : 0));
  let text = "Nothing is wrong.", more = "", bad = false;
  if (head.first_fault) {
    [text, bad] = [head.first_fault, true];
    const others = faults - (head.fault_identity ? 1 : 0);
    if (others > 0) more = `and ${num(others)} more ${others === 1 ? "identity" : "identities"} with a fault`;
  } else if (waiting) {
    more = `${num(waiting)} still connecting`;
  }
  const key = [text, head.fault_hint, more].join("\n");
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.className = "verdict" + (bad ? " bad" : "");
  const strong = el("strong", {});
  if (bad && head.fault_identity) {
    const rest = text.startsWith(head.fault_identity + ": ") ? text.slice(head.fault_identity.length) : ": " + text;
    strong.append(el("a", { href: identityPage(head.fault_identity) }, head.fault_identity), rest);
  } else {
    strong.append(text);
  }
  box.replaceChildren(strong);
  if (head.fault_hint) box.append(el("span", { class: "hint" }, head.fault_hint));
  if (more) box.append(el("span", { class: "rest" }, more));
  box.hidden = false;
}

function tile(id, text, more, kind = "") {
  put($("t-" + id), text);
  $("t-" + id).className = kind;
  if (more !== undefined) put($("t-" + id + "-more"), more);
}

function showTiles() {
  const n = identities.size, up = total((id) => (id.connected ? 1 : 0));
  tile("connected", num(up) + " of " + num(n), n === 1 ? "identity" : "identities", up < n ? "warn" : "");
  rates.add(total((id) => id.received), total((id) => id.delivered));
  const r = rates.get();
  tile("in", r ? rate(r.in) : "–");
  tile("out", r ? rate(r.out) : "–");
  const queued = total((id) => id.queued);
  let oldest = 0, soonest = null;
  for (const id of identities.values()) {
    oldest = Math.max(oldest, id.oldest);
    if (id.cert_until && (!soonest || id.cert_until < soonest.cert_until)) soonest = id;
  }
  tile("queued", num(queued), queued ? bytes(total((id) => id.bytes)) + ", oldest " + span(oldest) : "messages");
  const aside = total((id) => id.aside), dropped = total((id) => id.dropped);
  tile("aside", num(aside), dropped ? num(dropped) + " dropped" : "none dropped", aside ? "warn" : "");
  if (soonest) {
    const left = (Date.parse(soonest.cert_until) - now()) / 1000;
    tile("cert", left > 0 ? span(left) : "expired", "first to expire: " + soonest.name, left <= 0 ? "bad" : "");
  } else {
    tile("cert", "–", "no certificate in use");
  }
  tile("disk", bytes(head.disk.bytes), head.disk.trouble || "last sync " + head.disk.last_sync_ms.toFixed(1) + " ms", head.disk.trouble ? "bad" : "");
  $("tiles").hidden = false;
}

class Row {
  constructor(name) {
    this.link = el("a", { href: identityPage(name) }, name);
    this.hub = el("small");
    this.fault = el("small", { class: "fault" });
    this.state = el("span", { class: "state" });
    this.since = el("td", { class: "c-since", role: "cell" });
    this.days = el("span");
    this.bar = lifeBar();
    this.candidate = el("small", { class: "warn-text" });
    this.spark = new Spark();
    this.in = el("td", { class: "num c-in", role: "cell", "data-label": "in" });
    this.out = el("td", { class: "num c-out", role: "cell", "data-label": "out" });
    this.waiting = el("span");
    this.age = el("small");
    this.trouble = el("small", { class: "warn-text" });
    this.node = el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, this.link, this.hub, this.fault),
      el("td", { class: "c-state", role: "cell" }, this.state), this.since, el("td", { class: "cert", role: "cell" }, this.days, this.bar, this.candidate),
      el("td", { class: "c-spark", role: "cell" }, this.spark.node), this.in, this.out,
      el("td", { class: "num c-wait", role: "cell", "data-label": "waiting" }, this.waiting, this.age, this.trouble));
  }
  show(id) {
    this.id = id;
    put(this.hub, id.hub_id === id.name ? "" : id.hub_id);
    put(this.fault, id.fault);
    put(this.state, id.state);
    this.state.className = "state" + (id.connected ? "" : id.fault ? " off" : " busy");
    put(this.candidate, id.candidate ? "new: " + id.candidate : "");
    this.spark.show(minutes(charts[id.name], id.received, id.delivered));
    put(this.in, num(id.received));
    put(this.out, num(id.delivered));
    put(this.waiting, num(id.queued));
    put(this.age, id.queued ? span(id.oldest) : "");
    put(this.trouble, [id.aside && num(id.aside) + " set aside", id.dropped && num(id.dropped) + " dropped"].filter(Boolean).join(", "));
    this.tick();
  }
  // tick is what time alone changes.
  tick() {
    put(this.since, span(ago(this.id.since)));
    this.bar.hidden = !this.id.cert_until;
    put(this.days, this.id.cert_until ? daysLeft(life(this.bar, this.id.cert_from, this.id.cert_until)) : "none");
  }
}

// arrange puts the rows with a fault first, else in the order of the file, and hides what was not asked for.
function arrange() {
  const want = $("find").value.trim().toLowerCase(), only = $("only-faults").checked;
  const fits = (id) => (!only || id.fault || !id.connected) && (id.name + " " + id.hub_id + " " + id.state + " " + id.fault).toLowerCase().includes(want);
  const names = order.filter((n) => identities.has(n)).sort((a, b) => !!identities.get(b).fault - !!identities.get(a).fault);
  const body = $("identities");
  let at = body.firstElementChild, shown = 0;
  for (const name of names) {
    const node = rows.get(name).node;
    node.hidden = !fits(identities.get(name));
    if (!node.hidden) shown++;
    if (node === at) at = at.nextElementSibling;
    else body.insertBefore(node, at);
  }
  put($("n-identities"), shown === names.length ? num(names.length) : num(shown) + " of " + num(names.length));
  $("no-identities").hidden = shown > 0;
}

function take(m, whole) {
  head = m.head;
  showHead();
  if (m.charts) charts = m.charts;
  if (m.order) {
    order = m.order;
    const there = new Set(order);
    for (const name of identities.keys()) {
      if (there.has(name)) continue;
      identities.delete(name);
      rows.get(name).node.remove();
      rows.delete(name);
    }
  }
  for (const id of m.identities || []) {
    identities.set(id.name, id);
    if (!rows.has(id.name)) rows.set(id.name, new Row(id.name));
    rows.get(id.name).show(id);
  }
  if (whole || m.identities) arrange();
  for (const row of rows.values()) row.tick();
  showVerdict();
  showTiles();
  showFlow();
  if (m.others) showOthers(m.others);
  if (m.events) showEvents(m.events, whole);
  sensorsSoon();
}

function showFlow() {
  const all = { in: Array(60).fill(null), out: Array(60).fill(null) };
  for (const id of identities.values()) {
    const m = minutes(charts[id.name], id.received, id.delivered);
    for (let i = 0; i < 60; i++) {
      if (m.in[i] === null) continue;
      all.in[i] += m.in[i];
      all.out[i] += m.out[i];
    }
  }
  flow.show(all);
}

let seen = 0;
function showEvents(news, whole) {
  const list = $("events");
  if (whole && news.length && news.at(-1).seq < seen) { // another run of the gateway
    list.replaceChildren();
    seen = 0;
  }
  for (const e of news) {
    if (e.seq <= seen) continue;
    seen = e.seq;
    list.prepend(eventItem(e, true));
  }
  while (list.childElementCount > 100) list.lastElementChild.remove();
}

const cell = (text, kind) => el("td", kind ? { class: kind } : {}, text);

function showOthers(o) {
  $("routes").replaceChildren(...(o.routes || []).map((r) => {
    const name = el("th", { scope: "row" }, el("code", {}, r.match));
    if (r.last_error) name.append(el("small", { class: "fault" }, r.last_error));
    return el("tr", {}, name, cell(r.to), cell(num(r.messages), "num"), cell(num(r.unwanted + r.unchanged), "num"), cell(num(r.failed), "num" + (r.failed ? " bad-text" : "")));
  }));
  $("no-routes").hidden = (o.routes || []).length > 0;
  $("sources").replaceChildren(...(o.sources || []).map((s) => {
    const why = Object.entries(s.refused).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
    return el("tr", {}, el("th", { scope: "row" }, s.name), cell(num(s.received), "num"), cell(num(why.reduce((n, [, k]) => n + k, 0)), "num"),
      cell(why.map(([reason, n]) => reason.replace("_", " ") + " " + num(n)).join(", ")));
  }));
  $("listeners").replaceChildren(...(o.listeners || []).map((l) => {
    const name = el("th", { scope: "row" }, l.kind);
    if (l.fault) name.append(el("small", { class: "fault" }, l.fault));
    return el("tr", {}, name, cell(l.address), cell(l.connections < 0 ? "" : num(l.connections), "num"));
  }));
}

// Sensors may be many: the gateway searches and sorts, and the page asks while the list can be seen.
let visible = false, asked = 0, asking = false;
new IntersectionObserver((seen) => { visible = seen.at(-1).isIntersecting; sensorsSoon(); }).observe($("p-sensors"));
async function sensorsSoon(at_once) {
  if (asking && !at_once) return;
  put($("n-sensors"), num(head.sensor_count || 0));
  if (!at_once && asked && (!visible || document.hidden || performance.now() - asked < 3900)) return;
  asking = true;
  asked = performance.now();
  try {
    const q = new URLSearchParams({ q: $("sensor-find").value, sort: $("sensor-sort").value });
    const list = await (await fetch("/sensors?" + q)).json();
    if (q.get("q") === $("sensor-find").value) showSensors(list);
  } catch { /* the stream says that the gateway is away */ }
  asking = false;
}

const sensorRows = [];
function showSensors(list) {
  const body = $("sensors");
  while (sensorRows.length < list.rows.length) {
    const cells = { name: el("th", { scope: "row" }), source: el("td"), messages: el("td", { class: "num" }), refused: el("td", { class: "num" }), seen: el("td", { class: "num" }) };
    cells.node = el("tr", {}, ...Object.values(cells));
    sensorRows.push(cells);
    body.append(cells.node);
  }
  while (sensorRows.length > list.rows.length) sensorRows.pop().node.remove();
  list.rows.forEach((s, i) => {
    const cells = sensorRows[i];
    put(cells.name, s.name);
    put(cells.source, s.source);
    put(cells.messages, num(s.messages));
    put(cells.refused, num(s.refused));
    cells.refused.className = "num" + (s.refused ? " bad-text" : "");
    put(cells.seen, span(ago(s.last_seen)) + " ago");
  });
  const none = $("no-sensors");
  none.hidden = list.rows.length === list.total && list.total > 0;
  put(none, list.total === 0 ? "No sensor has been seen since the start." : `${num(list.rows.length)} of ${num(list.matching)} that fit, of ${num(list.total)}.`);
}

let soon;
$("sensor-find").addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(() => sensorsSoon(true), 200); });
$("sensor-sort").addEventListener("change", () => sensorsSoon(true));
$("find").addEventListener("input", arrange);
$("only-faults").addEventListener("change", arrange);

live("/live", { full: (m) => { take(m, true); performance.mark("shown"); }, delta: (m) => take(m, false), wait: () => {} });
