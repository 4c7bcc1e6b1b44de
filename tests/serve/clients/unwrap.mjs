// Prints the type of an event that the official client for node has verified.
import fs from "node:fs";
import OpenAI from "openai";

const { body, headers, secret } = JSON.parse(fs.readFileSync("event.json", "utf8"));
const event = await new OpenAI({ apiKey: "x" }).webhooks.unwrap(body, headers, secret);
let refused = false;
try {
  await new OpenAI({ apiKey: "x" }).webhooks.unwrap(body + " ", headers, secret);
} catch {
  refused = true;
}
console.log(`${event.type} ${event.data.id} ${refused}`);
