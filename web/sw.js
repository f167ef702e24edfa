/**
 * A service worker, which keeps the page for use without a network. The files come from the
 * network if it answers, so that a new version is never mixed with an old one. models.js keeps
 * the weight files.
 */

const CACHE = "storyllamas-page";
const FILES = [
  "./", "base.css", "token_details.css", "style.css", "app.js", "engine.js", "engine.wasm",
  "engine-threads.wasm", "models.js", "settings.js", "story.js", "thread.js", "token_details.js",
  "worker.js", "manifest.webmanifest", "icon.svg", "models/models.json",
];

const ADDRESSES = new Set(FILES.map((file) => new URL(file, location.href).href));

/** Return whether a request is for a file of the page: neither a weight file nor anything else. */
function isOfPage(request) {
  return request.method === "GET" && ADDRESSES.has(request.url.split(/[?#]/)[0]);
}

async function fromNetworkOrCache(request) {
  const cache = await caches.open(CACHE);
  try {
    // The browser's HTTP cache alone may hold some files of an old version.
    const response = await fetch(request, request.cache === "default" ? { cache: "no-cache" } : {});
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
