// What the page does beyond showing itself: the language, a step of the samples, and figures under the pointer. Nothing is loaded or kept.
"use strict";

const root = document.documentElement;
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => { root.lang = button.dataset.language; });
}

for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input");
  input.addEventListener("input", () => {
    for (const text of document.querySelectorAll("[data-entry]")) text.hidden = text.dataset.entry !== input.value;
  });
}

const pointers = JSON.parse(document.getElementById("pointers").textContent);
for (const drawing of document.querySelectorAll("[data-plot]")) {
  const plot = pointers[drawing.dataset.plot], svg = drawing.querySelector("svg"), tip = drawing.querySelector(".tip");
  const dots = plot.lines.map((line) => {
    const dot = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "circle"));
    dot.setAttribute("r", 4.5);
    dot.setAttribute("style", `fill: var(--curve-${line.colour}); stroke: var(--card); stroke-width: 1.5; display: none`);
    return dot;
  });
  const hide = () => { tip.hidden = true; for (const dot of dots) dot.style.display = "none"; };
  const show = (event) => {
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal, scale = view.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let nearest = plot.lines.map((line, number) => ({ line, number, ...closest(line.at, x, y, plot.plane) }));
    const least = Math.min(...nearest.map((one) => one.distance));
    nearest = plot.plane ? nearest.filter((one) => one.distance === least).slice(0, 1) : nearest.filter((one) => one.distance < least + 12);
    hide();
    if (!nearest.length || least > 60) return;
    tip.replaceChildren(...nearest.map(({ line, number, place }) => {
      const [cx, cy] = line.at[place], dot = dots[number];
      dot.setAttribute("cx", cx); dot.setAttribute("cy", cy); dot.style.display = "";
      const row = document.createElement("span"), chip = document.createElement("i");
      chip.className = `chip curve-${line.colour}`;
      row.append(chip, line.tips[place][root.lang === "zh" ? 1 : 0]);
      return row;
    }));
    tip.hidden = false;
    const [at] = nearest[0].line.at[nearest[0].place], left = at / scale;
    tip.style.top = "0";
    tip.style.left = `${Math.max(0, Math.min(box.width - tip.offsetWidth, left < box.width / 2 ? left + 12 : left - tip.offsetWidth - 12))}px`;
  };
  drawing.addEventListener("pointermove", show);
  drawing.addEventListener("pointerdown", show);
  drawing.addEventListener("pointerleave", hide);
}

function closest(points, x, y, plane) {
  let place = 0, distance = Infinity;
  points.forEach(([px, py], number) => {
    const away = plane ? Math.hypot(px - x, py - y) : Math.abs(px - x);
    if (away < distance) { distance = away; place = number; }
  });
  return { place, distance };
}
