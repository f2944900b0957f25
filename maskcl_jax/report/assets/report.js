"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const element = (name, attributes = {}, text = "") => {
  const made = name === "circle" ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
};

// ---- Curves: one cursor for all of them -------------------------------------------------------------------------
const number = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size < 1e-2 ? value.toExponential(2).replace(/\.?0+e/, "e") : String(+value.toPrecision(4));
};

function readout(output, chart, plot) {
  const at = plot?.cursor.idx;
  const parts = at == null ? (chart.peak ? [element("span", {}, "peak")] : []) : [element("span", {}, `step ${chart.x[at].toLocaleString("en")}`)];
  for (const { label, color, values } of chart.series) {
    let i = at ?? (chart.peak ? values.indexOf(Math.max(...values.filter((value) => value != null))) : values.length - 1);
    while (i >= 0 && values[i] == null) i -= 1;
    if (i < 0) continue;
    const part = element("span");
    if (chart.series.length > 1) part.append(element("i", { class: "chip", style: `--color: var(--c${color % 8})`, title: label }));
    part.append(element("b", {}, number(values[i])), chart.unit ? ` ${chart.unit}` : "");
    parts.push(part);
  }
  output.replaceChildren(...parts);
}

function draw(figure) {
  const chart = data.charts[figure.dataset.chart];
  const output = figure.querySelector("output");
  const axis = {
    stroke: () => color("--quiet"),
    grid: { stroke: () => color("--grid"), width: 1 },
    ticks: { show: false },
    font: "12px Inter, system-ui, sans-serif",
  };
  const series = chart.series.map(({ label, color: c, points }) => ({
    label,
    stroke: () => color(`--c${c % 8}`),
    width: 1.75,
    spanGaps: true,
    points: { show: points, size: 6, fill: () => color(`--c${c % 8}`) },
  }));
  const height = figure.closest(".small") ? 130 : 200;
  const plot = new uPlot(
    {
      width: figure.clientWidth - 30,
      height,
      scales: { x: { time: false } },
      legend: { show: false },
      cursor: { sync: { key: "steps" }, y: false, points: { size: 8 } },
      axes: [
        { ...axis, size: 28, values: (_, marks) => marks.map((mark) => mark.toLocaleString("en")) },
        { ...axis, size: 58, values: (_, marks) => marks.map(number) },
      ],
      series: [{}, ...series],
      hooks: { setCursor: [(own) => readout(output, chart, own)] },
    },
    [chart.x, ...chart.series.map((one) => one.values)],
    figure,
  );
  readout(output, chart, null);
  new ResizeObserver(() => figure.clientWidth && plot.setSize({ width: figure.clientWidth - 30, height })).observe(figure);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw(false));
}

// A hidden figure has no width: those of <details> are drawn when they are opened.
all(".charts:not(.small) .chart").forEach(draw);
all("details").forEach((fold) => fold.addEventListener("toggle", () => all(".chart", fold).forEach(draw), { once: true }));

// ---- Images over training ---------------------------------------------------------------------------------------
const slider = document.querySelector(".player input");
if (slider) {
  const play = document.querySelector(".play");
  let timer = 0;
  const show = () => {
    const part = slider.max > 0 ? slider.value / slider.max : 1;
    for (const film of all(".film")) {
      const frames = all("img", film);
      const shown = frames[Math.round(part * (frames.length - 1))];
      frames.forEach((frame) => (frame.hidden = frame !== shown));
      film.querySelector(".step b").textContent = Number(shown.dataset.step).toLocaleString("en");
    }
  };
  const say = (sign, label) => {
    play.textContent = sign;
    play.setAttribute("aria-label", label);
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    say("▶", "Play");
  };
  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    show();
    say("❚❚", "Pause");
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) stop();
    }, 600);
  });
  show();
}

// ---- The map ----------------------------------------------------------------------------------------------------
const hover = document.getElementById("hover");
const hue = (label) => (label < 0 ? "var(--quiet)" : `hsl(${(label * 137.5) % 360} ${label % 2 ? 72 : 58}% ${label % 3 ? 56 : 47}%)`);
const WIDTH = 800, MARGIN = 10;

function drawMap(figure) {
  const map = data.maps[figure.dataset.run];
  const height = document.body.classList.contains("one") ? 460 : 720;
  const svg = figure.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  const radius = document.body.classList.contains("one") ? 5.5 : 10;
  const circles = map.labels.map((label, i) => element("circle", { r: radius, fill: hue(label), "data-i": i }));
  svg.append(...circles);

  const place = (name) => {
    const known = map.maps[name] ?? map.maps.PCA;
    known.forEach(([x, y], i) => {
      circles[i].setAttribute("cx", MARGIN + x * (WIDTH - 2 * MARGIN));
      circles[i].setAttribute("cy", height - MARGIN - y * (height - 2 * MARGIN));
    });
    figure.querySelector(".axes").textContent = known === map.maps.PCA ? `Across: ${map.axes[0]}. Up: ${map.axes[1]}.` : "UMAP: distances between groups mean little.";
  };
  place("PCA");
  figure.addEventListener("place", (event) => place(event.detail));

  const sheet = figure.querySelector(".sheet");
  const side = 104;
  const enter = (event) => {
    const circle = event.target.closest("circle");
    if (!circle) return leave();
    all("circle.on", svg).forEach((other) => other.classList.remove("on"));
    circle.classList.add("on");
    const i = Number(circle.dataset.i);
    const [image, text] = hover.children;
    const ratio = sheet.naturalHeight / map.rows / (sheet.naturalWidth / map.columns);
    image.style.height = `${side * ratio}px`;
    image.style.backgroundImage = `url(${sheet.src})`;
    image.style.backgroundSize = `${side * map.columns}px auto`;
    image.style.backgroundPosition = `${-side * (i % map.columns)}px ${-side * ratio * Math.floor(i / map.columns)}px`;
    text.replaceChildren(element("b", {}, map.classes[map.labels[i]] ?? ""), map.names[i]);
    hover.hidden = false;
    const { width, height } = hover.getBoundingClientRect();
    hover.style.left = `${Math.max(4, event.clientX + 16 + width > innerWidth ? event.clientX - 16 - width : event.clientX + 16)}px`;
    hover.style.top = `${Math.max(4, Math.min(event.clientY - height / 2, innerHeight - height - 8))}px`;
  };
  const leave = () => {
    hover.hidden = true;
    all("circle.on", svg).forEach((circle) => circle.classList.remove("on"));
  };
  svg.addEventListener("pointermove", enter);
  svg.addEventListener("pointerdown", enter);
  svg.addEventListener("pointerleave", leave);

  const legend = figure.querySelector(".legend");
  const shown = [...new Set(map.labels)].filter((label) => label >= 0).sort((a, b) => a - b);
  if (map.classes.length && shown.length <= 40) {
    let kept = null;
    const light = (label) => circles.forEach((circle, i) => circle.classList.toggle("faded", label !== null && map.labels[i] !== label));
    for (const label of shown) {
      const button = element("button", { type: "button", "aria-pressed": "false" });
      button.append(element("i", { class: "chip", style: `--color: ${hue(label)}` }), map.classes[label]);
      button.addEventListener("pointerenter", () => light(label));
      button.addEventListener("pointerleave", () => light(kept));
      button.addEventListener("click", () => {
        kept = kept === label ? null : label;
        all("button", legend).forEach((other) => other.setAttribute("aria-pressed", String(other === button && kept !== null)));
        light(kept);
      });
      legend.append(button);
    }
  }
}
all(".map").forEach(drawMap);

for (const tab of all('[role="tab"]')) {
  tab.addEventListener("click", () => {
    all('[role="tab"]').forEach((other) => other.setAttribute("aria-selected", String(other === tab)));
    all(".map").forEach((figure) => figure.dispatchEvent(new CustomEvent("place", { detail: tab.dataset.map })));
  });
}

// ---- Commands ---------------------------------------------------------------------------------------------------
for (const button of all(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected"; // some browsers keep the clipboard from pages of a file
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
