// OpenTelemetry's own SDK for JavaScript, by its exporter for JSON over HTTP: URL COUNT.
import { setTimeout } from "node:timers/promises";
import { OTLPLogExporter } from "@opentelemetry/exporter-logs-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";

const [url, count] = process.argv.slice(2);
const exporter = new OTLPLogExporter({ url: `${url}/v1/logs`, timeoutMillis: 20_000 });
const processor = new BatchLogRecordProcessor({ exporter, scheduledDelayMillis: 100, maxExportBatchSize: 100, exportTimeoutMillis: 20_000 });
const provider = new LoggerProvider({
  resource: resourceFromAttributes({ "service.name": "sender" }),
  processors: [processor],
});
const log = provider.getLogger("sender");
for (let number = 0; number < Number(count); number++) {
  log.emit({ severityNumber: 9, body: `event ${number}` });
  await setTimeout(1);
}
await provider.forceFlush();
await provider.shutdown();
