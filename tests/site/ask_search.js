// Ask the search of a built site as a browser does: node ask_search.js SITE QUESTION ...
// The site's worker runs here; it prints, as JSON, the addresses of the results of each question.

const fs = require("fs");
const path = require("path");

const SETUP = 0; // kinds of messages of Material's worker
const QUERY = 2;
const RESULT = 3;

const [site, ...questions] = process.argv.slice(2);
const listeners = [];
let waiting = null;

globalThis.self = globalThis;
globalThis.location = {href: "http://localhost/"};
globalThis.importScripts = () => {};
globalThis.addEventListener = (kind, listener) => listeners.push(listener);
globalThis.postMessage = (message) => waiting(message);

const folder = path.join(site, "assets", "javascripts", "workers");
const worker = fs.readdirSync(folder).find((name) => /^search\..*\.js$/.test(name));
(0, eval)(fs.readFileSync(path.join(folder, worker), "utf8"));

function ask(type, data) {
  return new Promise((answer) => {
    waiting = answer;
    for (const listener of listeners) listener({data: {type, data}});
  });
}

async function main() {
  const index = JSON.parse(fs.readFileSync(path.join(site, "search", "search_index.json"), "utf8"));
  await ask(SETUP, {...index, options: {suggest: true}});
  const found = {};
  for (const question of questions) {
    const answer = await ask(QUERY, question);
    if (answer.type !== RESULT) throw new Error(`the worker answers ${JSON.stringify(answer)}`);
    // one list of sections per page, the best section first
    found[question] = answer.data.items.map((sections) => sections[0].location);
  }
  console.log(JSON.stringify(found));
}

main();
