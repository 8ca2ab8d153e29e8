"use strict";
// Read what packed() and embedded_json() of page.py have put into the page.

/** Return the bytes of a packed element. */
async function unpack(id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Return the data of an embedded_json element. */
function data(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

/** Run a packed library once. */
const libraries = {};
function library(name) {
  libraries[name] ??= unpack(`library-${name}`).then((bytes) => {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(bytes);
    document.head.append(script);
  });
  return libraries[name];
}
