// Node.js 18 or later: events in batches, sent again without doubling. At most 10,000 wait in memory;
// beyond that, and when the program is killed, they are lost.
import { randomUUID } from "node:crypto";

const headers = {
  "Content-Type": "application/json",
  "Authorization": "Bearer @TOKEN@",
};
const queue = [];
let sending;

export function log(level, message, metadata = {}) {
  if (queue.length >= 10_000) queue.shift();    // the oldest goes: a log must not fill the memory
  queue.push({ source: "app", level, message, metadata, ts_unix_ms: Date.now() });
  sending ??= send().finally(() => { sending = undefined; });
}

async function send() {
  await new Promise((resolve) => setTimeout(resolve, 200));    // a batch gathers
  while (queue.length) await deliver(JSON.stringify(queue.splice(0, 500)));
}

async function deliver(body) {
  const key = randomUUID();    // the same batch again is stored once
  for (let pause = 200; ; pause = Math.min(pause * 2, 10_000)) {
    try {
      const answer = await fetch("@URL@/ingest", {
        method: "POST", body, headers: { ...headers, "Idempotency-Key": key },
      });
      if (answer.ok) return;
      if (answer.status < 500 && ![408, 425, 429].includes(answer.status)) {
        return console.error(`logpipe: ${answer.status} ${await answer.text()}`);
      }
    } catch (error) {
      console.error(`logpipe: ${error.message}`);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

log("info", "hello from node", { user: "ada" });
