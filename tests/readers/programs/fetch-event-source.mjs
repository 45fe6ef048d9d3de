// What the library asks of a browser.
const nothing = () => undefined;
globalThis.document = { hidden: false, addEventListener: nothing, removeEventListener: nothing };
globalThis.window = globalThis;
const { fetchEventSource } = await import("@microsoft/fetch-event-source");
const { print } = await import("./print.mjs");

await fetchEventSource(process.argv[2], {
  onmessage: ({ event, data }) => print(event, data),
  onclose: () => {
    throw new Error("connect again"); // as its documentation has it
  },
});
