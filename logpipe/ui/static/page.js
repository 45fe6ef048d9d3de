"use strict";
// The connection of the page: htmx and its SSE extension read the stream and swap the rows in. What
// is here connects again where the extension gives up, keeps the last id for Connect, shows the
// state, and keeps the page short and at its newest row.

const byId = (id) => document.getElementById(id);
const live = byId("live"), rows = byId("rows");
const MAX_ROWS = Number(live.dataset.maxRows), SILENCE_MS = Number(live.dataset.silenceMs);
const RETRY_MS = [300, 2000];
const FINAL = [400, 401, 403]; // answers that another attempt would not change

let connection = byId("connection"); // the element that the extension streams into; null: a bad URL
let request = null; // of the first response; the extension makes the later ones
let opened = false; // whether there was a first response: without one the extension does not retry
let lastId = "";
let heardAt = Date.now(); // when there was last a sign that the connection lives or is being made
let retryMs = RETRY_MS[0];
let retry = 0;

function show(state, text) {
  live.dataset.state = state;
  byId("state").textContent = text;
  byId("connect").hidden = state !== "disconnected";
  byId("disconnect").hidden = ["disconnected", "refused"].includes(state);
  byId("sign-in").hidden = state !== "refused";
}

function close() {
  clearTimeout(retry);
  if (!connection.isConnected) return;
  const going = { sourceElement: connection, target: connection, swap: "delete", text: "" };
  htmx.swap(going); // the public way to have the extension let go of it
  if (!opened) request?.abort();
}

function connect() {
  close();
  const url = new URL(connection.getAttribute("hx-sse:connect"), location);
  if (lastId) url.searchParams.set("last_event_id", lastId);
  connection = connection.cloneNode();
  connection.removeAttribute("data-htmx-powered");
  connection.setAttribute("hx-sse:connect", url.pathname + url.search);
  opened = false;
  heardAt = Date.now();
  show("connecting", "connecting…");
  rows.before(connection);
  htmx.process(connection); // once: a second time would open a second stream
}

function refuse(status) {
  close();
  show(status === 400 ? "disconnected" : "refused", `refused by the server (${status})`);
}

function on(name, react) {
  live.addEventListener(name, (event) => event.target === connection && react(event.detail, event));
}

on("htmx:before:request", ({ ctx }) => (request = ctx.request));
on("htmx:after:sse:connection", () => (opened = true));
on("htmx:before:sse:connection", (detail) => {
  heardAt = Date.now();
  if (detail.connection.attempt) show("reconnecting", "connection lost, reconnecting…");
});
on("htmx:before:swap", (_, event) => opened || event.preventDefault()); // an error, not a stream
on("htmx:finally:request", ({ ctx }) => {
  heardAt = Date.now();
  if (opened) return;
  if (FINAL.includes(ctx.response?.status)) return refuse(ctx.response.status);
  show("reconnecting", "no connection, trying again…");
  retry = setTimeout(connect, retryMs);
  retryMs = Math.min(retryMs * 2, RETRY_MS[1]);
});
on("htmx:sse:error", ({ status }) => FINAL.includes(status) && refuse(status));
on("htmx:after:sse:message", ({ message }) => {
  heardAt = Date.now();
  lastId = message.id || lastId; // only now: the rows are on the page
  if (!message.event) tidy();
});
on("hello", ({ data }) => {
  retryMs = RETRY_MS[0];
  byId("version").textContent = JSON.parse(data).version;
  show("connected", "connected");
});
on("notice", ({ data }) => show("waiting", `connected, waiting: ${JSON.parse(data).reason}`));

// A connection can die without a word, and a new one hang: a laptop sleeps, a network changes. In
// the background the extension pauses the stream, and there is nothing to hear.
setInterval(() => {
  const meant = !["disconnected", "refused"].includes(live.dataset.state) && !document.hidden;
  if (meant && Date.now() - heardAt > SILENCE_MS) connect();
}, 1000);

let following = true;

function tidy() {
  while (rows.childElementCount > MAX_ROWS) {
    rows.firstElementChild.remove();
    rows.dataset.trimmed = "";
  }
  if (following) rows.scrollTop = rows.scrollHeight;
}

function follow(whether) {
  following = whether;
  byId("newest").hidden = following;
  if (following) rows.scrollTop = rows.scrollHeight;
}

rows.addEventListener("scroll", () => {
  const below = rows.scrollHeight - rows.scrollTop - rows.clientHeight;
  if (below < 24 !== following) follow(below < 24);
});
byId("newest").addEventListener("click", () => follow(true));
byId("connect").addEventListener("click", connect);
byId("disconnect").addEventListener("click", () => {
  close();
  show("disconnected", "disconnected");
});
byId("send")?.addEventListener("htmx:error", () => {
  byId("answer").textContent = "Not sent: the server cannot be reached.";
});
