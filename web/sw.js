/**
 * Keeps the page for use without a network. The files come from the network if it answers, so that
 * a new version is never mixed with an old one. models.js keeps the weight files.
 */

const CACHE = "storyllamas-page";
const FILES = [
  "./", "style.css", "app.js", "engine.js", "engine.wasm", "models.js", "settings.js", "story.js",
  "worker.js", "manifest.webmanifest", "icon.svg", "models/models.json",
];

/** Return whether a request is for a file of the page, and not for a weight file. */
function isOfPage(request) {
  const address = new URL(request.url);
  return request.method === "GET" && address.origin === location.origin &&
    !address.pathname.endsWith(".slm");
}

async function fromNetworkOrCache(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}

addEventListener("install", (event) => {
  const requests = FILES.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)));
  skipWaiting();
});
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  if (isOfPage(event.request)) event.respondWith(fromNetworkOrCache(event.request));
});
