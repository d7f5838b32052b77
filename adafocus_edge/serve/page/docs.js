// The API's own description, as a page: every operation with its parameters, its body, and its responses.

import { ask, make, setText } from "./dom.js";

const PREFIX = "#/components/";

/** Return what a reference of the description leads to; other values as they are. */
function resolved(document, value) {
  if (!value?.$ref?.startsWith(PREFIX)) return value;
  return value.$ref.slice(PREFIX.length).split("/").reduce((part, name) => part?.[name], document.components);
}

function nameOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  const variants = schema.anyOf ?? schema.oneOf;
  if (variants) return variants.map(nameOf).filter(Boolean).join(" or ");
  if (schema.type === "array") return `list of ${nameOf(schema.items) || "values"}`;
  const limits = [];
  if (schema.minimum !== undefined) limits.push(`from ${schema.minimum}`);
  if (schema.maximum !== undefined) limits.push(`to ${schema.maximum}`);
  return [schema.type, schema.format, ...limits].filter(Boolean).join(" ");
}

function rows(header, entries) {
  const table = make("table");
  const head = make("tr");
  for (const title of header) {
    const cell = make("th", "", title);
    cell.scope = "col";
    head.append(cell);
  }
  const body = make("tbody");
  for (const cells of entries) body.append(make("tr", "", "", ...cells.map((text) => make("td", "", text))));
  table.append(make("thead", "", "", head), body);
  return make("div", "wide", "", table);
}

function operation(document, path, method, about) {
  const details = make("details");
  const title = make("summary", "", "", make("code", `method ${method}`, method.toUpperCase()));
  title.append(" ", make("code", "", path), " ", make("span", "", about.summary));
  details.append(title);
  const parameters = (about.parameters ?? []).map((given) => resolved(document, given));
  if (parameters.length) {
    details.append(make("h3", "", "Parameters"));
    details.append(rows(["Name", "In", "Value", ""], parameters.map((one) => [
      one.name, one.in, nameOf(one.schema), `${one.description ?? ""}${one.required ? " Required." : ""}`,
    ])));
  }
  if (about.requestBody) {
    details.append(make("h3", "", "Body"));
    const kinds = Object.entries(about.requestBody.content);
    details.append(rows(["Type", "Value"], kinds.map(([type, kind]) => [type, nameOf(kind.schema)])));
  }
  details.append(make("h3", "", "Responses"));
  details.append(rows(["Status", "Type", "Value", ""], Object.entries(about.responses).map(([status, one]) => {
    const [type, kind] = Object.entries(one.content ?? {})[0] ?? ["", {}];
    return [status, type, nameOf(kind.schema), one.description];
  })));
  return details;
}

function component(name, schema) {
  const details = make("details");
  details.append(make("summary", "", "", make("code", "", name), " ", make("span", "", schema.description ?? "")));
  const required = new Set(schema.required ?? []);
  details.append(rows(["Field", "Value", ""], Object.entries(schema.properties ?? {}).map(([field, value]) => [
    field, nameOf(value), `${value.description ?? ""}${required.has(field) ? "" : " May be absent."}`,
  ])));
  return details;
}

const about = document.getElementById("about");
const place = document.getElementById("operations");
try {
  const description = await ask("/api/openapi.json");
  const { info, paths, components, security } = description;
  const access = security ? "Programs send the header Authorization: Bearer TOKEN. " : "";
  setText(about, `${info.title} ${info.version}. ${access}The description itself is at /api/openapi.json.`);
  place.append(make("h2", "", "Operations"));
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, one] of Object.entries(methods)) place.append(operation(description, path, method, one));
  }
  place.append(make("h2", "", "Objects"));
  for (const [name, schema] of Object.entries(components.schemas)) place.append(component(name, schema));
} catch (error) {
  setText(about, error.message);
}
