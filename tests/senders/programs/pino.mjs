// pino by pino-elasticsearch: URL COUNT.
import assert from "node:assert";
import { once } from "node:events";
import { setTimeout } from "node:timers/promises";
import pino from "pino";
import elasticsearch from "pino-elasticsearch";

const [url, count] = process.argv.slice(2);
const stream = elasticsearch({ node: `${url}/elasticsearch`, index: "logs", flushBytes: 5000 });
const log = pino(stream);
for (let number = 0; number < Number(count); number++) {
  log.info(`event ${number}`);
  await setTimeout(1);
}
stream.end();
const [stats] = await once(stream, "insert");
assert.equal(stats.successful, Number(count));
assert(stats.retry > 0);
