"use strict";
// The tables stand in the HTML already; this draws the charts and makes the tables sortable.
// Text goes in as text nodes only, never as HTML.
(() => {
  const DEALS = 8;
  const LABELLED = 40; // points at most that all have a label
  const groups = JSON.parse(document.getElementById("data").textContent);

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // Latencies that differ tenfold need a logarithmic axis to be told apart.
  const latencyScale = (low, high) => {
    if (high / low > 10) return { type: "log", domain: [low * 0.9, high * 1.1], ticks: 5 };
    const pad = Math.max(high - low, high / 2) * 0.1; // a lone run is not blown up to its noise
    return { type: "linear", domain: [Math.max(0, low - pad), high + pad] };
  };

  // Of many points only these have a label and are reached by the Tab key.
  const chief = (points, i) =>
    points.length <= LABELLED || points[i].pick || points[i].reference || points[i].pareto;

  const colour = (item) => (item.pick ? "var(--accent)" : item.ranked ? "var(--ink)" : "var(--muted)");

  function scatter(box, { points, frontier }) {
    const width = box.clientWidth;
    const height = Math.round(Math.max(280, Math.min(430, width * 0.62)));
    const line = frontier.map((name) => points.find((p) => p.name === name));
    const [low, high] = [d3.min(points, (p) => p.y1), d3.max(points, (p) => p.y2)];
    const pad = (high - low) * 0.08;
    const ticks = Math.max(3, Math.floor(width / 110));
    const chart = Plot.plot({
      width, height,
      marginLeft: 48, marginRight: 16, marginTop: 28, marginBottom: 42,
      style: { background: "transparent", color: "var(--ink)", fontSize: "12px", overflow: "visible" },
      x: { ticks, ...latencyScale(d3.min(points, (p) => p.x1), d3.max(points, (p) => p.x2)), label: "Latency, ms (median)", labelAnchor: "right" },
      y: { domain: [Math.max(0, low - pad), Math.min(100.5, high + pad)], ticks: 6, label: "Top-1 accuracy, %", grid: true },
      marks: [
        Plot.line(line, { x: "x", y: "y", curve: "step-after", stroke: "var(--accent)", strokeOpacity: 0.55, strokeWidth: 1.5 }),
        Plot.ruleX(points, { x: "x", y1: "y1", y2: "y2", stroke: colour, strokeOpacity: 0.45 }),
        Plot.ruleY(points, { y: "y", x1: "x1", x2: "x2", stroke: colour, strokeOpacity: 0.8, strokeWidth: 2 }),
        Plot.dot(points, { x: "x", y: "y", r: 5.5, fill: (p) => (p.ranked ? colour(p) : "var(--ground)"), stroke: colour, strokeWidth: 1.75 }),
      ],
    });
    chart.setAttribute("role", "group");
    chart.setAttribute("aria-label", "Latency against accuracy");
    const x = chart.scale("x"), y = chart.scale("y");
    const places = points.map((p) => ({
      x: x.apply(p.x), y: y.apply(p.y), x1: x.apply(p.x1), x2: x.apply(p.x2), y1: y.apply(p.y2), y2: y.apply(p.y1),
    }));
    box.replaceChildren(chart);
    label(chart, points, places, line.map((p) => places[points.indexOf(p)]), { left: 50, right: width - 2, top: 14, bottom: height - 44 });
    tips(box, chart, points, places);
  }

  const overlap = (a, b) =>
    Math.max(0, Math.min(a.x2, b.x2) - Math.max(a.x1, b.x1)) * Math.max(0, Math.min(a.y2, b.y2) - Math.max(a.y1, b.y1));

  // Each label takes the free place that is nearest to its point: eight directions, four distances.
  function label(chart, points, places, steps, frame) {
    const svg = d3.select(chart);
    const layer = svg.append("g").attr("aria-hidden", "true").attr("pointer-events", "none");
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = `600 12.5px ${getComputedStyle(document.body).fontFamily}`;
    const taken = places.map((p) => ({ x1: p.x - 8, x2: p.x + 8, y1: p.y - 8, y2: p.y + 8, weight: 10 }));
    for (const p of places) {
      taken.push({ x1: p.x - 2, x2: p.x + 2, y1: p.y1, y2: p.y2, weight: 0.4 });
      taken.push({ x1: p.x1, x2: p.x2, y1: p.y - 2, y2: p.y + 2, weight: 0.6 });
    }
    for (const [from, to] of d3.pairs(steps)) {
      taken.push({ x1: from.x, x2: to.x, y1: from.y - 2, y2: from.y + 2, weight: 0.6 });
      taken.push({ x1: to.x - 2, x2: to.x + 2, y1: to.y, y2: from.y, weight: 0.6 });
    }
    const order = d3.sort(d3.range(points.length).filter((i) => chief(points, i)), (i) => (points[i].pick ? 0 : points[i].ranked ? 1 : 2));
    for (const i of order) {
      const from = places[i];
      let text = points[i].name + (points[i].reference ? " (reference)" : "");
      const room = 0.6 * (frame.right - frame.left);
      while (pen.measureText(text).width > room && text.length > 4) text = `${text.slice(0, -2)}…`;
      const wide = pen.measureText(text).width;
      let best = null;
      for (const far of [11, 24, 40, 58, 78]) {
        for (const [dx, dy] of [[1, 0], [-1, 0], [0.75, -0.75], [-0.75, -0.75], [0.75, 0.75], [-0.75, 0.75], [0, -1], [0, 1]]) {
          const cx = from.x + dx * far, cy = from.y + dy * far;
          const x1 = dx > 0 ? cx : dx < 0 ? cx - wide : cx - wide / 2;
          const spot = { x1, x2: x1 + wide, y1: cy - 8, y2: cy + 8 };
          const outside = Math.max(0, frame.left - spot.x1) + Math.max(0, spot.x2 - frame.right)
            + Math.max(0, frame.top - spot.y1) + Math.max(0, spot.y2 - frame.bottom);
          const cost = far + outside * 200 + d3.sum(taken, (t) => overlap(spot, t) * t.weight);
          if (best === null || cost < best.cost) best = { spot, cost, far, cx, cy };
        }
      }
      taken.push({ ...best.spot, weight: 20 });
      if (best.far > 11) {
        const [ux, uy] = [best.cx - from.x, best.cy - from.y].map((d) => d / Math.hypot(best.cx - from.x, best.cy - from.y));
        layer.append("line").attr("class", "leader").attr("x1", from.x + 7 * ux).attr("y1", from.y + 7 * uy).attr("x2", best.cx).attr("y2", best.cy);
      }
      layer.append("text")
        .attr("class", `label ${points[i].pick ? "pick" : points[i].ranked ? "" : "out"}`)
        .attr("text-anchor", "start").attr("x", best.spot.x1).attr("y", best.spot.y1 + 12).text(text);
    }
  }

  // One tip for pointer, touch and keyboard: every dot can be focused.
  function tips(box, chart, points, places) {
    const tip = element("div", "tip");
    tip.hidden = true;
    box.append(tip);
    const show = (i) => {
      const list = element("dl");
      for (const [name, text] of points[i].figures) list.append(element("dt", "", name), element("dd", "", text));
      tip.replaceChildren(element("b", "name", points[i].name), list);
      tip.hidden = false;
      const { x, y } = places[i];
      const right = x + 14 + tip.offsetWidth <= box.clientWidth;
      tip.style.left = `${right ? x + 14 : Math.max(0, Math.min(x - 14 - tip.offsetWidth, box.clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${y + 14}px`;
    };
    const hide = () => { tip.hidden = true; };
    chart.querySelectorAll('g[aria-label="dot"] circle').forEach((dot, i) => {
      dot.setAttribute("tabindex", chief(points, i) ? "0" : "-1");
      dot.setAttribute("role", "img");
      dot.setAttribute("aria-label", `${points[i].name}: ${points[i].figures.map((f) => f.join(" ")).join("; ")}`);
      dot.addEventListener("focus", () => show(i));
      dot.addEventListener("blur", hide);
      dot.addEventListener("click", () => select(box.closest("section"), points[i].name));
      dot.addEventListener("keydown", (event) => { if (event.key === "Enter") select(box.closest("section"), points[i].name); });
    });
    chart.addEventListener("pointermove", (event) => {
      const [px, py] = d3.pointer(event, chart);
      const i = d3.minIndex(places, (p) => Math.hypot(p.x - px, p.y - py));
      if (Math.hypot(places[i].x - px, places[i].y - py) < 36) show(i);
      else hide();
    });
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  }

  function strips(box, rows) {
    const [low, high] = [d3.min(rows, (r) => r.ticks[0]), d3.max(rows, (r) => r.ticks.at(-1))];
    const width = box.clientWidth;
    const chart = Plot.plot({
      width, height: rows.length * 46 + 44,
      marginLeft: 8, marginRight: 16, marginTop: 4, marginBottom: 40,
      style: { background: "transparent", color: "var(--ink)", fontSize: "12px", overflow: "visible" },
      x: { ticks: Math.max(3, Math.floor(width / 110)), ...latencyScale(low, high), label: "Latency of one inference, ms", labelAnchor: "right", grid: true },
      y: { domain: rows.map((row) => row.name), axis: null, padding: 0 },
      marks: [
        Plot.tickX(rows, { x: "p50", y: "name", stroke: colour, strokeWidth: 2.5, insetTop: 20, insetBottom: 2 }),
        Plot.text(rows, {
          y: "name", frameAnchor: "left", dy: -13, fill: colour, textAnchor: "start", lineWidth: width / 14, textOverflow: "ellipsis-end",
          text: (r) => `${r.name}${r.ranked ? "" : " (not ranked)"}, median ${d3.format(".3~g")(r.p50)} ms${width > 500 ? ` of ${r.count.toLocaleString("en")} inferences` : ""}`,
        }),
      ],
    });
    chart.setAttribute("role", "img");
    chart.setAttribute("aria-label", "Distribution of the latency of each variant");
    // One path a row: an element for each tick would take a browser seconds. One path paints an overlap once, so
    // the ticks of a row are dealt out to a few, which lie over each other.
    const x = chart.scale("x"), y = chart.scale("y"), layer = d3.select(chart).insert("g", 'g[aria-label="tick"]');
    for (const row of rows) {
      const top = y.apply(row.name) + 24, tall = y.bandwidth - 30;
      for (const deal of d3.range(Math.min(DEALS, row.ticks.length))) {
        const path = row.ticks.filter((_, i) => i % DEALS === deal).map((t) => `M${x.apply(t).toFixed(1)} ${top}v${tall}`);
        layer.append("path").attr("d", path.join("")).attr("stroke", colour(row)).attr("stroke-opacity", 0.22);
      }
    }
    box.replaceChildren(chart);
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const key = (row, column) => {
      const text = row.cells[column].dataset.order;
      if (text === undefined) return null;
      return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
    };
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = element("button", "", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => {
          const [first, second] = [key(a, column), key(b, column)];
          if (first === null || second === null) return (first === null) - (second === null); // blanks stay last
          return (down ? -1 : 1) * d3.ascending(first, second);
        });
        body.replaceChildren(...rows);
      });
    });
  }

  // A dot that is clicked marks its row, and a row its dot.
  function select(section, name) {
    for (const row of section.querySelectorAll("table.variants tbody tr")) {
      const chosen = row.cells[0].dataset.order === name && !row.classList.contains("selected");
      row.classList.toggle("selected", chosen);
      if (chosen) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
      if (chosen) row.scrollIntoView({ block: "nearest" });
    }
    mark(section);
  }

  function mark(section) {
    const row = section.querySelector("table.variants tr.selected");
    section.querySelectorAll('.scatter g[aria-label="dot"] circle').forEach((dot, i) => {
      dot.classList.toggle("selected", !!row && groups[section.dataset.group].points[i].name === row.cells[0].dataset.order);
    });
  }

  // Tab goes from row to row; Enter and the space bar select, the arrows go up and down.
  function keyed(event, section, row) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (event.key === "Enter" || event.key === " ") select(section, row.cells[0].dataset.order);
    else if (step) {
      let next = row[step];
      while (next && next.hidden) next = next[step];
      if (next) next.focus();
    } else return;
    event.preventDefault();
  }

  function filterable(table) {
    const section = table.closest("section");
    const field = element("input", "filter");
    field.type = "search";
    field.placeholder = "Filter, as int8 xnnpack";
    field.setAttribute("aria-label", "Filter the variants");
    const rows = [...table.tBodies[0].rows];
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    });
    table.parentElement.before(field);
    for (const row of rows) {
      row.tabIndex = rows.length <= LABELLED || row === rows[0] ? 0 : -1; // among many the arrows go on
      row.addEventListener("click", () => select(section, row.cells[0].dataset.order));
      row.addEventListener("keydown", (event) => keyed(event, section, row));
    }
  }

  function draw() {
    for (const section of document.querySelectorAll("section.group")) {
      const group = groups[section.dataset.group];
      const [plane, strip] = [section.querySelector(".scatter"), section.querySelector(".strips")];
      if (plane) scatter(plane, group);
      if (plane) mark(section);
      if (strip) strips(strip, group.strips);
    }
  }

  document.querySelectorAll("table.variants").forEach(sortable);
  document.querySelectorAll("table.variants").forEach(filterable);
  let width = document.body.clientWidth;
  draw();
  // Only a changed width needs new charts: a phone's address bar changes the height all the time.
  window.addEventListener("resize", () => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    draw();
  });
  document.documentElement.dataset.ready = "";
})();
