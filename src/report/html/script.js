"use strict";
/* Draws the report from the profile that the page carries. Everything that comes from the profiled program is put in as
   text (textContent), never as markup. One object, `state`, says what is shown; show() draws it again. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const profile = data.profile;
  const session = profile.session, totals = profile.totals;
  const hasMemory = totals.alloc_bytes !== null;
  const hasCpu = session.engine.cpu !== null || totals.cpu_samples > 0;
  const main = document.getElementById("main");

  // --- making elements -------------------------------------------------------------------------------
  /* Control characters and those that change the direction of writing, which can make a name look like another. */
  const visible = text => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  const SVG = "http://www.w3.org/2000/svg";
  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
      else if (key === "css") Object.assign(node.style, value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    for (const child of children.flat(9)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(visible(String(child))));
    }
    return node;
  }
  const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

  // --- text ----------------------------------------------------------------------------------------
  const known = value => value !== null && value !== undefined;
  const comma = n => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, ",");
  function bytes(value) {
    if (!known(value)) return "–";
    let v = Math.abs(value), unit = 0;
    const units = ["B", "KB", "MB", "GB", "TB", "PB"];
    while (v >= 999.5 && unit + 1 < units.length) { v /= 1000; ++unit; }
    return (value < 0 ? "−" : "") + (unit === 0 ? v.toFixed(0) : v.toFixed(v < 99.95 ? 1 : 0)) + " " + units[unit];
  }
  function duration(s) {
    if (s < 0.9995) return (1000 * s).toFixed(0) + " ms";
    if (s < 59.95) return s.toFixed(s < 9.95 ? 1 : 0) + " s";
    s = Math.round(s);
    const two = (big, bu, small, su) => Math.floor(big) + " " + bu + (Math.floor(small) ? " " + Math.floor(small) + " " + su : "");
    if (s < 3600) return two(s / 60, "min", s % 60, "s");
    if (s < 172800) return two(s / 3600, "h", (s % 3600) / 60, "min");
    return (s / 86400).toFixed(0) + " days";
  }
  const pct = value => known(value) ? value.toFixed(1) + " %" : "–";
  const baseName = path => path.slice(path.lastIndexOf("/") + 1) || path;
  const place = (path, line) => line ? baseName(path) + ":" + line : baseName(path);
  const trim = code => code.replace(/^\s+/, "");

  // --- rows ----------------------------------------------------------------------------------------
  /* Two views of the same stacks: what the profile charged (the user's code), and the innermost frame whoever's it is. */
  function chargedRows() {
    return profile.files.flatMap(file => file.lines.map(line => ({...line, path: file.path, name: line.function, user: file.user_code})));
  }
  let innermost = null;
  function innermostRows() {
    if (innermost) return innermost;
    const rows = new Map();
    const codes = new Map();
    for (const row of chargedRows()) if (row.code) codes.set(row.path + "\0" + row.line, row.code);
    for (const stack of profile.stacks) {
      const frame = known(stack.frame) ? profile.frame_table[stack.frame] : null;
      const f = frame ? profile.function_table[frame[0]] : {name: "[no stack]", file: "[no stack]"};
      const path = f.file || f.name, line = frame ? frame[1] : 0;
      const key = path + "\0" + line + (line ? "" : "\0" + f.name);
      if (!rows.has(key)) rows.set(key, {path, line, name: f.name, code: codes.get(path + "\0" + line) || "",
        user: frame ? data.user_functions[frame[0]] : false, alloc_bytes: 0, variance: 0, alloc_count: 0, live_bytes: 0, peak_bytes: 0,
        temporary_bytes: 0, freed_bytes: 0, cpu_samples: 0, python: 0, native: 0, system: 0, growth_bytes_per_min: null});
      const row = rows.get(key);
      for (const name of ["alloc_bytes", "alloc_count", "live_bytes", "peak_bytes", "temporary_bytes", "freed_bytes"]) row[name] += stack[name] || 0;
      row.variance += stack.alloc_variance || 0;
      row.cpu_samples += stack.cpu_samples;
      row.python += stack.python_samples; row.native += stack.native_samples; row.system += stack.system_samples;
    }
    innermost = [...rows.values()];
    for (const row of innermost) {
      row.alloc_ci95 = 1.96 * Math.sqrt(row.variance);
      row.memory_pct = totals.alloc_bytes ? 100 * row.alloc_bytes / totals.alloc_bytes : 0;
      row.cpu_pct = totals.cpu_samples ? 100 * row.cpu_samples / totals.cpu_samples : 0;
      const split = row.python + row.native + row.system;
      for (const name of ["python", "native", "system"]) row[name + "_pct"] = split ? 100 * row[name] / split : null;
      row.cpu_ci95 = null; row.cpu_total_pct = null;
    }
    return innermost;
  }
  const functionRows = () => profile.functions.map(f => ({...f, line: f.first_line, code: "", path: f.path || f.name, isFunction: true}));

  const state = {
    rows: "user", by: "lines", filter: "", sort: hasMemory ? "memory_pct" : "cpu_pct", up: false, shown: 60,
    file: null, line: null, time: null,  // `time`: for a selection on the timeline
  };

  // --- header and figures --------------------------------------------------------------------------
  function drawHeader() {
    const t = profile.target;
    const parts = ["pid " + t.pid, t.python && "CPython " + t.python, session.started && session.started.replace("T", " ").replace("Z", " UTC"),
      duration(session.duration_s)].filter(Boolean);
    main.append(el("h1", {}, t.command || t.exe || "Python process"), el("p", {class: "sub"}, parts.map(p => el("span", {}, p))));
    if (session.text_verified === false)
      main.append(el("p", {class: "banner"}, "The target's code did not equal its file when memattach left."));
    if (session.target_exited) main.append(el("p", {class: "sub"}, "The target ended during the profile."));
  }
  function drawCards() {
    const card = (k, v, pm, s) => el("div", {class: "panel card"}, el("div", {class: "k"}, k),
      el("div", {class: "v"}, String(v).replaceAll(" ", "\u00a0"), pm && " ", pm && el("small", {}, pm)), s && el("div", {class: "s"}, s));
    const pm = half => known(half) && "± " + bytes(half);
    const cards = [];
    if (hasMemory) {
      cards.push(card("Allocated", bytes(totals.alloc_bytes), pm(totals.alloc_ci95),
        known(totals.alloc_count) && comma(totals.alloc_count) + " allocations"));
      cards.push(card("Live at the end", bytes(totals.live_bytes), pm(totals.live_ci95), bytes(totals.freed_bytes) + " freed"));
      cards.push(card("Peak of live", bytes(totals.peak_bytes), pm(totals.peak_ci95)));
    }
    if (known(totals.rss_end_bytes)) cards.push(card("Resident memory", bytes(totals.rss_end_bytes), null,
      known(totals.rss_start_bytes) && bytes(totals.rss_start_bytes) + " at the start"));
    if (hasCpu) cards.push(card("CPU time", duration(totals.cpu_s), null, comma(totals.cpu_samples) + " samples"));
    cards.push(card("Cost to the target", known(session.overhead_pct) ? session.overhead_pct.toFixed(1) + " %" : session.longest_stop_us > 0 ? "–" : "no stop",
      null, session.longest_stop_us > 0 ? "longest stop " + (session.longest_stop_us < 1000 ? session.longest_stop_us.toFixed(0) + " µs"
        : duration(session.longest_stop_us / 1e6)) : "read from outside"));
    main.append(el("div", {class: "cards"}, cards));
  }

  // --- timeline ------------------------------------------------------------------------------------
  function drawTimeline() {
    const line = profile.timeline, n = line.t_s.length;
    if (n < 2) return;
    const W = 1000, H = 190, left = 0, right = 0, top = 8, bottom = 22;  // the labels' room is the frame's padding
    const t0 = line.t_s[0], t1 = line.t_s[n - 1];
    const series = [["rss", "Resident", line.rss_bytes], ["live", "Live, since attach", line.live_bytes], ["cpu", "CPU", line.cpu_pct]]
      .filter(([, , values]) => values.some(known));
    if (!series.length || t1 <= t0) return;
    const most = values => values.reduce((a, v) => known(v) && v > a ? v : a, 0);
    const nice = v => { const p = 10 ** Math.floor(Math.log10(v || 1)); return [1, 2, 2.5, 5, 10].map(f => f * p).find(c => c >= v); };
    const maxBytes = nice(Math.max(1, ...series.filter(s => s[0] !== "cpu").map(s => most(s[2]))));
    const maxCpu = Math.max(100, Math.ceil(most(line.cpu_pct) / 100) * 100);
    const x = t => left + (W - left - right) * (t - t0) / (t1 - t0);
    const y = (v, max) => top + (H - top - bottom) * (1 - v / max);
    const root = svg("svg", {viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": "Memory and CPU over time"});
    const labels = el("div", {});
    const hasBytes = series.some(s => s[0] !== "cpu");
    for (let i = 0; i <= 2; ++i) root.append(svg("line", {class: "axis", x1: left, x2: W - right, y1: y(i, 2), y2: y(i, 2)}));
    const step = Math.ceil(n / 1200);
    for (const [name, , values] of series) {
      let path = "", pen = false;
      const max = name === "cpu" ? maxCpu : maxBytes;
      for (let i = 0; i < n; i += step) {
        if (!known(values[i])) { pen = false; continue; }
        path += (pen ? "L" : "M") + x(line.t_s[i]).toFixed(1) + " " + y(values[i], max).toFixed(1);
        pen = true;
      }
      root.append(svg("path", {class: "s-" + name, d: path, css: name === "cpu" ? {opacity: .55} : {}}));
    }
    const cursor = svg("line", {class: "cursor", y1: top, y2: H - bottom, x1: -9, x2: -9, "vector-effect": "non-scaling-stroke"});
    root.append(cursor);
    // Labels are drawn over the stretched picture, so that they keep their shape.
    const label = (text, cx, cy, align) => labels.append(el("span", {css: {position: "absolute", left: 100 * cx / W + "%", top: cy + "px",
      transform: align === "end" ? "translate(calc(-100% - 7px),-50%)" : align === "middle" ? "translate(-50%,0)" : "translate(7px,-50%)", fontSize: "11px",
      color: "var(--faint)", whiteSpace: "nowrap"}}, text));
    for (let i = 0; i <= 2; ++i) {
      if (hasBytes) label(bytes(maxBytes * i / 2), 0, y(i, 2), "end");
      if (series.some(s => s[0] === "cpu")) label((maxCpu * i / 2).toFixed(0) + " %", W, y(i, 2), "start");
    }
    for (let i = 0; i <= 4; ++i) label(duration((t1 - t0) * i / 4), x(t0 + (t1 - t0) * i / 4), H - bottom + 4, "middle");
    root.addEventListener("pointermove", event => {
      const box = root.getBoundingClientRect();
      const t = t0 + ((event.clientX - box.left) / box.width * W - left) / (W - left - right) * (t1 - t0);
      let i = line.t_s.findIndex(at => at >= t);
      if (i < 0) i = n - 1;
      cursor.setAttribute("x1", x(line.t_s[i])); cursor.setAttribute("x2", x(line.t_s[i]));
      tip(event, [duration(line.t_s[i] - t0), ...series.filter(s => known(s[2][i]))
        .map(([name, title, values]) => title + "  " + (name === "cpu" ? pct(values[i]) : bytes(values[i])))].join("\n"));
    });
    root.addEventListener("pointerleave", () => { tip(null); cursor.setAttribute("x1", -9); cursor.setAttribute("x2", -9); });
    section("timeline", "Timeline", [el("div", {class: "legend"}, series.map(([name, title]) => el("span", {}, el("i", {class: "b-" + name}), title)))],
      el("div", {class: "panel chart"}, el("div", {class: "frame"}, root, labels)));
  }
  const tipBox = document.getElementById("tip");
  function tip(event, text) {
    tipBox.hidden = !event;
    if (!event) return;
    tipBox.textContent = text;
    const w = tipBox.offsetWidth;
    tipBox.style.left = Math.max(6, Math.min(event.clientX + 14, innerWidth - w - 8)) + "px";
    tipBox.style.top = event.clientY + 16 + "px";
  }

  // --- findings ------------------------------------------------------------------------------------
  function drawFindings() {
    if (!profile.hotspots.length && !profile.leaks.length) return;
    const columns = [];
    if (profile.leaks.length) columns.push(el("section", {id: "leaks"}, el("div", {class: "head"}, el("h2", {}, "Leak suspects")),
      el("div", {class: "panel"}, profile.leaks.map(leak => el("button", {class: "finding", type: "button", on: {click: () => goTo(leak.path, leak.line)}},
        el("span", {class: "share l", title: "confidence"}, Math.floor(100 * leak.confidence) + " %", el("small", {}, "sure")),
        el("span", {class: "where"}, place(leak.path, leak.line), " ", el("small", {}, leak.function)),
        el("span", {class: "what"}, `grows ${bytes(leak.growth_bytes_per_min)} a minute (± ${bytes(leak.growth_ci95)}), ${bytes(leak.live_bytes)} live` +
          (known(leak.seconds_to_limit) ? `; memory limit in ${duration(leak.seconds_to_limit)} at this rate` : "")),
        leak.evidence && el("span", {class: "what"}, leak.evidence),
        leak.code && el("code", {}, trim(leak.code)))))));
    if (profile.hotspots.length) columns.push(el("section", {id: "hotspots"}, el("div", {class: "head"}, el("h2", {}, "Hotspots")),
      el("div", {class: "panel"}, profile.hotspots.slice(0, 8).map(spot => el("button", {class: "finding", type: "button", on: {click: () => goTo(spot.path, spot.line)}},
        el("span", {class: "share " + (spot.metric === "memory" ? "m" : "c")}, spot.share_pct.toFixed(spot.share_pct < 9.95 ? 1 : 0) + " %"),
        el("span", {class: "where"}, place(spot.path, spot.line), " ", el("small", {}, spot.function)),
        el("span", {class: "what"}, spot.metric === "memory" ? "of allocated memory" : "of CPU time"),
        spot.code && el("code", {}, trim(spot.code)),
        spot.advice && el("span", {class: "what"}, spot.advice))))));
    main.append(el("div", {class: columns.length > 1 ? "two" : "one"}, columns));
    if (profile.leaks.length) navigate("leaks", "Leaks");
    if (profile.hotspots.length) navigate("hotspots", "Hotspots");
  }

  // --- the table -----------------------------------------------------------------------------------
  const number = (key, title, text, more) => ({key, title, text, ...more});
  const withPm = (value, pm) => [value, known(pm) ? el("span", {class: "pm"}, "± " + pm) : null];
  const bytesWithPm = (value, pm) => withPm(bytes(value), pm > 0 ? bytes(pm) : null);
  function columns() {
    const list = [{key: "path", title: "Where", left: true}];
    if (hasMemory) list.push(
      number("memory_pct", "Memory", r => pct(r.memory_pct), {bar: "memory"}),
      number("alloc_bytes", "Allocated", r => bytesWithPm(r.alloc_bytes, r.alloc_ci95)),
      number("live_bytes", "Live", r => bytesWithPm(r.live_bytes, r.live_ci95)),
      number("peak_bytes", "At peak", r => bytesWithPm(r.peak_bytes, r.peak_ci95)),
      number("temporary_bytes", "Temporary", r => bytesWithPm(r.temporary_bytes, r.temporary_ci95)),
      number("growth_bytes_per_min", "Growth / min", r => Math.abs(r.growth_bytes_per_min) > (r.growth_ci95 || 0) ? bytes(r.growth_bytes_per_min) : "–"));
    if (hasCpu) list.push(
      number("cpu_pct", "CPU", r => withPm(pct(r.cpu_pct), r.cpu_pct > 0 && known(r.cpu_ci95) ? r.cpu_ci95.toFixed(1) : null), {bar: "cpu"}),
      number("cpu_total_pct", "with callees", r => pct(r.cpu_total_pct)),
      {key: "python_pct", title: "Python · native · system", split: true});
    if (state.by === "lines") list.push({key: "code", title: "Code", left: true, code: true});
    return list;
  }
  function visibleRows() {
    let rows = state.by === "functions" ? functionRows() : state.rows === "all" ? innermostRows() : chargedRows();
    rows = rows.filter(r => (r.alloc_bytes || 0) > 0 || (r.cpu_samples || 0) > 0 || (r.wait_samples || 0) > 0);
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) rows = rows.filter(r => { const text = (r.path + ":" + r.line + " " + r.name + " " + r.code).toLowerCase();
      return words.every(w => text.includes(w)); });
    const key = state.sort, sign = state.up ? 1 : -1;
    const value = r => key === "path" ? r.path : key === "code" ? trim(r.code) : known(r[key]) ? r[key] : -Infinity;
    const cost = r => (r.memory_pct || 0) + (r.cpu_pct || 0);
    return rows.sort((a, b) => { const x = value(a), y = value(b);
      return x < y ? -sign : x > y ? sign : key === "path" ? a.line - b.line : cost(b) - cost(a); });
  }
  const tableBox = el("div", {class: "panel"});
  function showTable() {
    const cols = columns(), rows = visibleRows();
    const heads = cols.map(c => el("th", {class: c.left && "t", scope: "col", "aria-sort": state.sort === c.key && (state.up ? "ascending" : "descending")},
      el("button", {type: "button", on: {click: () => { state.up = state.sort === c.key ? !state.up : !!c.left; state.sort = c.key; showTable(); }}},
        c.title, state.sort === c.key ? (state.up ? " ↑" : " ↓") : "")));
    const cell = (c, r) => {
      if (c.key === "path") return el("td", {class: "t where", title: r.path + (r.line ? ":" + r.line : "")},
        r.isFunction ? r.name : place(r.path, r.line), el("small", {}, r.isFunction ? place(r.path, r.line) : r.name));
      if (c.code) return el("td", {class: "t code"}, el("code", {title: r.code}, trim(r.code)));
      if (c.split) return el("td", {}, known(r.python_pct) ? el("span", {class: "split", title:
        `Python ${pct(r.python_pct)}, native ${pct(r.native_pct)}, system ${pct(r.system_pct)}`}, ["python", "native", "system"].map(name =>
        el("i", {class: "b-" + name, css: {width: r[name + "_pct"] + "%"}}))) : el("span", {class: "zero"}, "–"));
      const zero = !(r[c.key] > 0 || r[c.key] < 0);
      return el("td", {class: (c.bar ? "bar" : "") + (zero ? " zero" : "")}, c.text(r),
        c.bar && r[c.key] > 0 ? el("i", {class: "b-" + c.bar, css: {width: `calc(${Math.min(100, r[c.key])}% * .8)`}}) : null);
    };
    const shown = rows.slice(0, state.shown);
    const body = shown.map(r => el("tr", {class: "go", on: {click: () => goTo(r.path, r.line)}}, cols.map(c => cell(c, r))));
    tableBox.replaceChildren(rows.length ? el("div", {class: "scroll"}, el("table", {}, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, body)))
      : el("p", {class: "empty"}, state.filter ? "Nothing matches." : "Nothing was sampled."));
    if (rows.length > shown.length) tableBox.append(el("button", {class: "more", type: "button", on: {click: () => { state.shown += 300; showTable(); }}},
      `${rows.length - shown.length} more`));
  }
  function segments(options, key, title) {
    const group = el("span", {class: "seg", role: "group", "aria-label": title});
    const update = () => { for (const b of group.children) b.setAttribute("aria-pressed", String(b.dataset.value === state[key])); };
    for (const [value, text, help] of options) group.append(el("button", {type: "button", "data-value": value, title: help, on: {click: () => {
      state[key] = value; state.shown = 60; update(); showTable(); }}}, text));
    update();
    return group;
  }
  function drawTable() {
    const search = el("input", {type: "search", placeholder: "Filter by file, function or code", "aria-label": "Filter", on: {input: e => {
      state.filter = e.target.value; state.shown = 60; showTable(); }}});
    section("lines", "Lines", [
      segments([["lines", "Lines"], ["functions", "Functions"]], "by", "Rows"),
      segments([["user", "Your code", "Charged to the innermost line of your own code"], ["all", "All code", "Charged to the innermost line, whoever's it is (lines)"]],
        "rows", "Charging"), el("span", {class: "grow"}), search], tableBox);
    showTable();
  }

  // --- source --------------------------------------------------------------------------------------
  const sourceBox = el("div", {class: "panel source"}), listBox = el("div", {class: "panel list"});
  const costly = f => (f.alloc_bytes || 0) > 0 || (f.cpu_samples || 0) > 0;
  function showSource() {
    const files = profile.files.filter(costly);
    listBox.replaceChildren(...files.map(f => el("button", {type: "button", "aria-current": String(f.path === state.file), title: f.path, on: {click: () => {
      state.file = f.path; state.line = null; showSource(); }}}, el("span", {class: "n"}, baseName(f.path)),
      el("span", {class: "x"}, pct(hasMemory ? f.memory_pct : f.cpu_pct)), el("span", {class: "p"}, f.path))));
    const file = profile.files.find(f => f.path === state.file);
    if (!file) { sourceBox.replaceChildren(el("p", {class: "empty"}, "Choose a file.")); return; }
    const lines = new Map((profile.sources.find(s => s.path === file.path) || {lines: []}).lines);
    const figures = new Map();
    for (const row of file.lines) if (row.line) {
      figures.set(row.line, row);
      if (row.code && !lines.has(row.line)) lines.set(row.line, row.code);
      if (!lines.has(row.line)) lines.set(row.line, "");
    }
    const most = key => Math.max(1e-9, ...file.lines.map(r => r[key] || 0));
    const mostMemory = most("alloc_bytes"), mostCpu = most("cpu_pct");
    const rows = [];
    let before = 0, target = null;
    for (const number of [...lines.keys()].sort((a, b) => a - b)) {
      if (number !== before + 1) rows.push(el("tr", {class: "gap"}, el("td", {colspan: 4}, "⋯")));
      before = number;
      const f = figures.get(number);
      const cell = (name, value, share, title) => el("td", {class: name, title}, f && share > 0 ? [el("b", {css: {width: 100 * share + "%"}}), el("span", {}, value)] : "");
      const row = el("tr", {class: (f && costly(f) ? "hit" : "") + (number === state.line ? " target" : "")},
        hasMemory && cell("m", f && bytes(f.alloc_bytes), f ? (f.alloc_bytes || 0) / mostMemory : 0, f && `${bytes(f.live_bytes)} live, ${bytes(f.peak_bytes)} at the peak`),
        hasCpu && cell("c", f && pct(f.cpu_pct), f ? (f.cpu_pct || 0) / mostCpu : 0, f && `${pct(f.cpu_total_pct)} with callees`),
        el("td", {class: "num"}, number), el("td", {class: "t src"}, lines.get(number)));
      if (number === state.line) target = row;
      rows.push(row);
    }
    const head = el("tr", {}, hasMemory && el("th", {}, "Allocated"), hasCpu && el("th", {}, "CPU"), el("th", {}, "Line"), el("th", {class: "t"}, file.path));
    sourceBox.replaceChildren(rows.length ? el("table", {}, el("thead", {}, head), el("tbody", {}, rows))
      : el("p", {class: "empty"}, "No source: " + file.path));
    if (target) sourceBox.scrollTop = Math.max(0, target.offsetTop - 160);
  }
  function goTo(path, line) {
    if (!profile.files.some(f => f.path === path)) return;
    state.file = path; state.line = line;
    showSource();
    document.getElementById("source").scrollIntoView({behavior: "smooth"});
  }
  function drawSource() {
    const first = profile.files.find(costly);
    if (!first) return;
    state.file = first.path;
    section("source", "Source", [], el("div", {class: "files"}, listBox, sourceBox));
    showSource();
  }

  // --- how it was measured ---------------------------------------------------------------------------
  function drawMeasured() {
    const items = [];
    const item = (k, v, cls) => { if (v) items.push(el("dt", {}, k), el("dd", {class: cls}, v)); };
    if (hasCpu) item("CPU", `${session.engine.cpu || "sampled"}, ${session.rate_hz} Hz, ${comma(totals.cpu_samples)} samples on CPU`);
    const watched = (what, share) => known(share) ? `${what} watched ${share >= 0.9995 ? "all the time" : (100 * share).toFixed(share < 0.1 ? 1 : 0) + " % of the time"}` : null;
    if (session.engine.alloc) item("Memory", [`${session.engine.alloc}, one sample per ${bytes(session.threshold_bytes)} or less`,
      watched("malloc", session.coverage.malloc), watched("small objects", session.coverage.object),
      known(session.coverage.large) ? watched(`blocks of ${bytes(session.coverage.large_from_bytes)} and more`, session.coverage.large) : null].filter(Boolean).join(", "));
    if (known(totals.before_attach_bytes)) item("From before attach", bytes(totals.before_attach_bytes) + " resident, charged to no line");
    if (known(totals.unknown_frees)) item("Frees of other blocks", comma(totals.unknown_frees) + ": not sampled, or older than the session");
    if (known(session.overhead_pct)) item("Overhead", session.overhead_pct.toFixed(2) + " % of the target's run time");
    item("Stops", session.longest_stop_us > 0 ? `${duration(session.stopped_s)} in all, ${session.longest_stop_us.toFixed(0)} µs at the longest` : "the target was never stopped");
    item("Lost", Object.entries(session.loss).filter(([, n]) => n > 0).map(([name, n]) => comma(n) + " " + name.replace(/_/g, " ")).join(", ") || "nothing");
    if (known(session.text_verified)) item("Target's code", session.text_verified ? "verified: equals its file, byte for byte" : "NOT verified: differs from its file",
      session.text_verified ? "ok" : "notok");
    for (const note of session.notes) item("Note", note);
    if (hasMemory) item("Reading the figures", "Memory figures are estimates of the bytes requested while profiling; ± is the 95 % interval. Allocated − freed = live. " +
      "At peak: the line's part at the moment when the sum of all was largest. Temporary: freed within 10 ms. 1 MB is 1,000,000 bytes.");
    if (hasCpu) item("Reading CPU", "CPU is the line's own share of the samples taken on a processor; with callees counts every stack that the line is on, once.");
    item("Executable", profile.target.exe);
    section("measured", "How it was measured", [], el("div", {class: "panel"}, el("dl", {}, items)));
  }

  // --- the page ------------------------------------------------------------------------------------
  const nav = document.getElementById("nav");
  const navigate = (id, title) => nav.append(el("a", {href: "#" + id}, title));
  function section(id, title, controls, ...content) {
    main.append(el("section", {id}, el("div", {class: "head"}, el("h2", {}, title), controls), content));
    navigate(id, title === "How it was measured" ? "Measured" : title);
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = on => document.documentElement.classList.toggle("dark", on);
  setTheme(dark.matches || location.hash === "#dark");
  dark.addEventListener("change", e => setTheme(e.matches));
  document.getElementById("theme").addEventListener("click", () => setTheme(!document.documentElement.classList.contains("dark")));

  drawHeader();
  drawCards();
  drawTimeline();
  drawFindings();
  drawTable();
  drawSource();
  drawMeasured();
})();
