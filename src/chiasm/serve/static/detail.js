// The dialog that shows one hit large, with what is known of it.

import { bodyOf, headingOf, make, NAMES, nameOf, picture, placeText, relevanceBar } from "/static/hits.js";

const byId = (id) => document.getElementById(id);
const dialog = byId("detail");
let hits = [];
let at = 0;
let onSimilar = () => {};
let onClose = () => {};

export function setUpDetail({ similar, closed }) {
  onSimilar = similar;
  onClose = closed;
  byId("detail-back").addEventListener("click", () => move(-1));
  byId("detail-forward").addEventListener("click", () => move(1));
  byId("detail-close").addEventListener("click", () => dialog.close());
  byId("detail-similar").addEventListener("click", () => {
    dialog.close();
    onSimilar(hits[at]);
  });
  byId("detail-copy").addEventListener("click", copyPath);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    else if (event.key === "ArrowRight") move(1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => onClose(at));
}

export function openDetail(list, index) {
  hits = list;
  show(index);
  dialog.showModal();
  byId("detail-close").focus();
}

function move(step) {
  if (at + step >= 0 && at + step < hits.length) show(at + step);
}

async function copyPath() {
  const button = byId("detail-copy");
  try {
    await navigator.clipboard.writeText(hits[at].uri || hits[at].id);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here";
  }
  setTimeout(() => (button.textContent = "Copy path"), 1500);
}

function show(index) {
  at = index;
  const hit = hits[at];
  const words = bodyOf(hit);
  byId("detail-back").disabled = at === 0;
  byId("detail-forward").disabled = at === hits.length - 1;
  byId("detail-name").textContent = nameOf(hit);
  const stage = byId("detail-stage");
  stage.replaceChildren(hit.modality === "text" ? page(headingOf(hit), words) : picture(hit, 1024));
  stage.scrollTop = 0;

  const facts = byId("detail-facts");
  facts.replaceChildren();
  const add = (name, value, className = "") => {
    if (value === "" || value === null || value === undefined) return;
    facts.append(make("div", {}, make("dt", { textContent: name }), make("dd", { className }, value)));
  };
  if (typeof hit.relevance === "number") add("Relevance", relevanceBar(hit));
  add("Kind", NAMES[hit.modality] ?? hit.modality);
  add("Place", placeText(hit));
  if (hit.modality !== "text") add("Heading", headingOf(hit));
  if (hit.meta?.width && hit.meta?.height) add("Size", `${hit.meta.width} × ${hit.meta.height} pixels`);
  if (hit.modality !== "text") add(hit.modality === "audio" ? "What is said" : "Text", words, "said");
  if (hit.meta?.taken_at) add("Taken", date(hit.meta.taken_at));
  add("Path", hit.uri);
  add("Added", date(hit.added_at));
  add("Similarity", hit.score.toFixed(3));
}

function page(heading, words) {
  const title = heading ? [make("h3", { textContent: heading })] : [];
  return make("div", { className: "page" }, ...title, make("p", { textContent: words }));
}

function date(text) {
  const moment = new Date(text);
  if (!text || Number.isNaN(moment.getTime())) return "";
  return moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
