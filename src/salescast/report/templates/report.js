"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const WEEK = 7 * 86400e3;
  const plus = (week, n) => new Date(Date.parse(week) + n * WEEK).toISOString().slice(0, 10);

  // Numbers and dates. A missing value is a dash, never a zero.
  const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const fine = new Intl.NumberFormat("en-US", { maximumFractionDigits: 2 });
  const share = new Intl.NumberFormat("en-US", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const change = new Intl.NumberFormat("en-US", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1, signDisplay: "exceptZero" });
  const dates = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
  const missing = (value) => value === null || value === undefined;
  const show = (value) => missing(value) ? "–" : (Math.abs(value) >= 100 ? whole : fine).format(value);
  const showShare = (value) => missing(value) ? "–" : share.format(value);
  const showChange = (now, before) => missing(now) || !(before > 0) ? "–" : change.format(now / before - 1);
  const showDate = (week) => dates.format(new Date(week));
  const total = (values) => {
    const seen = values.filter((value) => !missing(value));
    return seen.length ? seen.reduce((sum, value) => sum + value, 0) : null;
  };
  const element = (tag, text, name) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  // What can be picked: place -> dept (null = all) -> row of the data.
  const rows = new Map();
  data.place.forEach((place, row) => {
    if (!rows.has(place)) rows.set(place, new Map());
    rows.get(place).set(data.dept[row], row);
  });
  const placeName = (place) =>
    place === "*" ? "All stores" : place.startsWith("r:") ? `Region ${place.slice(2)}` : `Store ${place.slice(2)}`;
  const deptName = (dept) => dept === null ? "all departments" : `department ${dept}`;
  const rank = { "*": 0, r: 1, s: 2 };
  const places = [...rows.keys()].sort((a, b) => rank[a[0]] - rank[b[0]] || a.localeCompare(b, "en", { numeric: true }));
  const depts = (place) => [...rows.get(place).keys()].sort((a, b) => (a ?? -1e12) - (b ?? -1e12));
  const picked = { place: null, dept: null };
  const row = () => rows.get(picked.place).get(picked.dept);
  const yearBefore = (week) => {
    const at = data.weeks.indexOf(plus(week, -52));
    return at < 0 ? null : data.sales[row()][at];
  };

  const withHoliday = (weeks, values) => ({ customdata: values.map((value, i) => [show(value), data.holidays[weeks[i]]].filter(Boolean).join(" · ")) });

  // Charts. Colours are the page's own, so that they follow its light and dark scheme.
  const coarse = matchMedia("(pointer: coarse)").matches;
  const narrow = matchMedia("(max-width: 760px)");
  const config = { displaylogo: false, responsive: true, displayModeBar: false };
  const withTools = { ...config, displayModeBar: !coarse, modeBarButtons: [["toImage", "resetScale2d"]] };
  const layout = (extra) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "x unified", dragmode: coarse ? false : "zoom",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--muted") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 13 } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 12 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--year"), activecolor: css("--accent") },
    margin: { l: 8, r: 8, t: 8, b: 8 },
    ...extra,
    xaxis: { automargin: true, gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, fixedrange: coarse, ...extra.xaxis },
    yaxis: { automargin: true, gridcolor: css("--line"), zerolinecolor: css("--year"), fixedrange: true, ...extra.yaxis },
  });
  const line = (name, x, y, color, style = {}) => ({
    name, x, y, mode: "lines", line: { color: css(color), width: 2, ...style }, hovertemplate: "%{customdata}", customdata: y.map(show), connectgaps: false,
  });

  const drawSeries = () => {
    const at = row();
    const edge = data.ahead.length ? data.ahead[data.ahead.length - 1] : data.weeks[data.weeks.length - 1];
    const traces = [{ ...line("sold", data.weeks, data.sales[at], "--history"), ...withHoliday(data.weeks, data.sales[at]) }];
    if (data.test && data.test[at].some((value) => !missing(value))) {
      traces.push(line(narrow.matches ? "tested" : `forecast of ${showDate(data.cutoff)}`, data.tested, data.test[at], "--tested", { dash: "dot" }));
    }
    if (data.mid) {
      if (data.low[at].some((value) => !missing(value))) {
        const fan = { line: { width: 0, color: css("--accent") }, fillcolor: css("--fan") };
        traces.push({ ...line("low", data.ahead, data.low[at], "--accent"), ...fan, showlegend: false });
        traces.push({ ...line("low to high", data.ahead, data.high[at], "--accent"), ...fan, fill: "tonexty" });
      }
      traces.push(line("a year before", data.ahead, data.ahead.map(yearBefore), "--year", { width: 1.5, dash: "dash" }));
      traces.push({ ...line("forecast", data.ahead, data.mid[at], "--accent", { width: 2.5 }), mode: "lines+markers", marker: { size: 5 },
        ...withHoliday(data.ahead, data.mid[at]) });
    }
    const bands = Object.keys(data.holidays).map((week) => ({
      type: "rect", layer: "below", yref: "paper", y0: 0, y1: 1, x0: plus(week, -0.5), x1: plus(week, 0.5), line: { width: 0 }, fillcolor: css("--band"),
    }));
    const today = { type: "line", yref: "paper", y0: 0, y1: 1, x0: plus(data.weeks[data.weeks.length - 1], 0.5),
      x1: plus(data.weeks[data.weeks.length - 1], 0.5), line: { color: css("--year"), width: 1, dash: "dot" } };
    Plotly.react("chart", traces, layout({
      shapes: [...bands, today],
      xaxis: { type: "date", hoverformat: "week ending %-d %b %Y", range: [plus(narrow.matches ? plus(edge, -60) : data.weeks[0], -1), plus(edge, 1)], showgrid: false },
      yaxis: { tickformat: "~s" },
    }), withTools);
  };

  const drawBacktest = () => {
    const charts = data.charts;
    if (charts.error) {
      const colors = Object.keys(charts.error).filter((name) => name !== data.model);
      const traces = Object.entries(charts.error).map(([name, values]) => {
        const own = name === data.model;
        return { ...line(name, charts.horizon, values, own ? "--m1" : `--m${2 + colors.indexOf(name) % 5}`, own ? { width: 3 } : { width: 1.8, dash: "dot" }),
          mode: "lines+markers", marker: { size: own ? 6 : 4 }, hovertemplate: "%{y:.1%}" };
      });
      Plotly.react("error", traces, layout({
        xaxis: { title: { text: "weeks ahead", font: { size: 13 } }, dtick: Math.max(1, Math.ceil(charts.horizon.length / 10)), showgrid: false },
        yaxis: { tickformat: ".0%", rangemode: "tozero" },
      }), config);
    }
    if (charts.below) {
      const names = [["p90", "high (90%)", "--m2", 0.9], ["yhat", "forecast (50%)", "--m1", 0.5], ["p10", "low (10%)", "--m3", 0.1]];
      Plotly.react("below", names.map(([name, title, color]) => ({ ...line(title, charts.horizon, charts.below[name], color), mode: "lines+markers", hovertemplate: "%{y:.1%}" })),
        layout({
          shapes: names.map(([, , color, level]) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: css(color), width: 1, dash: "dot" } })),
          xaxis: { title: { text: "weeks ahead", font: { size: 13 } }, dtick: Math.max(1, Math.ceil(charts.horizon.length / 10)), showgrid: false },
          yaxis: { tickformat: ".0%", range: [0, 1], dtick: 0.1 },
        }), config);
    }
    if (charts.importance) {
      Plotly.react("importance", [{ type: "bar", orientation: "h", x: charts.importance.increase, y: charts.importance.group,
        marker: { color: css("--m1") }, hovertemplate: "%{x:+.2%}<extra></extra>" }],
      layout({ hovermode: "closest", xaxis: { tickformat: "+.1%", title: { text: "increase of WMAPE", font: { size: 13 } } }, yaxis: { autorange: "reversed", showgrid: false, ticksuffix: "  " } }), config);
    }
  };

  // The chosen series in numbers.
  const header = ["week", "low", "forecast", "high", "a_year_before", "holiday"];
  const weekRows = () => data.ahead.map((week, i) => [week, data.low[row()][i], data.mid[row()][i], data.high[row()][i], yearBefore(week), data.holidays[week] ?? ""]);
  const tile = (term, value, detail) => {
    const box = document.createElement("div");
    const number = element("dd", value);
    number.append(element("small", detail));
    box.append(element("dt", term), number);
    return box;
  };
  const fillTiles = () => {
    const at = row();
    const sold = data.sales[at];
    const last = sold.findLastIndex((value) => !missing(value));
    const tiles = [tile("Last week sold", show(sold[last]), last < 0 ? "" : `week ending ${showDate(data.weeks[last])}`)];
    if (data.mid) {
      const next = total(data.mid[at]);
      const before = total(data.ahead.map(yearBefore));
      const range = missing(data.low[at][0]) ? "a sum, without a range" : `likely ${show(data.low[at][0])} to ${show(data.high[at][0])}`;
      tiles.push(tile("Next week", show(data.mid[at][0]), range));
      tiles.push(tile(`Next ${data.ahead.length} weeks`, show(next), `${showChange(next, before)} on the year before`));
    }
    if (data.missed) tiles.push(tile("Usual error", showShare(data.missed[at]), "of sales, when it was tested"));
    $("tiles").replaceChildren(...tiles);
  };
  const fillTable = () => {
    if (!data.mid) return;
    $("weeks").tBodies[0].replaceChildren(...weekRows().map(([week, low, mid, high, before, holiday]) => {
      const made = document.createElement("tr");
      const first = element("th", showDate(week));
      first.scope = "row";
      made.append(first, element("td", show(low), "num"), element("td", show(mid), "num main"), element("td", show(high), "num"),
        element("td", show(before), "num"), element("td", showChange(mid, before), "num"), element("td", holiday));
      return made;
    }));
  };

  const fillSelect = (select, options, value) => {
    select.replaceChildren(...options.map(([key, name]) => new Option(name, key, false, key === value)));
  };
  const key = (dept) => dept === null ? "all" : String(dept);
  const pick = (place, dept) => {
    picked.place = rows.has(place) ? place : places[0];
    const known = depts(picked.place);
    picked.dept = known.includes(dept) ? dept : known[0];
    fillSelect($("place"), places.map((name) => [name, placeName(name)]), picked.place);
    if ($("dept")) fillSelect($("dept"), known.map((name) => [key(name), name === null ? "All departments" : `Department ${name}`]), key(picked.dept));
    const name = placeName(picked.place) + ($("dept") ? `, ${deptName(picked.dept)}` : "");
    $("picked").textContent = name;
    $("chart").setAttribute("aria-label", `${name}: sales of the last ${data.weeks.length} weeks${data.mid ? " and forecast; the numbers are in the table below" : ""}`);
    if ($("said")) $("said").textContent = "";
    fillTiles();
    fillTable();
    drawSeries();
  };
  const choose = (place, dept) => {
    pick(place, dept);
    location.hash = new URLSearchParams({ place: picked.place, dept: key(picked.dept) }).toString();
  };
  const fromAddress = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    const dept = asked.get("dept");
    return asked.has("place") ? [asked.get("place"), dept === "all" || dept === null ? null : Number(dept)] : null;
  };

  // Tables to take away.
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
  // The series that can be chosen may be fewer than all: the file of all forecasts is in the page as a whole, gzipped.
  const saveAll = async () => {
    const packed = Uint8Array.from(atob($("all-forecasts").textContent), (char) => char.charCodeAt(0));
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    save("forecasts.csv", await new Response(unpacked).blob());
  };
  if ($("copy")) {
    $("copy").addEventListener("click", copy);
    $("download").addEventListener("click", () => {
      const name = `forecast ${placeName(picked.place)}${$("dept") ? ` ${deptName(picked.dept)}` : ""}`;
      save(`${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.csv`, "\ufeff", text([header, ...weekRows()], ","));
    });
    $("download-all")?.addEventListener("click", saveAll);
  }

  // Sorting by a click on a column's head; cells say their number in data-value.
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
    const button = element("button", cell.textContent.trim(), "sort");
    button.type = "button";
    button.addEventListener("click", () => sortBy(table, column));
    cell.replaceChildren(button);
  }));

  $("place").addEventListener("change", (event) => choose(event.target.value, picked.dept));
  $("dept")?.addEventListener("change", (event) => choose(picked.place, event.target.value === "all" ? null : Number(event.target.value)));
  document.querySelectorAll("[data-place]").forEach((button) => button.addEventListener("click", () => {
    choose(button.dataset.place, button.dataset.dept === undefined ? picked.dept : Number(button.dataset.dept));
    $("forecast").scrollIntoView();
  }));
  addEventListener("hashchange", () => {
    const asked = fromAddress();
    if (asked && (asked[0] !== picked.place || asked[1] !== picked.dept)) pick(...asked);
  });
  const draw = () => { drawSeries(); drawBacktest(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  narrow.addEventListener("change", draw);

  const firstSingle = data.place.findIndex((place, at) => place.startsWith("s:") && data.dept[at] !== null);
  pick(...(fromAddress() ?? [data.place[firstSingle], data.dept[firstSingle]]));
  drawBacktest();
})();
