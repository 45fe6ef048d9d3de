import { EventSource } from "eventsource";
import { NAMES, print } from "./print.mjs";

const source = new EventSource(process.argv[2]);
for (const name of NAMES) source.addEventListener(name, ({ type, data }) => print(type, data));
