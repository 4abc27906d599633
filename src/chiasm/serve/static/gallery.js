// The gallery page: what is asked for, what came back, and the address that says so.

import { getItem, getStats, onTokenNeeded, searchFile, searchSimilar, searchWords, showThumbnail } from "/static/api.js";
import { openDetail, setUpDetail } from "/static/detail.js";
import { arrows, card, icon, LIKELY, make, nameOf, PLURALS } from "/static/hits.js";

const byId = (id) => document.getElementById(id);
const [form, words, list, main] = [byId("form"), byId("q"), byId("hits"), byId("results")];
const FIRST = 24; // hits of the first page: a multiple of 2, 3, 4, 6 and 8 columns
const MOST = 192;

// What is asked for. Exactly one of q, similar and file is set; all empty is the start page.
const START = { q: "", similar: "", file: 0, modality: "", hybrid: false, nearest: false };
let asked = { ...START };
let count = FIRST;
let reply = null;
let running = null;
let items = 0;
const files = new Map(); // dropped pictures, by the number that the history remembers

// ---- the address ----

function fromAddress(state) {
  const query = new URLSearchParams(location.search);
  const file = files.has(state?.file) ? state.file : 0;
  return {
    q: query.get("q") ?? "",
    similar: query.get("similar") ?? "",
    file,
    modality: query.get("modality") ?? "",
    hybrid: query.has("hybrid"),
    nearest: query.has("nearest"),
  };
}

function toAddress(wish) {
  const query = new URLSearchParams();
  for (const name of ["q", "similar", "modality"]) if (wish[name]) query.set(name, wish[name]);
  for (const name of ["hybrid", "nearest"]) if (wish[name]) query.set(name, "1");
  return query.size ? `/?${query}` : "/";
}

function go(changes, { replace = false } = {}) {
  asked = { ...asked, ...changes };
  words.value = asked.q;
  const save = replace ? history.replaceState : history.pushState;
  save.call(history, { file: asked.file }, "", toAddress(asked));
  count = FIRST;
  return run();
}

// ---- asking ----

const isEmpty = () => !asked.q && !asked.similar && !asked.file;

async function run() {
  running?.abort();
  const mine = (running = new AbortController());
  showQuestion();
  fail("");
  if (isEmpty()) {
    reply = null;
    showReply();
    return;
  }
  main.setAttribute("aria-busy", "true");
  const options = { k: Math.min(count, MOST), modality: asked.modality, hybrid: asked.hybrid };
  try {
    let found;
    if (asked.file) found = await searchFile(files.get(asked.file), options, mine.signal);
    else if (asked.similar) found = await searchSimilar(asked.similar, options, mine.signal);
    else found = await searchWords(asked.q, options, mine.signal);
    if (mine !== running) return;
    reply = found;
    showReply();
  } catch (error) {
    if (error.name === "AbortError" || mine !== running) return;
    reply = null;
    showReply();
    fail(error.message);
  } finally {
    if (mine === running) main.setAttribute("aria-busy", "false");
  }
}

function searchByFile(file) {
  if (!file) return;
  if (!/^(image|audio)\//.test(file.type)) {
    fail("Only a picture or a sound can be searched by.");
    return;
  }
  const number = files.size + 1;
  files.set(number, file);
  go({ ...START, modality: asked.modality, file: number });
}

function searchLike(hit) {
  go({ ...START, modality: asked.modality, similar: hit.id });
  scrollTo({ top: 0 });
}

// ---- showing ----

function fail(message) {
  byId("error-text").textContent = message;
  byId("error").hidden = !message;
}

function showQuestion() {
  document.body.classList.toggle("home", isEmpty());
  document.title = asked.q ? `${asked.q} – Chiasm` : "Chiasm";
  for (const chip of byId("filters").children) {
    const on = chip.dataset.hybrid ? asked.hybrid : chip.dataset.modality === asked.modality;
    chip.setAttribute("aria-pressed", String(on));
    if (chip.dataset.hybrid) chip.hidden = Boolean(asked.similar || asked.file);
  }
  showBy();
}

async function showBy() {
  const [box, image, name] = [byId("by"), byId("by-picture"), byId("by-name")];
  box.hidden = !asked.file && !asked.similar;
  words.placeholder = box.hidden ? "a place where people pray" : "";
  image.removeAttribute("src");
  if (asked.file) {
    const file = files.get(asked.file);
    name.textContent = file.name || "pasted picture";
    image.hidden = !file.type.startsWith("image/");
    const address = URL.createObjectURL(file);
    for (const end of ["load", "error"]) image.addEventListener(end, () => URL.revokeObjectURL(address), { once: true });
    if (!image.hidden) image.src = address;
  } else if (asked.similar) {
    const id = asked.similar;
    name.textContent = "like this";
    image.hidden = false;
    showThumbnail(image, id, 64);
    const item = await getItem(id).catch(() => null);
    if (item && id === asked.similar) name.textContent = `like ${nameOf(item)}`;
  }
}

function showReply() {
  const nothing = Boolean(reply?.nothing_here || (reply && !reply.hits.length));
  const hidden = nothing && !asked.nearest;
  const hits = !reply || hidden ? [] : reply.hits;
  list.classList.toggle("doubtful", nothing);
  list.replaceChildren(...hits.map((hit, index) => card(hit, index, { open: (i) => openDetail(hits, i), similar: searchLike })));
  byId("nothing").hidden = !reply || !hidden;
  byId("anyway").hidden = !reply?.hits.length;
  if (reply && hidden) byId("nothing-text").textContent = whyNothing();
  byId("more").hidden = !hits.length || hits.length < count || count >= MOST;
  byId("status").classList.toggle("hidden", hidden);
  byId("status").textContent = reply ? summary(hits.length, nothing, hidden) : "";
}

function whyNothing() {
  const what = asked.q ? `“${asked.q}”` : "this";
  const kind = asked.modality ? ` among the ${PLURALS[asked.modality]?.toLowerCase() ?? asked.modality}` : "";
  if (!reply.hits.length) return `There is nothing to compare ${what} with${kind}.`;
  const all = asked.modality || items < 2 ? `No item${kind} fits` : `None of the ${items.toLocaleString()} items fits`;
  return `${all} ${what}: the nearest is no closer than chance explains.`;
}

function summary(shown, nothing, hidden) {
  if (hidden) return "Nothing here.";
  const seconds = reply.seconds < 1 ? `${Math.max(1, Math.round(reply.seconds * 1000))} ms` : `${reply.seconds.toFixed(1)} s`;
  if (nothing) return `The ${shown} nearest items. None of them is a likely match.`;
  const hits = (number, kind) => `${number} ${kind}${number === 1 ? "hit" : "hits"}`;
  if (!reply.calibrated) return `${hits(shown, "")} in ${seconds}`;
  const likely = reply.hits.filter((hit) => hit.relevance >= LIKELY).length;
  const rest = shown > likely ? `, then ${shown - likely} less likely` : "";
  return `${hits(likely, "likely ")}${rest}, in ${seconds}`;
}

async function showStats() {
  const stats = await getStats();
  items = stats.items ?? 0;
  const kinds = Object.entries(stats.modalities).sort(([, one], [, other]) => other - one);
  const chip = (name, modality, number) => {
    const button = make("button", { type: "button", className: "chip" });
    button.dataset.modality = modality;
    if (modality) button.append(icon(modality));
    button.append(name, make("span", { className: "count", textContent: Number(number).toLocaleString() }));
    button.addEventListener("click", () => (isEmpty() ? choose(modality) : go({ modality, nearest: false })));
    return button;
  };
  const chips = [chip("All", "", items), ...kinds.map(([kind, number]) => chip(PLURALS[kind] ?? kind, kind, number))];
  const both = make("button", { type: "button", className: "chip words", textContent: "Match words too", title: "Also look for the words themselves in texts" });
  both.dataset.hybrid = "1";
  both.addEventListener("click", () => go({ hybrid: !asked.hybrid, nearest: false }));
  if (kinds.some(([kind]) => kind === "text" || kind === "audio")) chips.push(both);
  byId("filters").replaceChildren(...chips);
  byId("filters").hidden = false;
  const space = stats.space?.name ?? stats.space;
  byId("space").textContent = typeof space === "string" ? `${items.toLocaleString()} items, space ${space} ·` : "";
  showQuestion();
}

// A filter chosen on the start page waits for the question.
function choose(modality) {
  asked = { ...asked, modality };
  showQuestion();
  words.focus();
}

// ---- wiring ----

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const q = words.value.trim();
  if (q) go({ ...START, modality: asked.modality, hybrid: asked.hybrid, q });
});
byId("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go({ ...START });
  words.focus();
});
byId("by-clear").addEventListener("click", () => {
  go({ ...START, modality: asked.modality });
  words.focus();
});
byId("pick").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => {
  searchByFile(event.target.files[0]);
  event.target.value = "";
});
byId("anyway").addEventListener("click", () => {
  asked.nearest = true;
  history.replaceState(history.state, "", toAddress(asked));
  showReply();
  list.querySelector(".open")?.focus();
});
byId("more").addEventListener("click", async () => {
  const before = list.children.length;
  count = Math.min(count * 2, MOST);
  await run();
  list.children[before]?.querySelector(".open")?.focus();
});
byId("error-close").addEventListener("click", () => fail(""));
addEventListener("popstate", (event) => {
  asked = fromAddress(event.state);
  words.value = asked.q;
  count = FIRST;
  run();
});

addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, textarea");
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    words.focus();
    words.select();
  } else if (event.key === "Escape" && !byId("error").hidden) {
    fail("");
  } else if (event.key === "ArrowDown" && event.target === words) {
    const first = list.querySelector(".open");
    if (first) event.preventDefault();
    first?.focus();
  }
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => /^(image|audio)\//.test(one.type));
  if (!file) return;
  event.preventDefault();
  searchByFile(file);
});

let inside = 0;
const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
function dragging(change) {
  inside = change === 0 ? 0 : Math.max(0, inside + change);
  byId("drop").hidden = inside === 0;
}
addEventListener("dragenter", (event) => carriesFile(event) && dragging(1));
addEventListener("dragleave", (event) => carriesFile(event) && dragging(-1));
addEventListener("dragover", (event) => carriesFile(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  dragging(0);
  searchByFile(event.dataTransfer.files[0]);
});

// One dialog for all requests that wait for the token.
let waiting = null;
onTokenNeeded((wrong) => {
  waiting ??= new Promise((done) => {
    const dialog = byId("login");
    if (wrong) byId("login-text").textContent = "That token was not accepted. Please try again.";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    byId("login-form").addEventListener(
      "submit",
      () => {
        waiting = null;
        done(byId("token").value.trim());
        byId("token").value = "";
      },
      { once: true },
    );
    dialog.showModal();
  });
  return waiting;
});

setUpDetail({
  similar: searchLike,
  closed: (index) => list.children[index]?.querySelector(".open")?.focus(),
});
arrows(list, { similar: (index) => searchLike(reply.hits[index]) });

asked = fromAddress(history.state);
words.value = asked.q;
if (isEmpty()) words.focus();
showStats().catch((error) => fail(error.message));
run();
