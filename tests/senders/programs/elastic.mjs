// The bulk helper of Elasticsearch's own client: URL COUNT.
import assert from "node:assert";
import { setTimeout } from "node:timers/promises";
import { Client } from "@elastic/elasticsearch";

const [url, count] = process.argv.slice(2);
async function* documents() {
  for (let number = 0; number < Number(count); number++) {
    yield { message: `event ${number}` };
    await setTimeout(1);
  }
}
const client = new Client({ node: `${url}/elasticsearch` });
const stats = await client.helpers.bulk({
  datasource: documents(),
  onDocument: () => ({ create: { _index: "logs" } }),
  flushBytes: 5000,
  wait: 500, // before items are repeated; five seconds by default
});
assert.equal(stats.successful, Number(count));
assert(stats.retry > 0);
