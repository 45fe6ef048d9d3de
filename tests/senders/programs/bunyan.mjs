// bunyan by bunyan-elasticsearch-bulk: URL COUNT.
import { setTimeout } from "node:timers/promises";
import bunyan from "bunyan";
import elasticsearch from "bunyan-elasticsearch-bulk";

const [url, count] = process.argv.slice(2);
const stream = elasticsearch({
  node: `${url}/elasticsearch`,
  indexPattern: "[logs]",
  limit: 50,
  interval: 100,
});
const log = bunyan.createLogger({ name: "sender", streams: [{ stream }] });
for (let number = 0; number < Number(count); number++) {
  log.info(`event ${number}`);
  await setTimeout(1);
}
stream.end();
