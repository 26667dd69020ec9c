import { $, Flow, Rates, ago, brief, bytes, daysLeft, el, eventItem, life, lifeBar, live, minutes, num, put, rate, setNow, span } from "./lib.js";

const name = document.body.dataset.identity;
const flow = new Flow($("flow"));
const rates = new Rates();
const bar = lifeBar();
const left = el("p");
$("cert-life").append(left, bar);
let seen = 0, current = null;

function tile(id, text, more, kind = "") {
  put($("t-" + id), text);
  $("t-" + id).className = kind;
  put($("t-" + id + "-more"), more);
}

// facts fills a list of names and values; empty values are left out.
function facts(list, all) {
  const text = JSON.stringify(all);
  if (list.dataset.key === text) return;
  list.dataset.key = text;
  list.replaceChildren(...all.filter(([, v]) => v !== "" && v !== undefined).flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, brief(String(v)))]));
}

const day = (text) => (text ? new Date(text).toISOString().replace("T", " ").replace(/\.\d+Z|Z$/, " UTC") : "");
const summary = (c) => [["Name", c.subject], ["Issuer", c.issuer], ["Serial", c.serial], ["Valid from", day(c.not_before)], ["Valid until", day(c.not_after)],
  ["Key", c.key], ["Chain", c.chain + (c.chain === 1 ? " certificate" : " certificates")], ["SHA-1", c.sha1.replace(/..(?=.)/g, "$&:")], ["SHA-256", c.sha256.replace(/..(?=.)/g, "$&:")]];

function showVerdict(id) {
  const box = $("verdict");
  const text = id.first_fault || (id.connected ? "Connected, nothing is wrong." : "Not connected yet: " + id.state + ".");
  const key = text + "\n" + id.hint;
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.className = "verdict" + (id.first_fault ? " bad" : "");
  box.replaceChildren(el("strong", {}, text));
  if (id.hint) box.append(el("span", { class: "hint" }, id.hint));
  box.hidden = false;
}

function showCertificate(c) {
  const now = c.current;
  bar.hidden = !now;
  if (now) {
    put(left, daysLeft(life(bar, now.not_before, now.not_after)) + " left" + (c.from_last_good ? ", from the kept copy of the last good one" : ""));
    facts($("cert"), summary(now));
  } else {
    put(left, "There is none.");
    facts($("cert"), []);
  }
  const next = $("next");
  const state = c.candidate_state, reason = c.candidate_reason;
  const key = JSON.stringify([state, reason, c.candidate, c.candidate_hint, c.misses, c.next_retry, c.problems]);
  if (next.dataset.key === key) return;
  next.dataset.key = key;
  next.replaceChildren();
  if (!state || state === "none") {
    next.append(el("p", {}, now ? "The files hold the certificate in use." : "The files hold none."));
  } else {
    next.append(el("p", {}, el("strong", { class: "warn-text" }, state), reason ? ": " + reason : ""));
    if (c.candidate_hint) next.append(el("p", {}, c.candidate_hint));
    if (c.misses) next.append(el("p", {}, (c.misses === 1 ? "Failed once" : `Failed ${num(c.misses)} times`) + (c.next_retry ? `, tried again at ${day(c.next_retry)}` : "") + "."));
    const list = el("dl", { class: "facts-list" });
    if (c.candidate) { facts(list, summary(c.candidate)); next.append(list); }
  }
  for (const p of c.problems || []) next.append(el("p", { class: "warn-text" }, p));
}

function showRotation(r, total) {
  if (!r) return facts($("rotation"), [["Rotations", "none since the start"]]);
  facts($("rotation"), [["At", day(r.at)], ["Gap", r.gap_ms + " ms without an acknowledged message"], ["Pause", r.pause_ms + " ms without sending"],
    ["Sent again", num(r.resent)], ["From", r.from], ["To", r.to], ["In all", num(total) + " since the start"]]);
}

function showWay(id) {
  const w = id.wire || {}, month = (m) => (m ? bytes(m.sent) + " sent, " + bytes(m.received) + " received" : "");
  facts($("way"), [["Address", id.remote], ["Transport", id.transport], ["Not over mqtt", id.detour || ""], ["Keep-alive", id.keepalive_seconds ? id.keepalive_seconds + " s" : ""],
    ["In flight", num(id.in_flight) + (id.window ? " of at most " + num(id.window) : "") + (id.throttled ? ", slowed down by the hub" : "")],
    ["Last answer", day(id.last_acknowledged)], ["Sent again", num(id.resent)], ["Data in " + (w.month || "this month"), month(w.this_month)], ["The month before", month(w.last_month)]]);
}

function counts(body, all) {
  const rows = Object.entries(all || {}).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
  if (!rows.length) return body.replaceChildren(el("tr", {}, el("td", { colspan: 2 }, "none")));
  body.replaceChildren(...rows.map(([k, n]) => el("tr", {}, el("th", { scope: "row" }, k), el("td", { class: "num" }, num(n)))));
}

function showEvents(all) {
  const list = $("events");
  for (const e of all) {
    if (e.seq <= seen) continue;
    seen = e.seq;
    list.prepend(eventItem(e, false));
  }
  while (list.childElementCount > 32) list.lastElementChild.remove();
}

function show(d) {
  setNow(d.now);
  current = d;
  showEvents(d.events);
  const id = d.identity;
  if (!id) {
    $("verdict").className = "verdict bad";
    $("verdict").replaceChildren(el("strong", {}, "This identity is not configured any more."));
    $("verdict").hidden = false;
    return;
  }
  document.title = (id.first_fault ? "⚠ " : "") + name + " · gatewayd";
  put($("hub-id"), id.hub_id + " at " + id.host);
  showVerdict(id);
  const q = id.queue;
  rates.add(q.appended, q.acked);
  const r = rates.get();
  tile("state", id.state, "", id.connected ? "" : id.first_fault ? "bad" : "warn");
  tile("in", num(q.appended), r ? rate(r.in) + " per second" : "messages");
  tile("out", num(q.acked), r ? rate(r.out) + " per second" : "messages");
  tile("queued", num(q.messages), q.messages ? bytes(q.bytes) + ", oldest " + span(q.oldest_seconds) : id.in_flight + " in flight");
  const dropped = Object.values(q.dropped || {}).reduce((a, b) => a + b, 0);
  tile("aside", num(q.aside), num(dropped) + " dropped", q.aside ? "warn" : "");
  const failed = Object.entries(id.connects || {}).reduce((n, [k, v]) => n + (k === "accepted" ? 0 : v), 0);
  tile("connects", num((id.connects || {}).accepted || 0), num(failed) + " failed");
  tile("rotations", num(id.rotations), id.last_rotation ? "gap " + id.last_rotation.gap_ms + " ms" : "none since the start");
  $("tiles").hidden = false;
  flow.show(minutes(d.chart, q.appended, q.acked));
  showCertificate(id.certificate);
  showWay(id);
  showRotation(id.last_rotation, id.rotations);
  counts($("connects"), id.connects);
  counts($("dropped"), q.dropped);
  tick();
}

function tick() {
  if (!current || !current.identity) return;
  const id = current.identity;
  put($("t-state-more"), "for " + span(ago(id.since)) + (id.next_try && !id.connected ? ", next try in " + span(-ago(id.next_try)) : ""));
}
setInterval(tick, 1000);

live("/live?identity=" + encodeURIComponent(name), { identity: show, same: tick });
