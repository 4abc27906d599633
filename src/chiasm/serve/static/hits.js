// What a hit looks like. Everything that comes from the store is set as text, never as HTML.

import { showThumbnail } from "/static/api.js";

export const NAMES = { image: "Picture", text: "Text", audio: "Sound", video: "Clip" };
// Relevance from which on a hit is shown as likely: more likely than not.
export const LIKELY = 0.5;
export const PLURALS = { image: "Pictures", text: "Text", audio: "Sounds", video: "Video" };

export function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

// "page=3", "t=12.5": the place inside the file as an object.
function placeOf(hit) {
  return Object.fromEntries((hit.part ?? "").split(/[;&,#]/).map((pair) => pair.split("=")).filter((pair) => pair.length === 2));
}

export function clock(seconds) {
  const whole = Math.floor(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export function nameOf(hit) {
  if (!hit.uri) return hit.meta?.title ?? NAMES[hit.modality] ?? hit.id;
  let uri = hit.uri;
  if (uri.startsWith("file://")) {
    try {
      uri = decodeURIComponent(uri);
    } catch {
      // a name that is not UTF-8 stays percent-encoded
    }
  }
  return uri.replace(/[\\/]+$/, "").split(/[\\/]/).pop() || uri;
}

export function placeText(hit) {
  const place = placeOf(hit);
  const page = place.page ?? hit.meta?.page;
  if (page !== undefined && page !== null) return `page ${page}`;
  const slide = place.slide ?? hit.meta?.slide;
  if (slide !== undefined && slide !== null) return `slide ${slide}`;
  if (place.sheet ?? hit.meta?.sheet) return `sheet ${place.sheet ?? hit.meta.sheet}`;
  const time = Number(place.t ?? hit.meta?.time ?? NaN);
  return Number.isFinite(time) ? clock(time) : "";
}

export function headingOf(hit) {
  const heading = hit.meta?.heading ?? hit.meta?.title ?? "";
  return Array.isArray(heading) ? heading.join(" › ") : String(heading);
}

export function relevanceBar(hit) {
  const known = typeof hit.relevance === "number";
  const value = known ? Math.min(1, Math.max(0, hit.relevance)) : 0;
  const fill = make("span", { className: "fill" });
  fill.style.setProperty("--part", value);
  const number = make("span", { className: "number", textContent: known ? `${Math.round(value * 100)} %` : `similarity ${hit.score.toFixed(2)}` });
  const bar = make("span", { className: known && value < LIKELY ? "relevance weak" : "relevance", title: known ? "Relevance" : "Similarity" });
  if (known) bar.append(make("span", { className: "track" }, fill));
  bar.append(number);
  return bar;
}

function spoken(hit) {
  const place = placeText(hit);
  const sure = typeof hit.relevance === "number" ? `, relevance ${Math.round(hit.relevance * 100)} percent` : "";
  return `${NAMES[hit.modality] ?? hit.modality}: ${nameOf(hit)}${place ? `, ${place}` : ""}${sure}`;
}

// A picture with what to show instead if the file is gone or has none.
export function picture(hit, size) {
  const img = make("img", { alt: spoken(hit), loading: "lazy", decoding: "async" });
  if (hit.meta?.rendered) img.className = "top";
  if (hit.modality === "audio") img.className = "whole";
  img.addEventListener("error", () => img.replaceWith(make("span", { className: "blank" }, icon(hit.modality))), { once: true });
  showThumbnail(img, hit.id, size);
  return img;
}

// The chunk's own words; readers repeat the heading as its first line.
export function bodyOf(hit) {
  const [words, heading] = [(hit.text ?? "").trim(), headingOf(hit)];
  return heading && words.startsWith(`${heading}\n`) ? words.slice(heading.length).trim() : words;
}

function frame(hit, excerptId) {
  if (hit.modality === "text") {
    const box = make("span", { className: "frame words" });
    if (headingOf(hit)) box.append(make("span", { className: "heading", textContent: headingOf(hit) }));
    box.append(make("span", { className: "excerpt", id: excerptId, textContent: bodyOf(hit).slice(0, 600) }));
    return box;
  }
  const box = make("span", { className: "frame" }, picture(hit, 512));
  if (hit.modality === "video" || hit.modality === "audio") {
    const seconds = hit.meta?.seconds ?? hit.meta?.duration;
    const time = placeText(hit) || (typeof seconds === "number" ? clock(seconds) : "");
    box.append(make("span", { className: "badge" }, icon(hit.modality), time || NAMES[hit.modality]));
  }
  return box;
}

export function card(hit, index, { open, similar }) {
  const excerptId = `excerpt-${index}`;
  const place = hit.modality === "video" || hit.modality === "audio" ? "" : placeText(hit);
  const said = hit.modality === "audio" && hit.text ? `“${hit.text.trim().slice(0, 80)}”` : "";
  const caption = make("span", { className: "caption" }, make("span", { className: "name", textContent: said || nameOf(hit), title: hit.uri || hit.id }));
  if (place) caption.append(make("span", { className: "place", textContent: place }));
  const button = make("button", { type: "button", className: "open", tabIndex: index === 0 ? 0 : -1 }, frame(hit, excerptId), caption, relevanceBar(hit));
  button.setAttribute("aria-label", spoken(hit));
  if (hit.modality === "text") button.setAttribute("aria-describedby", excerptId);
  button.addEventListener("click", () => open(index));
  const like = make("button", { type: "button", className: "similar", tabIndex: -1, title: "Find similar (S)" }, icon("similar"), make("span", { textContent: "Similar" }));
  like.setAttribute("aria-label", `Find similar to ${nameOf(hit)}`);
  like.addEventListener("click", () => similar(hit));
  return make("li", { className: `hit ${hit.modality}` }, button, like);
}

// Arrow keys move between the hits; only one of them is in the order of the Tab key.
export function arrows(list, { similar }) {
  const buttons = () => [...list.querySelectorAll(".open")];
  list.addEventListener("focusin", (event) => {
    if (!event.target.matches(".open")) return;
    for (const button of buttons()) button.tabIndex = button === event.target ? 0 : -1;
    for (const like of list.querySelectorAll(".similar")) like.tabIndex = like.parentNode === event.target.parentNode ? 0 : -1;
  });
  list.addEventListener("keydown", (event) => {
    const all = buttons();
    const at = all.indexOf(document.activeElement);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const columns = all.findIndex((button) => button.getBoundingClientRect().top > all[0].getBoundingClientRect().top + 1);
    const step = columns < 0 ? all.length : columns;
    const goal = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + step, ArrowUp: at - step, Home: 0, End: all.length - 1 }[event.key];
    if (goal !== undefined) {
      event.preventDefault();
      all[Math.min(goal, all.length - 1)]?.focus();
    } else if (event.key === "s" || event.key === "S") {
      event.preventDefault();
      similar(at);
    }
  });
}
