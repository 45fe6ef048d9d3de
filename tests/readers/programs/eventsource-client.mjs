import { createEventSource } from "eventsource-client";
import { print } from "./print.mjs";

createEventSource({ url: process.argv[2], onMessage: ({ event, data }) => print(event, data) });
