"use strict";
// The page's own script. htmx and its SSE extension read the stream and swap the rows in; the server
// renders every row, filters, counts and samples. What is here keeps the connection and its place,
// the number of rows, the URL, and draws the volume. All state that a link should carry is in the URL.

const byId = (id) => document.getElementById(id);
const live = byId("live"), log = byId("log"), rows = byId("rows"), filters = byId("filters");
const MAX_ROWS = Number(live.dataset.maxRows), SILENCE_MS = Number(live.dataset.silenceMs);
const RETRY_MS = [300, 2000], ASK_AGAIN_MS = 1000, HELD_BACK_MS = 4000;
const FINAL = [400, 401, 403]; // answers that another attempt would not change
const IN_FILTER = ["q", "level", "source", "text", "cols"];
const LEVELS = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"];
const locals = (name, fallback) => localStorage.getItem("logpipe-" + name) ?? fallback;
const keep = (name, value) => localStorage.setItem("logpipe-" + name, value);
const count = (number) => number.toLocaleString("en-US");

// -- the URL -------------------------------------------------------------------------------------

const given = () => new URLSearchParams(location.search);

function asked(names, more = {}) {
  const query = new URLSearchParams();
  for (const name of names) if (given().get(name)) query.set(name, given().get(name));
  for (const [name, value] of Object.entries(more)) if (value) query.set(name, value);
  return query;
}

function changed(changes) {
  const query = given();
  for (const [name, value] of Object.entries(changes)) value ? query.set(name, value) : query.delete(name);
  return query.size ? "/?" + query : "/";
}

function go(changes) {
  const url = changed(changes);
  if (url !== location.pathname + location.search) history.pushState(null, "", url);
  begin();
}

const note = (changes) => history.replaceState(null, "", changed(changes));

// -- modes: live rows, paused (the server counts what waits), or a span of time that is over --------

let mode = "live";
let cursor = ""; // the id up to which the rows are shown
let counted = ""; // paused: the id up to which the server has counted
let waiting = 0, lost = 0; // paused: events, and gaps, between cursor and counted
let byScrolling = false;
let generation = 0; // of the rows: what was asked for before they were cleared comes too late

function enter(next) {
  mode = live.dataset.mode = next;
  byId("paused").hidden = mode !== "paused";
  byId("place").hidden = mode !== "span";
  tellWaiting();
}

function begin() {
  close();
  stopAsking("rows", "around", "volume");
  generation++;
  rows.replaceChildren();
  cursor = counted = "";
  byScrolling = false;
  Object.assign(counters, { shown: 0, filtered: 0, gaps: 0 });
  paces.length = 0;
  volume.clear();
  fillControls();
  const query = given();
  if (query.get("at")) return beginAt(query.get("at"));
  if (query.get("to")) return beginSpan(query);
  enter("live");
  connect();
}

async function beginAt(id) {
  enter("paused");
  const mine = generation;
  const html = await askLatest("around", "/ui/rows?" + asked(IN_FILTER, { at: id }));
  if (html === null || mine !== generation) return;
  rows.innerHTML = html;
  arrange();
  const row = rows.querySelector(`[data-id="${CSS.escape(id)}"]`);
  if (row) row.classList.add("at");
  else rows.append(remark(`The stream has no event ${id}, or keeps it no longer.`));
  row?.scrollIntoView({ block: "center" });
  cursor = counted = lastId() || id;
  loadVolume(cursor);
  connect();
}

function beginSpan(query) {
  enter("span");
  const told = ["since", "to"].map((name) => placeOf(query.get(name)) || "the beginning");
  byId("place-said").textContent = `Showing ${told.join(" – ")}`;
  byId("back-to-live").href = changed({ since: "", to: "" });
  show("disconnected", "a span of time, not live");
  loadVolume("");
  rows.prepend(edge({ upto: "" }));
  older();
}

function pause({ scrolling = false } = {}) {
  if (mode !== "live") return;
  byScrolling = scrolling;
  enter("paused");
  if (lastId()) note({ at: lastId() });
  recount();
}

function recount() {
  waiting = lost = 0;
  counted = cursor;
  tellWaiting();
  if (meant()) connect();
}

function resume() {
  if (mode !== "paused") return;
  stopAsking("around"); // the rows of the live page come instead
  enter("live");
  note({ at: "" });
  rows.querySelector(".at")?.classList.remove("at");
  toEnd();
  connect();
}

function jump() {
  if (waiting || lost) {
    const events = `${count(waiting)} ${waiting === 1 ? "event" : "events"}`;
    const text = `${events} passed while this was paused${lost ? ", and others are missing" : ""}: `;
    const link = Object.assign(document.createElement("a"), { textContent: "show them", href: changed({ at: lastId() }) });
    rows.append(remark(text, link));
  }
  counters.gaps += lost;
  cursor = counted;
  resume();
}

function tellWaiting() {
  byId("waiting").textContent = waiting ? `Paused · ${count(waiting)} new` : "Paused";
  document.title = mode === "paused" && waiting ? `(${count(waiting)}) logpipe` : "logpipe";
}

// -- the connection ------------------------------------------------------------------------------

const pattern = byId("connection"); // what each connection is made after
let connection = null; // the element that the extension streams into
let request = null;
let opened = false; // whether its response has come
let heard = false; // whether anything has come by it
let heardAt = 0;
let retryAt = 0, retryMs = RETRY_MS[0], why = "";
let heldBack = false; // a proxy keeps streams back: short ones go through
let wanted = true; // what the buttons say

const meant = () => wanted && mode !== "span" && !document.hidden && live.dataset.state !== "refused";
const asks = () => heldBack || !slot.held; // instead of a stream, ask again and again

function show(state, text) {
  live.dataset.state = state;
  if (byId("state").textContent !== text) byId("state").textContent = text;
  byId("connect").hidden = state !== "disconnected" || mode === "span";
  byId("disconnect").hidden = ["disconnected", "refused"].includes(state);
  byId("sign-in").hidden = state !== "refused";
}

function close() {
  retryAt = 0;
  if (!connection) return;
  const going = connection, asking = opened ? null : request;
  connection = null;
  // The public way to have the extension let go of it.
  htmx.swap({ sourceElement: going, target: going, swap: "delete", text: "" });
  asking?.abort();
}

function connect() {
  close();
  if (!meant()) return;
  slot.take();
  const paused = mode === "paused";
  const from = paused ? counted : cursor;
  const more = { last_event_id: from, rows: paused && "0", once: asks() && "1" };
  const query = asked(IN_FILTER, more);
  connection = pattern.cloneNode();
  connection.removeAttribute("id");
  connection.removeAttribute("data-htmx-powered");
  connection.setAttribute("hx-trigger", "load");
  connection.setAttribute("hx-sse:connect", "/ui/stream?" + query);
  opened = heard = false;
  heardAt = Date.now();
  if (!["connected", "reconnecting", "waiting"].includes(live.dataset.state)) show("connecting", "connecting…");
  pattern.after(connection);
  htmx.process(connection); // once: a second time would open a second stream
}

function again(reason, afterMs) {
  close();
  if (!meant()) return;
  why = reason;
  retryAt = Date.now() + (afterMs ?? retryMs * (0.7 + 0.6 * Math.random()));
  retryMs = Math.min(retryMs * 2, RETRY_MS[1]);
  tick();
}

function refuse(status) {
  close();
  show(status === 400 ? "disconnected" : "refused", status === 400 ? "this filter or position is refused" : "your token is no longer taken");
}

function on(name, react) {
  live.addEventListener(name, (event) => event.target === connection && react(event.detail, event));
}

on("htmx:before:request", ({ ctx }) => {
  request = ctx.request;
  // No answer, or one that is no longer wanted, is nothing that htmx should write to the console.
  ctx.fetch = (...what) => fetch(...what).catch(() => Response.error());
});
on("htmx:after:sse:connection", () => (opened = true));
on("htmx:before:swap", (_, event) => opened || event.preventDefault()); // an error, not a stream
on("htmx:finally:request", ({ ctx }) => {
  if (opened) return;
  const status = ctx.response?.status;
  if (FINAL.includes(status)) return refuse(status);
  again(status >= 500 ? `the server answers ${status}` : status ? "what answers is not logpipe" : "the server cannot be reached");
});
live.addEventListener("htmx:sse:close", ({ target, detail }) => {
  if (target !== connection || detail.reason !== "ended") return;
  if (!asks()) return again("the connection was lost");
  again("", ASK_AGAIN_MS);
});
on("htmx:before:sse:message", () => {
  heard = true;
  heardAt = Date.now();
});
on("htmx:after:sse:message", ({ message }) => {
  if (message.event || !message.id) return;
  cursor = message.id; // only now: the rows are on the page
  arrange();
});
on("hello", ({ data }) => {
  const hello = JSON.parse(data);
  retryMs = RETRY_MS[0];
  const way = heldBack ? ", asking again and again: a proxy on the way holds streams back (nginx: proxy_buffering off)" : asks() ? ", by short requests: other tabs hold the streams" : "";
  show("connected", `connected to ${live.dataset.from} ${hello.version}${way}`);
  if (cursor || mode !== "live" || !hello.cursor) return;
  cursor = hello.cursor;
  loadVolume(cursor);
  rows.prepend(edge({ upto: cursor }));
  older();
});
on("notice", ({ data }) => show("waiting", `connected, waiting: ${JSON.parse(data).reason}`));
on("bye", ({ data }) => {
  const { reason, retry_ms } = JSON.parse(data);
  again(reason, retry_ms);
});
on("progress", ({ id }) => moved(id));
on("missing", ({ data, id }) => {
  mode === "paused" ? lost++ : counters.gaps++;
  moved(id);
});
on("tally", ({ data, id }) => {
  const tally = JSON.parse(data);
  if (mode === "paused") {
    waiting += tally.found;
    tellWaiting();
  } else {
    counters.shown += tally.shown;
    counters.filtered += tally.read - tally.found;
  }
  paces.push([Date.now(), tally.found, mode === "live" ? tally.shown : tally.found]);
  tellRate(Date.now());
  offerSources(tally.sources);
  volume.add(tally.volume);
  moved(id);
});

function moved(id) {
  if (!id) return;
  if (mode === "paused") counted = id;
  else cursor = id;
}

// Once a second: the countdown, a connection that died without a word (a laptop sleeps, a network
// changes), one that a proxy holds back, the rate, and the volume.
function tick() {
  const now = Date.now();
  if (meant()) {
    slot.renew();
    if (retryAt && retryAt <= now) connect();
    else if (retryAt && why) show("reconnecting", `reconnecting in ${Math.ceil((retryAt - now) / 1000)} s: ${why}`);
    else if (connection && !heard && !heldBack && now - heardAt > HELD_BACK_MS) suspectProxy();
    else if (connection && now - heardAt > SILENCE_MS) connect();
    if (retryAt) setTimeout(() => retryAt && retryAt <= Date.now() && connect(), Math.max(0, retryAt - now));
  }
  tellRate(now);
  tellBusy();
  volume.draw();
}

async function suspectProxy() {
  const mine = connection;
  heardAt = Date.now();
  if ((await ask("/ui/filter")) === null || mine !== connection || heard) return;
  heldBack = true; // the server answers, its stream does not
  connect();
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    if (log.scrollTop < 400) older();
    return connect();
  }
  close(); // costs nothing meanwhile; the cursor stays
  stopAsking("rows");
  slot.release();
});
addEventListener("pagehide", () => slot.release());

// Browsers open six connections to a host: three tabs hold a stream each, the others ask again and
// again. Leases in localStorage, since Web Locks are not there over plain HTTP from another machine.
const slot = {
  LEASE_MS: 5000,
  STREAMS: 3,
  tab: Math.random().toString(36).slice(2),
  held: false,
  leases() {
    const now = Date.now();
    const all = Object.entries(JSON.parse(locals("streams", "{}")));
    return Object.fromEntries(all.filter(([, at]) => Math.abs(now - at) < this.LEASE_MS));
  },
  take() {
    const leases = this.leases();
    this.held = this.tab in leases || Object.keys(leases).length < this.STREAMS;
    if (this.held) keep("streams", JSON.stringify({ ...leases, [this.tab]: Date.now() }));
  },
  renew() {
    if (this.held) this.take();
  },
  release() {
    const { [this.tab]: _, ...others } = this.leases();
    keep("streams", JSON.stringify(others));
    this.held = false;
  },
};

// Text from the server; null where there is none, and what that means is shown.
async function ask(url, options = {}) {
  const signal = options.signal ?? new AbortController().signal;
  return textOf(await fetch(url, options).catch(() => null), signal);
}

// What costs the server a search is asked one at a time: the next of a kind aborts the one before.
const BUSY = { rows: "older events", around: "the events", volume: "the volume", filter: "the filter" };
const asking = {}; // kind: the AbortController of its request
const busy = new Map(); // kind: when it is asked again after a 503, in ms

async function askLatest(kind, url) {
  stopAsking(kind);
  const { signal } = (asking[kind] = new AbortController());
  for (;;) {
    const response = await fetch(url, { signal }).catch(() => null);
    if (response?.status !== 503) return signal.aborted ? null : textOf(response, signal);
    const waitMs = 1000 * (Number(response.headers.get("Retry-After")) || 2);
    busy.set(kind, Date.now() + waitMs);
    tellBusy();
    await new Promise((done) => {
      setTimeout(done, waitMs);
      signal.addEventListener("abort", done);
    });
    if (signal.aborted) return null;
    busy.delete(kind);
    tellBusy();
  }
}

async function textOf(response, signal) {
  if (response && response.status !== 400 && FINAL.includes(response.status)) refuse(response.status);
  const text = response?.ok ? await response.text().catch(() => null) : null;
  return signal.aborted ? null : text;
}

function stopAsking(...kinds) {
  for (const kind of kinds) {
    asking[kind]?.abort();
    busy.delete(kind);
  }
  tellBusy();
}

function tellBusy() {
  const what = [...busy.keys()].map((kind) => BUSY[kind]).join(" and ");
  const seconds = Math.ceil((Math.max(...busy.values()) - Date.now()) / 1000);
  byId("busy").hidden = !what;
  const text = what && `The server is busy or cannot reach Redis. Asking for ${what} again in ${Math.max(0, seconds)} s.`;
  if (byId("busy").textContent !== text) byId("busy").textContent = text;
}

// -- rows ------------------------------------------------------------------------------------------

const lastId = () => [...rows.querySelectorAll(":scope > .row")].at(-1)?.dataset.id ?? "";

// A reader who scrolls up before the event of this scrolling has scrolled up from here.
function toEnd() {
  log.scrollTop = log.scrollHeight;
  lastTop = log.scrollTop;
}

function remark(text, ...more) {
  const div = Object.assign(document.createElement("div"), { className: "left-out", role: "note" });
  div.append(text, ...more);
  return div;
}

function edge(data) {
  const div = Object.assign(document.createElement("div"), { className: "edge", textContent: "Older events…" });
  Object.assign(div.dataset, data);
  return div;
}

// After rows have come at the end: their times, the number of rows, the place.
function arrange() {
  tellTimes(rows.querySelectorAll(".when:not([data-clock])"));
  if (mode !== "live") return;
  while (rows.childElementCount > MAX_ROWS) rows.firstElementChild.remove();
  const first = rows.firstElementChild;
  if (first?.matches(".row")) first.before(edge({ before: first.dataset.id }));
  toEnd();
}

let loading = false;

// The rows before the oldest; the page's place in them stays.
async function older() {
  const top = rows.firstElementChild;
  const enough = mode === "live" && rows.childElementCount > MAX_ROWS / 2;
  if (loading || enough || document.hidden || !top?.matches("[data-upto], [data-before]")) return;
  loading = true;
  const mine = generation;
  const { upto, before } = top.dataset;
  const html = await askLatest("rows", "/ui/rows?" + asked([...IN_FILTER, "since", "to"], { upto, before }));
  loading = false;
  if (mine !== generation) return older();
  if (html === null) return setTimeout(older, RETRY_MS[1]);
  const atEnd = mode === "live" || !rows.querySelector(".row");
  const below = log.scrollHeight - log.scrollTop;
  top.remove();
  rows.insertAdjacentHTML("afterbegin", html);
  tellSearched(rows.firstElementChild);
  const fresh = rows.querySelectorAll(".when:not([data-clock])");
  counters.shown += fresh.length;
  tellRate(Date.now());
  tellTimes(fresh);
  log.scrollTop = log.scrollHeight - below;
  if (atEnd) toEnd();
  if (mode === "paused") trimEnd();
  if (log.scrollTop < 400) older();
}

// A page without rows says how far it has searched; the next one goes on from there.
function tellSearched(top) {
  const searched = top?.dataset.searched;
  if (searched) top.textContent = `Searching older events: none found since ${placeOf(searched)}…`;
}

// Rows that were scrolled far away leave at the end; going on begins after those that are left.
function trimEnd() {
  if (rows.childElementCount <= MAX_ROWS) return;
  while (rows.childElementCount > MAX_ROWS) rows.lastElementChild.remove();
  cursor = lastId();
  recount();
}

// A window of another size scrolls the log by itself: nobody went up by that.
let lastTop = 0;
let lastSize = "";
const size = () => `${log.clientWidth} x ${log.clientHeight}`;

const resized = new ResizeObserver(() => {
  lastSize = size();
  if (mode === "live") toEnd();
});
resized.observe(log);
resized.observe(rows);

log.addEventListener("scroll", () => {
  const up = log.scrollTop < lastTop && size() === lastSize;
  const below = log.scrollHeight - log.scrollTop - log.clientHeight;
  lastTop = log.scrollTop;
  if (up && below > 40) pause({ scrolling: true });
  if (!up && below < 4 && byScrolling) resume();
  if (up && log.scrollTop < 400) older();
});

function tellTimes(all) {
  const clock = byId("clock").value;
  const today = new Date();
  for (const when of all) {
    when.dataset.clock = clock;
    when.textContent = timeOf(Number(when.dataset.ms), clock, today) ?? when.textContent;
  }
}

const two = (number) => String(number).padStart(2, "0");

function timeOf(ms, clock, now) {
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return null; // beyond any calendar: as the server wrote it
  if (clock === "ago") return ago(now - date);
  const iso = new Date(clock === "utc" ? ms : ms - date.getTimezoneOffset() * 60_000).toISOString();
  const [day, time] = iso.replace("Z", "").split("T");
  const today = new Date(clock === "utc" ? now.getTime() : now - now.getTimezoneOffset() * 60_000);
  const zone = clock === "utc" ? "Z" : "";
  return (day === today.toISOString().slice(0, 10) ? time : `${day} ${time}`) + zone;
}

const toSecond = (ms) => timeOf(ms, byId("clock").value === "utc" ? "utc" : "local", new Date())?.replace(/\.\d{3}/, "");

// A position of the URL as people read it: an id or a time in milliseconds as its time.
function placeOf(position) {
  return /^\d{13}(-\d+)?$/.test(position) ? toSecond(parseInt(position)) : position;
}

function ago(ms) {
  const steps = [[86_400_000, "d"], [3_600_000, "h"], [60_000, "min"], [1000, "s"]];
  const [step, unit] = steps.find(([size]) => Math.abs(ms) >= size) ?? [1000, "s"];
  return `${Math.trunc(ms / step)} ${unit} ago`;
}

// -- one row -----------------------------------------------------------------------------------------

function select(row) {
  if (!row) return;
  pause({ scrolling: true });
  rows.querySelector(".current")?.classList.remove("current");
  row.classList.add("current");
  row.tabIndex = -1;
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
}

function step(direction, selector) {
  const all = [...rows.querySelectorAll(selector)];
  const current = rows.querySelector(".current");
  const beyond = (row) => !current || row.compareDocumentPosition(current) & (direction > 0 ? 2 : 4);
  const next = direction > 0 && current ? all.find(beyond) : all.findLast(beyond);
  if (next) select(next);
  else if (direction < 0) log.scrollTop = 0;
}

async function toggle(row) {
  const open = row.nextElementSibling?.matches(".details") ? row.nextElementSibling : null;
  row.classList.toggle("open", !open);
  if (open) {
    open.asking?.abort();
    return open.remove();
  }
  pause({ scrolling: true });
  const details = Object.assign(document.createElement("div"), { className: "details" });
  details.dataset.id = row.dataset.id;
  row.after(details);
  const body = new URLSearchParams({ event: row.dataset.event });
  details.asking = new AbortController();
  const { signal } = details.asking;
  details.innerHTML = (await ask("/ui/details", { method: "POST", body, signal })) ?? "These cannot be shown now.";
  details.scrollIntoView({ block: "nearest" });
}

const ACTIONS = {
  copy: (text) => copy(text),
  link: (text) => copy(new URL(text, location).href),
  context: (_, link) => go({ ...Object.fromEntries(IN_FILTER.map((name) => [name, ""])), since: "", to: "", at: new URL(link.href).searchParams.get("at") }),
  filter: (term) => go({ q: `${given().get("q") ?? ""} ${term}`.trim(), at: "" }),
  column: (name) => go({ cols: [...columns(), name].join(",") }),
};

const columns = () => given().get("cols")?.split(",").filter(Boolean) ?? [];

rows.addEventListener("click", (event) => {
  const tool = event.target.closest("[data-do]");
  if (tool) {
    event.preventDefault();
    ACTIONS[tool.dataset.do](tool.dataset.text, tool);
    if (["copy", "link"].includes(tool.dataset.do)) flash(tool);
  } else if (event.target.matches(".more")) {
    event.target.nextElementSibling.hidden = false;
    event.target.remove();
  } else if (event.target.closest("a.when") && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    go({ since: "", to: "", at: event.target.closest(".row").dataset.id });
  } else if (!event.target.closest("a, button") && getSelection().isCollapsed) {
    const row = event.target.closest(".row");
    if (row) toggle(row);
  }
});

function flash(button) {
  const face = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = face), 900);
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = Object.assign(document.createElement("textarea"), { value: text }); // plain HTTP
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// -- counters, volume ----------------------------------------------------------------------------

const counters = { shown: 0, filtered: 0, gaps: 0 };
const paces = []; // [when, found, shown] of the last seconds
const PACE_MS = 4000;

function tellRate(now) {
  while (paces.length && paces[0][0] < now - PACE_MS) paces.shift();
  const [found, shown] = [1, 2].map((part) => paces.reduce((sum, pace) => sum + pace[part], 0) / (PACE_MS / 1000));
  byId("rate").textContent = `${count(found < 10 ? Math.round(found * 10) / 10 : Math.round(found))}/s`;
  for (const [name, number] of Object.entries(counters)) byId("count-" + name).textContent = count(number);
  byId("sampled").hidden = mode !== "live" || shown >= found;
  byId("sampled").textContent = `showing ${count(Math.round(shown))} of ${count(Math.round(found))}/s: filter to see all`;
}

async function loadVolume(upto) {
  const mine = generation;
  const text = await askLatest("volume", "/ui/volume?" + asked(IN_FILTER, { upto }));
  if (text === null || mine !== generation) return;
  const told = JSON.parse(text);
  volume.step = Math.max(volume.step, told.step_ms);
  volume.add(told.volume);
  volume.complete = told.complete;
  volume.from = told.complete || !told.from ? null : parseInt(told.from);
  offerSources(told.sources);
  volume.draw();
}

const volume = {
  STEPS: [1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600, 10800, 43200, 86400].map((s) => s * 1000),
  BARS: 90,
  MAX_BUCKETS: 600,
  LEAST_MS: 60_000,
  KINDS: [...LEVELS.map((level) => level.toLowerCase()), "other"],
  counts: new Map(),
  step: 1000,
  complete: true,
  from: null, // in ms: up to where the server has counted, unless that is all
  low: 0,
  width: 1000,
  clear() {
    this.counts = new Map();
    this.step = 1000;
    this.complete = true;
    this.from = null;
    this.draw();
  },
  add(told) {
    for (const [at, counts] of told) this.count(at - (at % this.step), counts);
    if (this.counts.size > this.MAX_BUCKETS) this.widen();
  },
  count(at, counts) {
    const have = this.counts.get(at);
    if (have) counts.forEach((number, kind) => (have[kind] += number));
    else this.counts.set(at, [...counts]);
  },
  // A page is open for days, of which nobody sees each second.
  widen() {
    const narrow = this.counts, span = Math.max(...narrow.keys()) - Math.min(...narrow.keys());
    this.step = this.STEPS.find((step) => step > this.step && span / step < this.MAX_BUCKETS) ?? this.STEPS.at(-1);
    this.counts = new Map();
    for (const [at, counts] of narrow) this.count(at - (at % this.step), counts);
  },
  bars() {
    const times = [...this.counts.keys()];
    const high = Math.max(Date.now(), ...times) + 1, low = Math.min(high - this.LEAST_MS, ...times);
    this.width = this.STEPS.find((step) => step >= this.step && (high - low) / step < this.BARS) ?? 86_400_000;
    this.low = low - (low % this.width);
    const bars = Array.from({ length: Math.ceil((high - this.low) / this.width) }, () => this.KINDS.map(() => 0));
    for (const [at, counts] of this.counts) counts.forEach((number, kind) => (bars[Math.floor((at - this.low) / this.width)][kind] += number));
    return bars.length > 1000 ? bars.slice(-1000) : bars;
  },
  draw() {
    const svg = byId("volume");
    const bars = this.counts.size ? this.bars() : [];
    const tallest = Math.max(1, ...bars.map((bar) => bar.reduce((a, b) => a + b)));
    svg.setAttribute("viewBox", `0 0 ${Math.max(1, bars.length)} 100`);
    svg.replaceChildren(...bars.flatMap((bar, at) => this.barOf(bar, at, tallest)), this.chosen(bars.length));
    const from = this.from ?? this.low;
    byId("volume-from").textContent = bars.length || this.from ? (this.complete ? "" : "counted from ") + toSecond(from) : "";
    byId("volume-to").textContent = bars.length ? toSecond(this.low + bars.length * this.width) : "";
    const most = `at most ${count(tallest)} in ${count(this.width / 1000)} s`;
    const none = busy.has("volume") ? "not counted yet" : this.from ? "none found" : "no events yet";
    if (!this.pointed) byId("volume-said").textContent = bars.length ? most : none;
  },
  barOf(bar, at, tallest) {
    let y = 100;
    return bar.flatMap((number, kind) => {
      if (!number) return [];
      const height = Math.max(1.5, (number / tallest) * 96);
      return this.rect(this.KINDS[kind], at + 0.06, (y -= height), 0.88, height);
    });
  },
  rect(name, x, y, width, height) {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({ class: name, x, y, width, height })) rect.setAttribute(key, value);
    return rect;
  },
  chosen() {
    const [since, to] = ["since", "to"].map((name) => Number(given().get(name)?.split("-")[0]));
    if (this.dragged) return this.rect("chosen", Math.min(...this.dragged), 0, Math.abs(this.dragged[1] - this.dragged[0]), 100);
    if (mode !== "span" || !since) return this.rect("chosen", 0, 0, 0, 0);
    return this.rect("chosen", (since - this.low) / this.width, 0, Math.max(0.3, (to - since) / this.width), 100);
  },
  at(event) {
    const box = byId("volume").getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * byId("volume").viewBox.baseVal.width;
  },
};

byId("volume").addEventListener("pointerdown", (event) => {
  if (!volume.counts.size) return;
  volume.dragged = [volume.at(event), volume.at(event)];
  event.target.setPointerCapture?.(event.pointerId);
});
addEventListener("pointermove", (event) => {
  if (volume.dragged) volume.dragged[1] = volume.at(event);
  volume.pointed = event.target.closest?.("#volume") && volume.counts.size > 0;
  if (volume.dragged) volume.draw();
  if (!volume.pointed) return;
  const bar = Math.floor(volume.at(event)), low = volume.low + bar * volume.width;
  const inside = [...volume.counts].filter(([at]) => at >= low && at < low + volume.width);
  const totals = volume.KINDS.map((kind, n) => [kind, inside.reduce((sum, [, counts]) => sum + counts[n], 0)]);
  const told = totals.filter(([, n]) => n).map(([kind, n]) => `${count(n)} ${kind}`).join(", ");
  byId("volume-said").textContent = `${toSecond(low)}: ${told || "none"}`;
});
addEventListener("pointerup", () => {
  if (!volume.dragged) return;
  let [from, to] = volume.dragged.sort((a, b) => a - b);
  volume.dragged = null;
  if (to - from < 0.5) [from, to] = [Math.floor(from), Math.floor(from) + 1]; // a click: this bar
  const ms = (place) => Math.round(volume.low + place * volume.width);
  go({ since: String(ms(from)), to: String(ms(to) - 1), at: "" });
});

// -- controls ----------------------------------------------------------------------------------------

function fillControls() {
  for (const name of ["q", "level", "source", "text", "since"]) {
    const control = filters.elements[name];
    if (!control) continue;
    const value = given().get(name) ?? "";
    if (control.options && ![...control.options].some((option) => option.value === value)) control.add(new Option(value, value));
    control.value = value;
    if (control.options?.[control.selectedIndex].text === value) control.options[control.selectedIndex].text = placeOf(value);
  }
  for (const chip of filters.querySelectorAll(".chip")) chip.ariaPressed = String(chosenLevels().includes(chip.dataset.level));
  byId("clear-filter").hidden = !asked([...IN_FILTER, "since", "to", "at"]).size;
  for (const link of byId("downloads").querySelectorAll("a")) link.href = "/ui/download?" + asked([...IN_FILTER, "since", "to"], { format: link.dataset.format });
  byId("columns").hidden = !columns().length;
  rows.classList.toggle("with-columns", columns().length > 0);
  rows.style.setProperty("--columns", columns().length);
  byId("columns").replaceChildren(...columns().map(columnButton));
  explainFilter();
}

function columnButton(name) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: `${name} ×`, title: `Take the column ${name} away` });
  button.addEventListener("click", () => go({ cols: columns().filter((each) => each !== name).join(",") }));
  return button;
}

async function explainFilter() {
  const html = await askLatest("filter", "/ui/filter?" + asked(["q", "level", "source", "text"]));
  if (html !== null) byId("filter-said").innerHTML = html;
}

function chosenLevels() {
  const text = (given().get("level") ?? "").toUpperCase();
  return text.startsWith(">=") ? LEVELS.slice(LEVELS.indexOf(text.slice(2).trim())) : text.split(",");
}

function chooseLevel(level) {
  const chosen = LEVELS.filter((each) => chosenLevels().includes(each) !== (each === level));
  go({ level: chosen.length === LEVELS.length ? "" : chosen.join(","), at: "" });
}

function offerSources(names) {
  const list = byId("sources");
  const known = new Set([...list.options].map((option) => option.value));
  for (const name of names) if (!known.has(name) && known.size < 400) list.append(new Option(name));
}

function applyFilter() {
  const fields = Object.fromEntries(new FormData(filters));
  go({ ...fields, at: "", to: fields.since === given().get("since") ? given().get("to") : "" });
}

filters.addEventListener("submit", (event) => {
  event.preventDefault();
  applyFilter();
});
for (const name of ["source", "since"]) filters.elements[name].addEventListener("change", applyFilter);
filters.addEventListener("click", (event) => event.target.matches(".chip") && chooseLevel(event.target.dataset.level));
byId("clear-filter").addEventListener("click", (event) => {
  event.preventDefault();
  history.pushState(null, "", "/");
  begin();
});
byId("back-to-live").addEventListener("click", (event) => {
  event.preventDefault();
  go({ since: "", to: "" });
});
byId("connect").addEventListener("click", () => {
  wanted = true;
  connect();
});
byId("disconnect").addEventListener("click", () => {
  wanted = false;
  close();
  slot.release();
  show("disconnected", "disconnected");
});
byId("continue").addEventListener("click", resume);
byId("newest").addEventListener("click", jump);
addEventListener("popstate", begin);

byId("wrap").checked = locals("wrap", "true") === "true";
byId("clock").value = locals("clock", "local");
rows.classList.toggle("nowrap", !byId("wrap").checked);
byId("wrap").addEventListener("change", ({ target }) => {
  keep("wrap", target.checked);
  rows.classList.toggle("nowrap", !target.checked);
});
byId("clock").addEventListener("change", ({ target }) => {
  keep("clock", target.value);
  tellTimes(rows.querySelectorAll(".when"));
});
setInterval(() => byId("clock").value === "ago" && tellTimes(rows.querySelectorAll(".when")), 5000);

function fold(folded) {
  keep("folded", folded);
  document.body.classList.toggle("folded", folded);
  byId("fold").ariaExpanded = String(!folded);
}
fold(locals("folded", "false") === "true");
byId("fold").addEventListener("click", () => fold(!document.body.classList.contains("folded")));

function changeTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme.trim() === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  keep("theme", document.documentElement.dataset.theme);
}
byId("theme").addEventListener("click", changeTheme);
byId("help-open").addEventListener("click", () => byId("help").showModal());

// -- saved filters -----------------------------------------------------------------------------------

const saved = () => JSON.parse(locals("filters", "[]"));

function listSaved() {
  byId("saved-list").replaceChildren(...saved().map((query) => {
    const item = document.createElement("li");
    const link = Object.assign(document.createElement("a"), { href: "/?" + query, textContent: [...new URLSearchParams(query)].map(([name, value]) => (name === "q" ? value : `${name}=${value}`)).join(" ") });
    const remove = Object.assign(document.createElement("button"), { type: "button", className: "quiet icon", textContent: "×", ariaLabel: "Forget this filter" });
    remove.addEventListener("click", () => keepSaved(saved().filter((each) => each !== query)));
    item.append(link, remove);
    return item;
  }));
}

function keepSaved(all) {
  keep("filters", JSON.stringify(all));
  listSaved();
}

listSaved();
byId("save").addEventListener("click", () => {
  const query = String(asked([...IN_FILTER, "since"]));
  if (query) keepSaved([...saved().filter((each) => each !== query), query]);
});
document.addEventListener("click", ({ target }) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) menu.open = menu.contains(target) && !target.matches("a");
});

// -- the form ------------------------------------------------------------------------------------------

const form = byId("send");
if (form) {
  byId("add-pair").addEventListener("click", () => {
    byId("pairs").append(byId("pair").content.cloneNode(true));
    byId("pairs").lastElementChild.querySelector("input").focus();
  });
  byId("pairs").addEventListener("click", ({ target }) => target.matches("button") && target.closest(".pair").remove());
  form.addEventListener("htmx:error", () => (byId("answer").textContent = "Not sent: the server cannot be reached."));
  setInterval(() => byId("steady").checked && form.requestSubmit(form.querySelector(".primary")), 1000);
}

// -- keys ----------------------------------------------------------------------------------------------

const KEYS = {
  "/": () => byId("q").focus(),
  " ": () => (mode === "paused" ? resume() : pause()),
  e: () => step(1, ":scope > .error, :scope > .fatal"),
  E: () => step(-1, ":scope > .error, :scope > .fatal"),
  j: () => step(1, ":scope > .row"),
  k: () => step(-1, ":scope > .row"),
  Enter: () => rows.querySelector(".current") && toggle(rows.querySelector(".current")),
  c: () => rows.replaceChildren(...(cursor ? [edge({ upto: cursor })] : [])),
  t: changeTheme,
  "?": () => byId("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target.matches("input, textarea, select") && event.key !== "Escape") return;
  if (event.key === "Escape") return event.target.blur();
  if ([" ", "Enter"].includes(event.key) && event.target.matches("button, a, summary")) return;
  if (!KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});

setInterval(tick, 1000);
document.addEventListener("DOMContentLoaded", begin); // after htmx, which would process twice
