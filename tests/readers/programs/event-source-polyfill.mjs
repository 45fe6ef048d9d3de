import polyfill from "event-source-polyfill";
import { NAMES, print } from "./print.mjs";

const source = new polyfill.EventSourcePolyfill(process.argv[2]);
for (const name of NAMES) source.addEventListener(name, ({ type, data }) => print(type, data));
