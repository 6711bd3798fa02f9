// What is known of a photo, as elements. File names and metadata are hostile: they become text, never markup.

/** A new element with properties and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Text whose characters can all be seen: control characters and marks that turn the direction become codes. */
export function visible(text) {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`);
}

/** 0.0123 → "1.23 %"; never "0 %" for what is more. */
export function percent(share) {
  if (share > 0 && share < 0.0001) return "< 0.01 %";
  return `${Number((100 * share).toFixed(2))} %`;
}

const whole = new Intl.NumberFormat("en");

/** The verdict: what the service says of the photo as a whole, and what that does not mean. */
export function showVerdict(card, { row, words }) {
  card.dataset.tone = words.tone;
  // What the file says of itself stands above what the pixels show, from the first moment.
  card.querySelector(".file-says").hidden = !row.provenance.headline;
  card.querySelector(".headline").textContent = visible(row.provenance.headline ?? "");
  card.querySelector(".title").textContent = words.title;
  card.querySelector(".summary").textContent = words.summary;
  card.querySelector(".gauge").replaceChildren(...gauge(row, words.steps));
  card.querySelector(".caution").replaceChildren(element("b", { textContent: words.caution }), ` ${words.because}`);
  card.querySelector(".examined").hidden = !row.notes.length;
  fill(card.querySelector(".notes"), row.notes.map(visible));
  fill(card.querySelector(".meaning"), words.meaning);
  fill(card.querySelector(".unsaid"), words.unsaid);
  fill(card.querySelector(".limits"), words.limits);
}

/** Which small edits would have been found; found: the answer of /v1/detectability. */
export function showEdits(place, found) {
  const head = (textContent) => element("th", { scope: "col", textContent });
  const rows = found.kinds.map(({ kind, found, tried, low, high }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", textContent: kind }),
      element("td", { textContent: `${found} of ${tried}` }),
      element("td", { textContent: `${Math.round(100 * low)} to ${Math.round(100 * high)} %` }),
    ),
  );
  const top = element("thead", {}, element("tr", {}, head("Edit"), head("Found"), head("Range")));
  const caption = element("caption", { textContent: "The range is where the share lies with 95 % confidence." });
  const [counted, meaning, ...rest] = found.sentences;
  place.replaceChildren(
    element("h3", { textContent: "Could it have been seen?" }),
    element("p", { textContent: counted }),
    element("p", {}, element("b", { textContent: meaning })),
    element("table", {}, caption, top, element("tbody", {}, ...rows)),
    ...rest.map((textContent) => element("p", { className: "soft small-text", textContent })),
  );
}

function fill(list, texts) {
  list.replaceChildren(...texts.map((textContent) => element("li", { textContent })));
}

// Where the photo stands among untouched ones. Each verdict has a share of the scale of its own, as in the report: in even
// steps of the rank all of them would be at its end.
function gauge(row, steps) {
  if (!steps.length) return [];
  const ranks = [0, ...steps.map((step) => 1 - step.rate).reverse(), 1];
  const places = steps.length > 1 ? [0, 60, 80, 100] : [0, 70, 100];
  const at = (place) => `${place}%`;
  const bar = element("div", { className: "bar" });
  for (const [i, step] of [...steps].reverse().entries()) {
    const part = element("span", { className: step.word });
    part.style.left = at(places[i + 1]);
    part.style.right = at(100 - places[i + 2]);
    bar.append(part);
  }
  const above = ranks.findLastIndex((rank, i) => row.score >= rank - 1e-9 && i < ranks.length - 1);
  const share = (row.score - ranks[above]) / (ranks[above + 1] - ranks[above]);
  const place = places[above] + Math.max(0, share) * (places[above + 1] - places[above]);
  const needle = element("span", { className: "needle" });
  needle.style.left = at(place);
  const value = element("span", { className: "value", textContent: rank(row.score) });
  if (place > 50) value.style.right = at(100 - place);
  else value.style.left = at(place);
  const ends = steps.map((step) => `${step.word} from ${percent(1 - step.rate)}`).reverse();
  const low = element("span", { className: "low", textContent: "0 %" });
  const high = element("span", { className: "high", textContent: ends.join(" · ") });
  const drawn = element("div", { className: "scale", ariaHidden: "true" }, value, bar, needle, low, high);
  const said = `Stronger than ${rank(row.score)} of untouched photos of this size. ${ends.join("; ")}`;
  return [drawn, element("p", { className: "hidden", textContent: said })];
}

/** 0.9947 → "99.4 %": rounded down, so that it never says more than was measured. */
export function rank(share) {
  return `${Math.floor(1000 * share + 1e-9) / 10} %`;
}

/** The flagged parts; picked(region, button) is called with the one that is wanted. */
export function showRegions(list, regions, picked) {
  list.replaceChildren(
    ...regions.map((region, i) => {
      const [x0, y0, x1, y1] = region.bbox;
      const button = element(
        "button",
        { type: "button" },
        element("span", { className: "number", textContent: `${i + 1}` }),
        element("span", { className: "where", textContent: `${x1 - x0} × ${y1 - y0} px at ${x0}, ${y0}` }),
        element("span", { className: "share", textContent: percent(region.area) }),
        element("span", { className: "mean", textContent: (region.rank ?? null) === null ? region.score.toFixed(3) : rank(region.rank) }),
      );
      button.setAttribute(
        "aria-label",
        `Part ${i + 1}: ${x1 - x0} by ${y1 - y0} pixels at ${x0}, ${y0}; ${percent(region.area)} of the picture; ` +
          `${region.reason ? `found by ${region.clue}: ${region.reason}` : `mean score ${region.score.toFixed(3)}`}${(region.rank ?? null) === null ? "" : `; ${region.verdict}, stronger than ${rank(region.rank)} of untouched photos`}. Go there.`,
      );
      if (region.reason) button.append(element("span", { className: "why", textContent: visible(region.reason) }));
      button.addEventListener("click", () => picked(region, button));
      return element("li", {}, button);
    }),
  );
}

/** What the file says of itself; found: the answer of /v1/metadata. */
export function showMetadata(place, found) {
  const parts = [];
  const heading = (textContent) => parts.push(element("h3", { textContent }));
  const note = (textContent) => parts.push(element("p", { className: "soft", textContent: visible(textContent) }));
  note("All of this can be removed without a trace, and what is not signed can be edited. It can support other evidence; alone it shows nothing.");
  parts.push(
    pairs([
      { name: "Format", value: `${found.format}, ${whole.format(found.bytes)} bytes` },
      { name: "As stored", value: `${found.stored_width} × ${found.stored_height} px, orientation ${found.orientation}` },
      { name: "SHA-256", value: found.sha256 },
    ]),
  );
  heading("Software named in the file");
  if (found.software.length) parts.push(pairs(found.software));
  else note("None.");
  heading("EXIF");
  if (found.exif.length) parts.push(pairs(found.exif));
  else note("None of the usual tags. Screenshots, messengers and many programs remove them.");
  if (found.preview) {
    heading("Embedded preview");
    parts.push(element("img", { src: `data:image/jpeg;base64,${found.preview}`, alt: "Preview picture stored in the file" }));
    note("If it shows something else than the photo, the photo was changed after it was made.");
  }
  if (found.jpeg) {
    heading("JPEG compression");
    parts.push(...jpeg(found.jpeg));
  }
  heading("Content credentials (C2PA)");
  note(found.credentials.meaning);
  for (const [title, fields] of [
    ["What was checked", coded(found.credentials.reasons)],
    ["What the credentials hold", found.credentials.fields],
  ]) {
    if (fields.length) parts.push(element("h4", { textContent: title }), pairs(fields));
  }
  if (found.credentials.says.length) {
    heading("What the file says of how it was made");
    parts.push(pairs(coded(found.credentials.says)));
  }
  heading("Place");
  if (found.position.length) parts.push(pairs(found.position));
  else note(found.has_position ? "The file holds a position. It is left out unless asked for." : "No GPS position was found.");
  if (found.free_text.length) {
    heading("Free text");
    parts.push(pairs(found.free_text));
  }
  if (found.withheld.length) note(`Also in the file, not shown: ${found.withheld.join(", ")}.`);
  place.replaceChildren(...parts);
}

// Words of the service with the codes they stand for.
const coded = (reasons) => reasons.map(({ code, text }) => ({ name: code, value: text }));

function pairs(fields) {
  const list = element("dl");
  for (const { name, value } of fields) {
    const told = element("dd", {}, element("bdi", { textContent: visible(value) }));
    list.append(element("div", {}, element("dt", {}, element("bdi", { textContent: visible(name) })), told));
  }
  return list;
}

function jpeg({ tables, quality, distance, subsampling, progressive }) {
  const said =
    distance === 0
      ? `The quantisation tables are libjpeg's at quality ${quality}, as many programs write them; most cameras have their own.`
      : `The quantisation tables are not libjpeg's; the nearest are those of quality ${quality} (steps differ by ` +
        `${distance.toFixed(1)} in the mean).`;
  const colour = subsampling ? ` Colour ${subsampling}` : " Colour sampled in an unusual way, or absent";
  const last = `${colour}${progressive ? ", progressive" : ""}. They tell of the last saving only.`;
  const drawn = tables.map((steps, number) => {
    const table = element("table", {}, element("caption", { textContent: `Table ${number} (${number ? "colour" : "brightness"})` }));
    for (let row = 0; row < 64; row += 8) {
      const cells = steps.slice(row, row + 8).map((step) => element("td", { textContent: String(step) }));
      table.append(element("tr", {}, ...cells));
    }
    return table;
  });
  const more = element("details", {}, element("summary", { textContent: "Quantisation tables" }), ...drawn);
  return [element("p", { className: "soft", textContent: said + last }), more];
}
