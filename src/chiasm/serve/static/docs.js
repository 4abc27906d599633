// Shows /openapi.json; all of it is set as text.

const make = (tag, className, ...children) => {
  const node = Object.assign(document.createElement(tag), { className });
  node.append(...children);
  return node;
};

function typeOf(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  const any = schema.anyOf ?? schema.oneOf;
  if (any) return any.map(typeOf).filter((name) => name !== "null").join(" | ");
  if (schema.type === "array") return `[${typeOf(schema.items)}]`;
  return schema.format ?? schema.type ?? "any";
}

function row(name, schema, description, needed) {
  const more = schema?.default !== undefined && schema.default !== null ? ` (${JSON.stringify(schema.default)})` : "";
  const text = [needed ? "required" : "", description ?? schema?.description ?? ""].filter(Boolean).join("; ");
  return make("tr", "", make("td", "", name), make("td", "", typeOf(schema) + more), make("td", "", text));
}

function table(title, rows) {
  return rows.length ? [make("h3", "", title), make("table", "", make("tbody", "", ...rows))] : [];
}

function fields(schema, api) {
  const found = schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
  return Object.entries(found?.properties ?? {}).map(([name, one]) => row(name, one, one.description, found.required?.includes(name)));
}

function operation(path, verb, one, api) {
  const head = make("summary", "", make("span", "verb", verb.toUpperCase()), make("span", "path", path));
  const [brief] = (one.description ?? one.summary ?? "").split("\n");
  head.append(make("span", "brief", brief));
  const body = make("div", "body");
  const rest = (one.description ?? "").split("\n").slice(1).join("\n").trim();
  if (rest) body.append(make("p", "", rest));
  body.append(...table("Parameters", (one.parameters ?? []).map((p) => row(p.name, p.schema, p.description, p.required))));
  for (const [type, { schema }] of Object.entries(one.requestBody?.content ?? {})) {
    const rows = fields(schema, api);
    body.append(...table(`Body (${type})`, rows.length ? rows : [row("the file itself", schema, "", true)]));
  }
  for (const [type, { schema }] of Object.entries(one.responses?.["200"]?.content ?? {})) {
    body.append(...table(`Answer (${type})`, fields(schema, api)));
  }
  return make("details", "", head, body);
}

const place = document.getElementById("operations");
try {
  const api = await (await fetch("/openapi.json")).json();
  document.getElementById("about").textContent = api.info.description;
  const groups = new Map();
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, one] of Object.entries(verbs)) {
      const tag = one.tags?.[0] ?? "other";
      groups.set(tag, [...(groups.get(tag) ?? []), operation(path, verb, one, api)]);
    }
  }
  for (const [tag, operations] of groups) place.append(make("h2", "", tag), ...operations);
} catch {
  place.textContent = "The server does not answer.";
}
