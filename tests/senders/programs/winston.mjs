// winston by winston-loki, in batches of JSON: URL COUNT.
import { setTimeout } from "node:timers/promises";
import winston from "winston";
import LokiTransport from "winston-loki";

const [url, count] = process.argv.slice(2);
const transport = new LokiTransport({ host: url, json: true, interval: 0.2, labels: { app: "sender" }, timeout: 5000, onConnectionError: () => {} });
transport.batcher.circuitBreakerInterval = 500; // after a failure; a minute by default
const log = winston.createLogger({ transports: [transport] });
for (let number = 0; number < Number(count); number++) {
  log.info(`event ${number}`);
  await setTimeout(1);
}
await setTimeout(50); // the logger hands its last entries on
while (transport.batcher.batch.streams.length || transport.batcher.batchesSending) await setTimeout(100);
process.exit(0);
