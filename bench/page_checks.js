// What bench/page_checks.py asks of a page: an expression whose value has one function for each kind of check.
(() => {
  const parse = (text) => {
    const numbers = (text.match(/[\d.e-]+/g) ?? []).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((part) => part * scale), numbers[3] ?? 1];
  };
  const over = (top, ground) => [0, 1, 2].map((i) => top[i] * top[3] + ground[i] * (1 - top[3]));
  // Relative luminance and contrast of WCAG 2.
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };

  function ancestors(element) {
    const list = [];
    for (let at = element; at; at = at.parentElement) list.push(at);
    return list;
  }

  function groundOf(element) {
    const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    const layers = ancestors(element).map((at) => parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((ground, layer) => over(layer, ground), canvas);
  }

  const opacityOf = (element) => ancestors(element).reduce((all, at) => all * Number(getComputedStyle(at).opacity), 1);

  function isShown(element) {
    const box = element.getBoundingClientRect();
    // A box of one pixel is how text is kept for readers of the screen alone.
    return box.width > 1 && box.height > 1 && element.checkVisibility({ visibilityProperty: true });
  }

  const shown = (selector) => [...document.querySelectorAll(selector)].filter(isShown);
  const short = (text) => JSON.stringify(text.trim().slice(0, 40));

  function about(element) {
    const kind = element.getAttribute("class");
    return `${element.tagName.toLowerCase()}${element.id && `#${element.id}`}${kind ? `.${kind}` : ""}`;
  }

  function textFault(element, style, words, least) {
    const text = parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const ground = groundOf(element);
    const ratio = contrast(over([...text.slice(0, 3), text[3] * opacityOf(element)], ground), ground);
    return ratio < least ? [`${about(element)} ${short(words)}: contrast ${ratio.toFixed(2)}`] : [];
  }

  function texts(least) {
    const faults = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const isLeftOut = element.closest("script, style, option, .frame svg, :disabled");
      if (walker.currentNode.data.trim() && !isLeftOut && isShown(element)) {
        faults.push(...textFault(element, getComputedStyle(element), walker.currentNode.data, least));
      }
    }
    for (const element of shown("body *")) {
      const before = getComputedStyle(element, "::before");
      if (/^"|^attr/.test(before.content)) faults.push(...textFault(element, before, before.content, least));
    }
    return faults;
  }

  function nameOf(element) {
    const labelled = (element.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id));
    const ownText = (label) => [...label.childNodes].filter((node) => !node.contains(element)).map((node) => node.textContent);
    return [
      element.getAttribute("aria-label"),
      element.title,
      ...labelled.map((label) => label?.textContent),
      ...[...(element.labels ?? [])].flatMap(ownText),
      element.matches("a, button, summary") ? element.textContent : "",
    ].some((text) => text?.trim());
  }

  function structure() {
    const faults = [];
    const named = "a[href], button, input, select, textarea, summary, progress, table, dialog, [role=img]";
    for (const element of shown(named)) if (!nameOf(element)) faults.push(`${about(element)} has no name`);
    const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
    for (const id of ids.filter((one, i) => ids.indexOf(one) !== i)) faults.push(`the id ${id} is there twice`);
    for (const link of document.querySelectorAll('a[href^="#"]')) {
      if (!ids.includes(link.getAttribute("href").slice(1))) faults.push(`${link.getAttribute("href")} leads nowhere`);
    }
    let level = 0;
    for (const heading of shown("h1, h2, h3, h4, h5, h6")) {
      const own = Number(heading.tagName[1]);
      if (own > level + 1) faults.push(`${about(heading)} ${short(heading.textContent)} comes after level ${level}`);
      level = own;
    }
    for (const image of shown("img")) if (!image.alt.trim()) faults.push(`${about(image)} has no alt`);
    if (!document.documentElement.lang || !document.title) faults.push("the page has no language or no title");
    const { scrollWidth, clientWidth } = document.documentElement;
    if (scrollWidth > clientWidth) faults.push(`the page is ${scrollWidth} px wide and the window ${clientWidth}`);
    return faults;
  }

  function focus(least) {
    const element = document.activeElement;
    if (!element || element === document.body) return null;
    const style = getComputedStyle(element);
    const isWide = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    return [about(element), isWide && contrast(parse(style.outlineColor), groundOf(element.parentElement)) >= least];
  }

  const controls = () => shown("a[href], button, input, select, summary").filter((element) => !element.disabled).length;
  return { texts, structure, focus, controls };
})()
