// Reads a JSON list of LogQL expressions on standard input. Prints a JSON list with null for each that follows
// Grafana's grammar, and for each other one where and at what the parser stumbled.
import { readFileSync } from "node:fs";
import { parser } from "@grafana/lezer-logql";

function fault(expression) {
  const found = [];
  parser.parse(expression).iterate({
    enter(node) {
      if (node.type.isError) {
        // An error node without text stands for something that is missing.
        const text = expression.slice(node.from, node.to);
        found.push(text ? `unexpected ${JSON.stringify(text)} at ${node.from}` : `incomplete at ${node.from}`);
      }
    },
  });
  return found.length ? found.join("; ") : null;
}

process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(fault)));
