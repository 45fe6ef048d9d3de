// winston by winston-elasticsearch: URL COUNT.
import { setTimeout } from "node:timers/promises";
import winston from "winston";
import { ElasticsearchTransport } from "winston-elasticsearch";

const [url, count] = process.argv.slice(2);
const transport = new ElasticsearchTransport({
  index: "logs",
  flushInterval: 50,
  ensureIndexTemplate: false,
  clientOpts: { node: `${url}/elasticsearch` },
});
const log = winston.createLogger({ transports: [transport] });
for (let number = 0; number < Number(count); number++) {
  log.info(`event ${number}`);
  await setTimeout(1);
}
await setTimeout(50); // the logger hands its last entries on
await transport.flush();
while (transport.bulkWriter.bulk.length) await setTimeout(100);
await setTimeout(500); // the last request
process.exit(0);
