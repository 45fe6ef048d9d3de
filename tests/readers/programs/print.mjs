export const NAMES = ["message", "hello", "gap", "progress", "bye"];

/** Prints what a client has dispatched, as a line of JSON. */
export function print(event, data) {
  process.stdout.write(JSON.stringify({ event: event || "message", data }) + "\n");
}
