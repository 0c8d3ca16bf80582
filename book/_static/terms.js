// The meaning of a term: shown at its first mention on a page by pointer, keyboard focus or tap; Escape closes it.
// Without this script each is a link to its row of the table.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const links = document.querySelectorAll("a.isorepro-term");
  const meanings = new Map(); // link → its meaning's element
  let open = null, leaving = 0, tapped = false, openBefore = null;

  const place = () => {
    if (!open) return;
    const box = meanings.get(open), at = open.getBoundingClientRect(), edge = 8;
    const width = document.documentElement.clientWidth, size = box.getBoundingClientRect();
    box.style.left = `${Math.max(edge, Math.min(at.left, width - size.width - edge))}px`;
    // Below the word, or above it where there is more room.
    const below = at.bottom + 4, above = at.top - size.height - 4;
    box.style.top = `${below + size.height > window.innerHeight && above > 0 ? above : below}px`;
  };
  const close = () => {
    clearTimeout(leaving);
    if (open) meanings.get(open).hidden = true;
    open = null;
  };
  const show = (link) => {
    clearTimeout(leaving);
    if (open !== link) close();
    open = link;
    meanings.get(link).hidden = false;
    place();
  };
  // A moment, in which the pointer may move onto what is shown.
  const leave = () => {
    clearTimeout(leaving);
    leaving = setTimeout(() => { if (document.activeElement !== open) close(); }, 250);
  };

  for (const link of links) {
    const box = document.createElement("div");
    box.className = "isorepro-meaning";
    box.id = `meaning-${link.hash.slice(1)}`;
    box.setAttribute("role", "tooltip");
    box.textContent = link.dataset.meaning;
    box.hidden = true;
    document.body.append(box);
    meanings.set(link, box);
    link.setAttribute("aria-describedby", box.id);
    for (const part of [link, box]) {
      part.addEventListener("pointerenter", (event) => { if (event.pointerType !== "touch") show(link); });
      part.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") leave(); });
    }
    link.addEventListener("focus", () => show(link));
    link.addEventListener("blur", close);
    // A first tap shows the meaning, a second one follows the link.
    link.addEventListener("click", (event) => {
      if (tapped && openBefore !== link) {
        event.preventDefault();
        show(link);
      }
    });
  }
  if (!links.length) return;
  document.addEventListener("pointerdown", (event) => {
    tapped = event.pointerType === "touch";
    openBefore = open;
    if (open && !open.contains(event.target) && !meanings.get(open).contains(event.target)) close();
  }, true);
  document.addEventListener("keydown", (event) => {
    tapped = false;
    if (event.key === "Escape") close();
  });
  document.addEventListener("scroll", place, { capture: true, passive: true });
  window.addEventListener("resize", place);
});
