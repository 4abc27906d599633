// Talks to the server: one function per endpoint, one kind of error, and the token if the server wants one.

const TOKEN = "chiasm-token";
let askForToken = null;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// `ask(wrong)` shows the dialog and resolves to what the user typed; `wrong` is true if a token was refused.
export function onTokenNeeded(ask) {
  askForToken = ask;
}

async function call(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server does not answer. Is it still running?");
    }
    if (answer.ok) return answer;
    if (answer.status === 401 && askForToken) {
      // Several requests can meet the closed door at once; a token that came meanwhile is tried first.
      if (sessionStorage.getItem(TOKEN) === token) sessionStorage.setItem(TOKEN, await askForToken(token !== null));
      continue;
    }
    throw new ApiError(answer.status, await messageOf(answer));
  }
}

async function messageOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered with status ${answer.status}.`;
  }
}

function parameters({ k, modality, hybrid }, more = {}) {
  const query = new URLSearchParams({ k, ...more });
  if (modality) query.set("modality", modality);
  if (hybrid) query.set("hybrid", "true");
  return query;
}

export async function searchWords(words, options, signal) {
  return (await call(`/search?${parameters(options, { q: words })}`, { signal })).json();
}

export async function searchFile(file, options, signal) {
  const body = await smaller(file);
  const headers = { "Content-Type": body.type || file.type };
  return (await call(`/search?${parameters(options)}`, { method: "POST", body, headers, signal })).json();
}

export async function searchSimilar(id, { k, modality }, signal) {
  return (await call(`/similar?${parameters({ k, modality }, { id })}`, { signal })).json();
}

export async function getItem(id) {
  return (await call(`/items/${encodeURIComponent(id)}`)).json();
}

export async function getStats() {
  return (await call("/stats")).json();
}

// An <img> cannot send a token, so with one the bytes are fetched and shown from memory.
export async function showThumbnail(img, id, size) {
  const path = `/items/${encodeURIComponent(id)}/thumbnail?size=${size}`;
  if (!sessionStorage.getItem(TOKEN)) {
    img.src = path;
    return;
  }
  try {
    const address = URL.createObjectURL(await (await call(path)).blob());
    img.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
    img.src = address;
  } catch {
    img.dispatchEvent(new Event("error"));
  }
}

// The networks see a few hundred pixels; a photograph of ten megabytes need not travel.
async function smaller(file, side = 1024) {
  if (!file.type.startsWith("image/") || file.size < 1_000_000) return file;
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return await new Promise((done) => canvas.toBlob((blob) => done(blob ?? file), "image/jpeg", 0.9));
  } catch {
    return file; // a format that this browser cannot show; the server may know it
  }
}
