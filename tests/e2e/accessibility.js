/* Returns what is wrong with the page for people who cannot see it, or use no mouse; [] when nothing was found.
   After axe-core's rules of the same names; written here because nothing is downloaded. */
() => {
  const faults = [];
  const where = (element) => `${element.tagName.toLowerCase()}${element.id ? "#" + element.id : ""} ${(element.textContent || "").trim().slice(0, 40)}`;
  const shown = (element) => element.checkVisibility({ visibilityProperty: true });
  const words = (ids) => (ids || "").split(/\s+/).filter(Boolean).map((id) => document.getElementById(id)?.textContent.trim() ?? "").join(" ");
  const named = (element) => element.getAttribute("aria-label") || words(element.getAttribute("aria-labelledby"));

  if (!document.documentElement.lang) faults.push("html-has-lang");
  if (!document.title.trim()) faults.push("document-title");
  for (const mark of ["main", "header.top", "footer"]) if (document.querySelectorAll(mark).length !== 1) faults.push(`landmark ${mark}`);
  const skip = document.querySelector("body > a");
  if (!skip || !document.querySelector(skip.getAttribute("href"))) faults.push("skip-link");

  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of new Set(ids.filter((id, place) => ids.indexOf(id) !== place))) if (!id.startsWith("clip") && !id.includes("xy")) faults.push(`duplicate-id ${id}`);
  for (const attribute of ["aria-labelledby", "aria-describedby"])
    for (const element of document.querySelectorAll(`[${attribute}]`))
      for (const id of element.getAttribute(attribute).split(/\s+/).filter(Boolean))
        if (!document.getElementById(id)) faults.push(`${attribute} names nothing: ${id}`);

  let level = 0;
  for (const heading of document.querySelectorAll("h1, h2, h3, h4")) {
    const next = Number(heading.tagName[1]);
    // Alarms stand before all other sections, so an h2 may follow the h1 anywhere.
    if (next > level + 1) faults.push(`heading-order ${where(heading)}`);
    level = next;
  }
  if (document.querySelectorAll("h1").length !== 1) faults.push("page-has-heading-one");

  for (const input of document.querySelectorAll("input:not([type=hidden]), textarea, select"))
    if (!(input.labels?.length && input.labels[0].textContent.trim()) && !named(input)) faults.push(`label ${input.name}`);
  for (const element of document.querySelectorAll("a[href], button")) if (!element.textContent.trim() && !named(element)) faults.push(`name ${element.outerHTML.slice(0, 80)}`);
  for (const image of document.querySelectorAll("img")) if (!image.hasAttribute("alt")) faults.push(`image-alt ${image.src}`);
  for (const image of document.querySelectorAll("[role=img], [role=region], figure:not(:has(figcaption))")) if (!named(image)) faults.push(`unnamed ${where(image)}`);
  for (const table of document.querySelectorAll("table")) {
    if (!table.caption?.textContent.trim()) faults.push(`table-caption ${where(table)}`);
    for (const head of table.querySelectorAll("th")) if (!head.scope || !head.textContent.trim()) faults.push(`th-scope ${where(head)}`);
    for (const row of table.querySelectorAll("tbody tr")) if (!row.querySelector("th") && !table.querySelector("thead th")) faults.push(`row-header ${where(row)}`);
  }
  for (const box of document.querySelectorAll(".scroll")) if (box.tabIndex !== 0) faults.push("scrollable-region-focusable");
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth + 1) faults.push(`reflow: the page is ${document.documentElement.scrollWidth} wide in ${document.documentElement.clientWidth}`);

  const channels = (text) => { const parts = text.match(/[\d.]+/g).map(Number); return [parts[0], parts[1], parts[2], parts[3] ?? 1]; };
  const light = ([r, g, b]) => { const one = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * one(r) + 0.7152 * one(g) + 0.0722 * one(b); };
  const behind = (element) => { for (let one = element; one; one = one.parentElement) { const back = channels(getComputedStyle(one).backgroundColor); if (back[3] === 1) return back; } return [255, 255, 255, 1]; };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || element.closest("script, style, svg, noscript, .hidden") || !shown(element)) continue;
    const style = getComputedStyle(element), front = light(channels(style.color)), back = light(behind(element));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) faults.push(`color-contrast ${ratio.toFixed(2)}: ${where(element)}`);
  }
  for (const text of document.querySelectorAll("svg text")) {
    if (!text.textContent.trim()) continue;
    const front = light(channels(getComputedStyle(text).fill)), back = light(behind(text.closest("figure")));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) faults.push(`color-contrast in a chart ${ratio.toFixed(2)}: ${text.textContent}`);
  }
  return [...new Set(faults)];
}
