// What htmx cannot say in attributes under this page's policy: a hidden page asks for nothing, and
// one that got no answer keeps what it showed and says so.
"use strict";

const stale = document.getElementById("stale");

document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden) event.preventDefault();
});
document.addEventListener("htmx:before:swap", (event) => {
  stale.hidden = event.detail.ctx.response.status === 200;
  if (!stale.hidden) event.preventDefault();
});
document.addEventListener("htmx:error", () => { stale.hidden = false; });
