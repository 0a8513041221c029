"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const WEEK = 7 * 86400e3;
  const seconds = (week) => Date.parse(week) / 1000;
  const plus = (week, n) => new Date(Date.parse(week) + n * WEEK).toISOString().slice(0, 10);

  // Numbers and dates. A missing value is a dash, never a zero.
  const format = (options) => new Intl.NumberFormat("en-US", options);
  const whole = format({ maximumFractionDigits: 0 });
  const fine = format({ maximumFractionDigits: 2 });
  const compact = format({ notation: "compact", maximumSignificantDigits: 3 });
  const share = format({ style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const change = format({ style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1, signDisplay: "exceptZero" });
  const dates = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
  const missing = (value) => value === null || value === undefined;
  const show = (value) => missing(value) ? "–" : (Math.abs(value) >= 100 ? whole : fine).format(value);
  const showShare = (value) => missing(value) ? "–" : share.format(value);
  const showChange = (now, before) => missing(now) || !(before > 0) ? "–" : change.format(now / before - 1);
  const showDate = (week) => dates.format(new Date(week));
  const total = (values) => {
    const known = values.filter((value) => !missing(value));
    return known.length ? known.reduce((sum, value) => sum + value, 0) : null;
  };
  const element = (tag, text, name) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  // The numbers of all entries: float32, the four bytes of each value apart (see columns.py). A part is unpacked when
  // one of its entries is needed, a row of numbers when it is shown.
  const unpack = async (text) => {
    const binary = atob(text);
    const zipped = new Uint8Array(binary.length); // Uint8Array.from takes seconds for many MB.
    for (let i = 0; i < binary.length; i++) zipped[i] = binary.charCodeAt(i);
    const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const partOf = (entry) => data.parts.findLastIndex(({ first }) => first <= entry);
  const unpacked = async (part) => {
    data.parts[part].reading ??= unpack($(`columns-${part}`).textContent);
    data.parts[part].planes = await data.parts[part].reading;
  };
  const row = (name, entry) => {
    const { first, layout, planes } = data.parts[partOf(entry)];
    if (!layout[name]) return null;
    const [start, width] = layout[name];
    const size = planes.length / 4;
    const view = new DataView(new ArrayBuffer(4));
    return Array.from({ length: width }, (_, i) => {
      for (let byte = 0; byte < 4; byte++) view.setUint8(byte, planes[byte * size + start + (entry - first) * width + i]);
      const value = view.getFloat32(0, true);
      // The digits that float32 holds: 0.1 instead of 0.10000000149.
      return Number.isNaN(value) ? null : Number(value.toPrecision(8));
    });
  };

  // Entries: a place ("*", "c:CATEGORY", "r:REGION", "s:STORE") and a department (null: all of them).
  const entries = new Map();
  const keyOf = (place, dept) => `${place} ${dept ?? "all"}`;
  data.place.forEach((place, i) => entries.set(keyOf(data.places[place], data.dept[i]), i));
  const single = !data.dept.includes(null);
  const placeOf = (entry) => data.places[data.place[entry]];
  const own = (kind, id) => data.names[kind]?.[id] ?? id; // the retailer's id
  const placeName = (place) =>
    place === "*" ? "All stores" : place.startsWith("c:") ? `Category ${place.slice(2)}` : place.startsWith("r:") ? `Region ${place.slice(2)}` : `Store ${own("store", place.slice(2))}`;
  const nameOf = (entry) => placeName(placeOf(entry)) +
    (single || placeOf(entry).startsWith("c:") ? "" : data.dept[entry] === null ? ", all departments" : `, department ${own("dept", data.dept[entry])}`);
  let picked = null; // the entry, with its rows

  const load = (entry) => {
    const sales = row("sales", entry);
    const before = data.ahead.map((week) => sales[data.weeks.indexOf(plus(week, -52))] ?? null);
    const [low, mid, high, test, missed] = ["low", "mid", "high", "test", "missed"].map((name) => row(name, entry));
    return { entry, sales, before, low, mid, high, test, missed };
  };

  // Charts. Colors are the page's own and follow its light or dark scheme; print is always light.
  const narrow = matchMedia("(max-width: 760px)");
  const printing = () => document.documentElement.classList.contains("printing");
  const PRINT_WIDTH = 640;
  const axis = (extra) => ({
    stroke: css("--muted"), font: `12px ${getComputedStyle(document.body).fontFamily}`,
    grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, ...extra,
  });
  const legend = { markers: { width: 0, fill: (u, i) => u.series[i].stroke(u, i) } };
  const line = (label, color, extra = {}) => ({ label, stroke: css(color), width: 2, points: { show: false }, ...extra });
  const plot = (id, options, values) => {
    const box = $(id);
    box.plot?.destroy();
    const width = printing() ? PRINT_WIDTH : box.clientWidth;
    const made = new uPlot({ width, height: box.classList.contains("tall") && !narrow.matches && !printing() ? 360 : 270, ...options }, values, box);
    box.plot = made;
    return made;
  };
  const shade = (u) => {
    const { left, top, width, height } = u.bbox;
    u.ctx.save();
    u.ctx.beginPath();
    u.ctx.rect(left, top, width, height);
    u.ctx.clip();
    u.ctx.fillStyle = css("--band");
    const at = (week) => u.valToPos(seconds(week), "x", true);
    for (const week of Object.keys(data.holidays)) u.ctx.fillRect(at(plus(week, -0.5)), top, at(plus(week, 0.5)) - at(plus(week, -0.5)), height);
    u.ctx.fillStyle = css("--year");
    u.ctx.fillRect(Math.round(at(plus(data.weeks.at(-1), 0.5))), top, Math.ceil(devicePixelRatio), height);
    u.ctx.restore();
  };
  const drawSeries = () => {
    const { sales, before, low, mid, high, test } = picked;
    const weeks = [...data.weeks, ...data.ahead];
    const past = (values) => [...values, ...data.ahead.map(() => null)];
    const next = (values) => [...data.weeks.map(() => null), ...values];
    const value = (u, y, series, i) => missing(y) ? "" : show(y) + (series === 1 && data.holidays[weeks[i]] ? ` (${data.holidays[weeks[i]]})` : "");
    const columns = [[line("sold", "--history", { points: { show: sales.includes(null), size: 4 } }), past(sales)]];
    if (test?.some((y) => !missing(y))) {
      const tested = new Map(data.tested.map((week, i) => [week, test[i]]));
      columns.push([line(`backtest from ${showDate(data.cutoff)}`, "--tested", { dash: [3, 3] }), weeks.map((week) => tested.get(week) ?? null)]);
    }
    const bands = [];
    if (mid) {
      columns.push([line("a year before", "--year", { width: 1.5, dash: [6, 4] }), next(before)]);
      if (low.some((y) => !missing(y))) {
        bands.push({ series: [columns.length + 1, columns.length + 2], fill: css("--fan") });
        columns.push([line("high", "--accent", { width: 0.5 }), next(high)], [line("low", "--accent", { width: 0.5 }), next(low)]);
      }
      columns.push([line("forecast", "--accent", { width: 2.5, points: { show: true, size: 5, fill: css("--accent") } }), next(mid)]);
    }
    const first = narrow.matches && !printing() ? plus(weeks.at(-1), -60) : weeks[0];
    plot("chart", {
      tzDate: (stamp) => uPlot.tzDate(new Date(stamp * 1000), "UTC"),
      series: [{ label: "week ending", value: (u, x) => missing(x) ? "–" : showDate(x * 1000) }, ...columns.map(([one]) => ({ ...one, value }))],
      axes: [axis({ grid: { show: false } }), axis({ size: 62, values: (u, ticks) => ticks.map((y) => compact.format(y)) })],
      scales: { x: { min: seconds(plus(first, -1)), max: seconds(plus(weeks.at(-1), 1)), time: true } },
      bands, hooks: { drawClear: [shade] },
      legend, cursor: { y: false, points: { size: 7 } },
    }, [weeks.map(seconds), ...columns.map(([, values]) => values)]);
    $("chart").plot.setScale("x", { min: seconds(plus(first, -1)), max: seconds(plus(weeks.at(-1), 1)) });
  };

  const drawBacktest = () => {
    const charts = data.charts;
    if (!charts || !$("error")) return;
    const percent = (u, y) => missing(y) ? "" : showShare(y);
    const options = (series, range) => ({
      series: [{ label: "weeks ahead", value: (u, x) => x ?? "–" }, ...series],
      scales: { x: { time: false }, y: { range } },
      axes: [axis({ grid: { show: false }, incrs: [1, 2, 5, 10] }), axis({ size: 50, values: (u, ticks) => ticks.map((y) => `${Math.round(100 * y)}%`) })],
      legend, cursor: { y: false, drag: { x: false } },
    });
    const names = Object.keys(charts.error);
    const rivals = names.filter((name) => name !== data.model);
    const errors = names.map((name) => name === data.model ? line(name, "--m1", { width: 3, value: percent })
      : line(name, `--m${2 + rivals.indexOf(name) % 5}`, { dash: [4, 3], value: percent }));
    plot("error", options(errors, (u, low, high) => [0, high * 1.05]), [charts.horizon, ...names.map((name) => charts.error[name])]);
    const levels = [["p90", "high (90%)", "--m2", 0.9], ["yhat", "forecast (50%)", "--m1", 0.5], ["p10", "low (10%)", "--m3", 0.1]];
    const below = levels.map(([, label, color]) => line(label, color, { value: percent }));
    const promised = (u) => levels.forEach(([, , color, level]) => {
      u.ctx.fillStyle = css(color);
      u.ctx.fillRect(u.bbox.left, Math.round(u.valToPos(level, "y", true)), u.bbox.width, 1);
    });
    plot("below", { ...options(below, [0, 1]), hooks: { drawClear: [promised] } }, [charts.horizon, ...levels.map(([name]) => charts.below[name])]);
  };

  // The selected entry in numbers.
  const header = ["week", "low", "forecast", "high", "a_year_before", "holiday"];
  const weekRows = () => data.ahead.map((week, i) =>
    [week, picked.low[i], picked.mid[i], picked.high[i], picked.before[i], data.holidays[week] ?? ""]);
  const tile = (term, value, detail) => {
    const box = document.createElement("div");
    const number = element("dd", value);
    number.append(element("small", detail));
    box.append(element("dt", term), number);
    return box;
  };
  const fillTiles = () => {
    const { sales, mid, low, high, before, missed } = picked;
    const last = sales.findLastIndex((value) => !missing(value));
    const tiles = [tile("Last week sold", show(sales[last]), last < 0 ? "" : `week ending ${showDate(data.weeks[last])}`)];
    if (mid) {
      tiles.push(tile("Next week", show(mid[0]), missing(low[0]) ? "a sum, without a range" : `${show(low[0])} to ${show(high[0])}`));
      tiles.push(tile(`Next ${data.ahead.length} weeks`, show(total(mid)), `${showChange(total(mid), total(before))} on the year before`));
    }
    if (missed) tiles.push(tile("Error in the backtest", showShare(missed[0]), "of the sales (WMAPE)"));
    $("tiles").replaceChildren(...tiles);
  };
  const fillTable = () => {
    if (!picked.mid) return;
    $("weeks").tBodies[0].replaceChildren(...weekRows().map(([week, low, mid, high, before, holiday]) => {
      const made = document.createElement("tr");
      const first = element("th", showDate(week));
      first.scope = "row";
      if (holiday) first.append(element("small", holiday));
      const middle = element("td", show(mid), "num main");
      if (!missing(low)) middle.append(element("small", `${show(low)} to ${show(high)}`));
      made.append(first, element("td", show(low), "num wide"), middle, element("td", show(high), "num wide"),
        element("td", show(before), "num"), element("td", showChange(mid, before), "num"), element("td", holiday, "wide"));
      return made;
    }));
  };
  const button = (text, name, action) => {
    const made = element("button", text, name);
    made.type = "button";
    made.addEventListener("click", action);
    return made;
  };
  const fillUp = () => {
    const [place, dept] = [placeOf(picked.entry), data.dept[picked.entry]];
    const wider = [[place, null], ["*", dept], ["*", null], ["*", data.dept[0]]].map(([p, d]) => entries.get(keyOf(p, d)));
    const others = [...new Set(wider)].filter((entry) => entry !== undefined && entry !== picked.entry);
    $("up").replaceChildren(...others.map((entry) => button(nameOf(entry), "link", () => choose(entry))));
  };

  const top = entries.get(keyOf("*", single ? data.dept[data.place.findIndex((place) => data.places[place] === "*")] : null));
  let asked = null;
  const pick = async (entry) => {
    asked = entry ?? top;
    await unpacked(partOf(asked));
    if (asked !== (entry ?? top)) return; // another one was selected meanwhile
    picked = load(asked);
    const name = nameOf(picked.entry);
    $("picked").textContent = name;
    $("chart").setAttribute("aria-label", `${name}: sales of the last ${data.weeks.length} weeks${picked.mid ? " and forecast; the numbers are in the table below" : ""}`);
    if ($("said")) $("said").textContent = "";
    document.querySelectorAll("#exceptions [data-place]").forEach((one) =>
      one.toggleAttribute("aria-current", entryOf(one) === picked.entry));
    fillUp();
    fillTiles();
    fillTable();
    drawSeries();
  };
  const entryOf = ({ dataset: { place, dept } }) => entries.get(`${place} ${dept}`);
  const choose = async (entry) => {
    location.hash = new URLSearchParams({ place: placeOf(entry), dept: data.dept[entry] ?? "all" }).toString();
    await pick(entry);
  };
  const fromAddress = () => {
    const address = new URLSearchParams(location.hash.slice(1));
    return entries.get(`${address.get("place")} ${address.get("dept") ?? "all"}`);
  };

  // Search. "12 3", "store 12 dept 3", "dept 3", a region, a type; every word narrows the matches.
  const SHOWN = 50;
  const kinds = { "*": 0, c: 1, r: 2, s: 3 };
  const sorted = () => {
    const rank = data.places.map((place) => [kinds[place[0]], Number(place.slice(2)) || 0]);
    return data.place.map((_, i) => i).sort((a, b) => {
      const [[kindA, idA], [kindB, idB]] = [rank[data.place[a]], rank[data.place[b]]];
      return kindA - kindB || idA - idB || data.place[a] - data.place[b] || (data.dept[a] ?? -1e12) - (data.dept[b] ?? -1e12);
    });
  };
  let order = null;
  const parse = (query) => {
    const asked = { store: null, dept: null, numbers: [], words: [] };
    let field = null;
    for (const token of query.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []) {
      const [, word, id] = token.match(/^(stores?|departments?|dept|depts)?(\d+)?$/) ?? [];
      if (word) field = word[0] === "s" ? "store" : "dept";
      if (id && field) [asked[field], field] = [id, null];
      else if (id) asked.numbers.push(id);
      else if (!word) asked.words.push(token);
    }
    for (const field of ["store", "dept"]) {
      if (asked[field] === null && asked.numbers.length + (asked.store !== null) > 1) asked[field] = asked.numbers.shift();
    }
    if (asked.store !== null && asked.dept === null && asked.numbers.length) asked.dept = asked.numbers.shift();
    return asked;
  };
  // 0: equal, 1: starts with it, NaN: no match.
  const compare = (id, asked) => id === asked ? 0 : id.startsWith(asked) ? 1 : NaN;
  const score = (entry, asked) => {
    const place = placeOf(entry);
    const store = place[0] === "s" ? own("store", place.slice(2)).toLowerCase() : "";
    const dept = String(data.dept[entry] === null ? "" : own("dept", data.dept[entry])).toLowerCase();
    let points = 0;
    if (asked.store !== null) points += 2 * compare(store, asked.store);
    if (asked.dept !== null) points += single ? NaN : compare(dept, asked.dept);
    for (const id of asked.numbers) {
      const found = [2 * compare(store, id), 1 + 2 * compare(dept, id)].filter((value) => !Number.isNaN(value));
      points += found.length ? Math.min(...found) : NaN;
    }
    if (asked.words.length && !Number.isNaN(points)) {
      const facts = `${placeName(place)} ${dept} ${data.facts[place] ?? ""}`.toLowerCase().match(/[\p{L}\p{N}]+/gu);
      for (const word of asked.words) points += Math.min(...facts.map((fact) => fact.startsWith(word) ? compare(fact, word) : Infinity));
    }
    return points;
  };
  const search = (query) => {
    order ??= sorted();
    const asked = parse(query);
    const groups = new Map();
    let count = 0;
    for (const entry of order) {
      const points = score(entry, asked);
      if (!Number.isFinite(points)) continue;
      count += 1;
      if (!groups.has(points)) groups.set(points, []);
      if (groups.get(points).length < SHOWN) groups.get(points).push(entry);
    }
    return { count, matches: [...groups.keys()].sort((a, b) => a - b).flatMap((points) => groups.get(points)).slice(0, SHOWN) };
  };
  const query = $("query");
  let active = -1;
  const close = () => {
    $("matches").hidden = true;
    query.setAttribute("aria-expanded", "false");
    query.removeAttribute("aria-activedescendant");
  };
  const activate = (at) => {
    const options = [...$("matches").querySelectorAll("[role=option]")];
    options[active]?.setAttribute("aria-selected", "false");
    active = options.length ? (at + options.length) % options.length : -1;
    if (active < 0) return;
    options[active].setAttribute("aria-selected", "true");
    options[active].scrollIntoView({ block: "nearest" });
    query.setAttribute("aria-activedescendant", options[active].id);
  };
  const take = (entry) => {
    query.value = "";
    close();
    choose(entry);
  };
  const list = () => {
    const { count, matches } = search(query.value);
    $("matches").replaceChildren(...matches.map((entry, i) => {
      const made = element("li", nameOf(entry));
      const facts = data.facts[placeOf(entry)];
      if (facts) made.append(element("small", facts));
      made.id = `match-${i}`;
      made.role = "option";
      made.dataset.entry = entry;
      made.ariaSelected = "false";
      return made;
    }));
    const said = count > matches.length ? `${whole.format(count)} matches, the first ${matches.length} listed; type more to narrow them`
      : count ? `${count} ${count === 1 ? "match" : "matches"}` : "Nothing matches.";
    $("count").textContent = said;
    $("count").className = "note";
    $("matches").hidden = !count;
    query.setAttribute("aria-expanded", String(Boolean(count)));
    active = -1;
    if (query.value) activate(0);
  };
  query.addEventListener("input", list);
  query.addEventListener("focus", list);
  query.addEventListener("blur", () => { close(); $("count").className = "hidden"; });
  query.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { query.value = ""; close(); return; }
    if (event.key === "Enter") {
      const option = $("matches").hidden ? null : $("matches").querySelector("[aria-selected=true]");
      if (option) take(Number(option.dataset.entry));
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if ($("matches").hidden) list();
      activate(event.key === "ArrowDown" ? active + 1 : Math.max(active, 0) - 1);
    } else return;
    event.preventDefault();
  });
  // mousedown: before the input loses the focus and closes the list.
  $("matches").addEventListener("mousedown", (event) => {
    event.preventDefault();
    const option = event.target.closest("[role=option]");
    if (option) take(Number(option.dataset.entry));
  });

  // Tables to copy and save.
  const quoted = (value) => missing(value) ? "" : /[",\n\t]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
  const text = (lines, separator) => lines.map((cells) => cells.map(quoted).join(separator)).join("\r\n") + "\r\n";
  const save = (name, ...parts) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(parts, { type: "text/csv;charset=utf-8" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text([header, ...weekRows()], "\t"));
      $("said").textContent = "The table is copied; paste it into a spreadsheet.";
    } catch {
      getSelection().selectAllChildren($("weeks"));
      $("said").textContent = "This browser does not let a page copy; the table is selected, press Ctrl+C.";
    }
  };
  const saveAll = async () => {
    await Promise.all(data.parts.map((_, part) => unpacked(part)));
    const named = ["store", "dept"].filter((kind) => data.names[kind]);
    const lines = [[...named, "store_id", "dept_id", "week", "low", "forecast", "high"]];
    (order ??= sorted()).forEach((entry) => {
      const store = placeOf(entry);
      if (store[0] !== "s" || data.dept[entry] === null) return;
      const [low, mid, high] = ["low", "mid", "high"].map((name) => row(name, entry));
      const ids = { store: store.slice(2), dept: data.dept[entry] };
      const names = named.map((kind) => own(kind, ids[kind]));
      data.ahead.forEach((week, i) => {
        if (!missing(mid[i])) lines.push([...names, ids.store, ids.dept, week, low[i], mid[i], high[i]]);
      });
    });
    save("forecasts.csv", "\ufeff", text(lines, ","));
  };
  if ($("copy")) {
    $("copy").addEventListener("click", copy);
    $("download").addEventListener("click", () => {
      save(`forecast ${nameOf(picked.entry)}`.toLowerCase().replace(/[^a-z0-9]+/g, "-") + ".csv", "\ufeff", text([header, ...weekRows()], ","));
    });
    $("download-all").addEventListener("click", saveAll);
  }

  // Sorting by a click on a column's head; data-value holds the number of a cell.
  const cellValue = (line, column) => {
    const cell = line.cells[column];
    const value = cell.dataset.value ?? cell.textContent.trim();
    return value === "" || value === "None" ? null : Number.isNaN(Number(value)) ? value : Number(value);
  };
  const sortBy = (table, column) => {
    const head = table.tHead.rows[0].cells[column];
    const down = head.getAttribute("aria-sort") !== "descending";
    [...table.tHead.rows[0].cells].forEach((cell) => cell.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => {
      const [x, y] = [cellValue(a, column), cellValue(b, column)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  };
  document.querySelectorAll("table.sortable").forEach((table) => [...table.tHead.rows[0].cells].forEach((cell, column) => {
    // The title is repeated for print and in every row on a phone, where rows are shown as blocks.
    cell.dataset.title = cell.textContent.trim();
    [...table.rows].slice(1).forEach((line) => line.cells[column]?.setAttribute("data-title", cell.dataset.title));
    cell.replaceChildren(button(cell.dataset.title, "sort", () => sortBy(table, column)));
  }));

  const desk = matchMedia("(min-width: 1241px)");
  document.querySelectorAll("[data-place]").forEach((one) => one.addEventListener("click", async () => {
    await choose(entryOf(one) ?? top);
    if (!(desk.matches && one.closest("#exceptions"))) $("picked").scrollIntoView();
  }));
  addEventListener("hashchange", () => {
    const entry = fromAddress();
    if (entry !== undefined && entry !== asked) pick(entry);
  });
  const draw = () => {
    if (picked) drawSeries();
    drawBacktest();
  };
  const print = (on) => {
    document.documentElement.classList.toggle("printing", on);
    draw();
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("resize", () => { if (!printing() && $("chart").plot?.width !== $("chart").clientWidth) draw(); });

  drawBacktest();
  pick(fromAddress()).then(() => { document.documentElement.dataset.ready = "true"; });
})();
