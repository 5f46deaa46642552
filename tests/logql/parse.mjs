// Reads JSON lists of LogQL expressions on standard input, one in each line, until it is closed. Prints for each a line
// with a JSON list, one object for each expression:
// "error" is null where the expression follows Grafana's grammar, else where and at what the parser stumbled; "tree" is
// the syntax tree, a node being [name, from, to, children].
import { createInterface } from "node:readline";
import { parser } from "@grafana/lezer-logql";

function parse(expression) {
  const found = [];
  const root = ["", 0, expression.length, []];
  const path = [root];
  parser.parse(expression).iterate({
    enter(node) {
      if (node.type.isError) {
        // An error node without text stands for something that is missing.
        const text = expression.slice(node.from, node.to);
        found.push(text ? `unexpected ${JSON.stringify(text)} at ${node.from}` : `incomplete at ${node.from}`);
      }
      const item = [node.name, node.from, node.to, []];
      path.at(-1)[3].push(item);
      path.push(item);
    },
    leave() {
      path.pop();
    },
  });
  return { error: found.length ? found.join("; ") : null, tree: root[3][0] };
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(JSON.parse(line).map(parse))}\n`);
}
