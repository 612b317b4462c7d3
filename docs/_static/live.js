// A live page tells its height (web/page.js); its frame follows, so that nothing scrolls inside of it.
window.addEventListener("message", ({ data, source }) => {
  for (const frame of document.querySelectorAll("iframe.live")) {
    if (frame.contentWindow === source && data.height) frame.style.height = `${Math.ceil(data.height) + 2}px`;
  }
});
