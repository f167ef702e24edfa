/** The models of this site, and what the browser keeps of them. */

/** The cache of weight files. Its name is that of what sw.js leaves alone. */
const CACHE = "storyllamas-models";

/** Return the models of models/models.json; none if the site has no such file. */
export async function listModels() {
  // Not from the browser's HTTP cache: a static server seldom says how long a list is good for.
  const response = await fetch("models/models.json", { cache: "reload" });
  return response.ok ? response.json() : [];
}

/** Return the address of a model's weight file, which changes whenever its bytes do. */
export function addressOf(model) {
  return `models/${model.file}?${model.checksum}`;
}

/** Return the browser's cache; null where it has none, as on a page without https. */
async function openCache() {
  return "caches" in globalThis ? caches.open(CACHE) : null;
}

/** Read a response, and report the share that has arrived. */
async function readAll(response, report) {
  const total = Number(response.headers.get("content-length"));
  const parts = [];
  let bytes = 0;
  const reader = response.body.getReader();
  for (let part; !(part = await reader.read()).done; ) {
    parts.push(part.value);
    bytes += part.value.length;
    if (total) report(Math.min(bytes / total, 1));
  }
  return new Blob(parts).arrayBuffer();
}

/**
 * Return a weight file of this site. It comes from the browser's cache if it is there, and is
 * kept there otherwise.
 *
 * @param {string} address of addressOf
 * @param {(share: number) => void} report
 * @returns {Promise<ArrayBuffer>}
 */
export async function fetchModel(address, report) {
  const cache = await openCache();
  const kept = await cache?.match(address);
  if (kept) return kept.arrayBuffer();
  const response = await fetch(address).catch(() => null);
  if (!response?.ok)
    throw new Error(`The model cannot be loaded from ${address.split("?")[0]}: check the connection.`);
  const data = await readAll(response, report);
  // A full disk must not keep anybody from using the model.
  await cache?.put(address, new Response(data)).catch(() => {});
  return data;
}

/** Remove kept weight files that the site no longer has. */
export async function forgetOldModels(models) {
  const cache = await openCache();
  const current = new Set(models.map((model) => new URL(addressOf(model), location.href).href));
  for (const request of (await cache?.keys()) ?? [])
    if (!current.has(request.url)) await cache.delete(request);
}
