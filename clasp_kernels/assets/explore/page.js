"use strict";
(() => {
  const NAMES = ["gone", "dropped", "completion", "pivot"];
  const HEATS = ["none", "salience", "coverage"];
  // Viridis, which is read the same in grey and under every common color blindness.
  const RAMP = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
  const SVG = "http://www.w3.org/2000/svg";

  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const states = data.states.map((text) => {
    const packed = bytes(text);
    return Uint8Array.from({ length: data.tokens }, (_, token) =>
      (packed[token >> 2] >> (2 * (token & 3))) & 3);
  });
  const maps = data.maps.map(bytes);

  const picture = element("picture");
  const budget = element("budget");
  const rule = element("rule");
  const category = element("category");

  const colours = Array.from({ length: 256 }, (_, value) => {
    const place = (value / 255) * (RAMP.length - 1);
    const low = Math.min(Math.floor(place), RAMP.length - 2);
    const channels = [1, 3, 5].map((at) => {
      const [from, to] = [RAMP[low], RAMP[low + 1]].map((hex) => parseInt(hex.slice(at, at + 2), 16));
      return Math.round(from + (to - from) * (place - low));
    });
    return `rgb(${channels.join(",")})`;
  });

  function shape(kind, attributes, parent) {
    const made = document.createElementNS(SVG, kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    parent.append(made);
    return made;
  }

  function inset(box, by) {
    const [, left, top, right, bottom] = box;
    return { x: left + by, y: top + by, width: right - left - 2 * by, height: bottom - top - 2 * by };
  }

  document.documentElement.style.setProperty("--shape", data.width / data.height);
  const cells = data.boxes.map((box) => {
    const [token, left, top, right, bottom] = box;
    const side = Math.min(right - left, bottom - top);
    const thin = side / 13;
    const mark = 0.54 * side;
    const cell = shape("g", { class: "cell", "data-token": token }, element("cells"));
    const heat = shape("rect", { class: "heat", ...inset(box, 0) }, cell);
    shape("rect", { class: "hatched", ...inset(box, 0) }, cell);
    shape("rect", { class: "inner", "stroke-width": thin / 3, ...inset(box, 2.1 * thin) }, cell);
    shape("rect", { class: "frame pivot", "stroke-width": 2 * thin, ...inset(box, thin) }, cell);
    shape("path", { class: "corner", d: `M${left} ${top}h${mark}l${-mark} ${mark}z` }, cell);
    shape("rect", { class: "frame casing", "stroke-width": 1.5 * thin, ...inset(box, 0.75 * thin) }, cell);
    shape("rect", {
      class: "frame completion", "stroke-width": thin, ...inset(box, 0.75 * thin),
      "stroke-dasharray": `${2.2 * thin} ${thin}`,
    }, cell);
    shape("rect", { class: "hit", ...inset(box, 0) }, cell);
    return { token, box, cell, heat, state: "" };
  });
  if (data.boxes.length) {
    const [, left, , right] = data.boxes[0];
    const step = (right - left) / 4;
    const hatch = element("hatch");
    hatch.setAttribute("width", step);
    hatch.setAttribute("height", step);
    element("hatch-line").setAttribute("width", step / 3);
    element("hatch-line").setAttribute("height", step);
  }
  RAMP.forEach((colour, number) => {
    shape("stop", { offset: number / (RAMP.length - 1), "stop-color": colour }, element("ramp"));
  });

  function radios(parent, name, labels, chosen) {
    parent.replaceChildren();
    labels.forEach((text, number) => {
      const label = document.createElement("label");
      label.className = "choice";
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name, value: number, checked: number === chosen });
      label.append(input, text);
      parent.append(label);
    });
  }
  const chosen = (name) => Number(document.querySelector(`input[name="${name}"]:checked`).value);
  // Most cosines are close to 1, so colours follow the square root of the distance.
  const colourOf = (heat, value) =>
    colours[heat === "coverage" ? Math.round(255 * (1 - Math.sqrt(1 - value / 255))) : value];
  const percent = (part, whole) => {
    const share = (100 * part) / whole;
    return `${share < 10 && share % 1 ? share.toFixed(1) : Math.round(share)} %`;
  };

  const works = (plan, number) => plan.frames[number].length > 0;
  for (const { name } of data.rules) rule.append(new Option(name, name));
  for (const { name } of data.categories) category.append(new Option(name, name));
  category.selectedIndex = Math.max(0, data.categories.findIndex(({ name }) => name === data.category));
  const after = ({ layers }) => layers.slice(0, -1).join(", ") + (layers.length > 1 ? " and " : "") + layers.at(-1);
  radios(
    element("plans"), "plan",
    data.plans.map((plan) => plan.name === "input"
      ? "Before the LLM"
      : `Progressive, after LLM layer${plan.layers.length > 1 ? "s" : ""} ${after(plan)}`),
    0,
  );
  if (data.plans.length === 1) {
    radios(element("plans"), "plan", ["Before the LLM", "Progressive, inside the LLM"], 0);
    element("plans").lastChild.firstChild.disabled = true;
    element("plan-note").textContent = data.noProgressive;
  } else {
    const only = data.rules.filter((_, number) => data.plans.some((plan) => !works(plan, number)));
    if (only.length) element("plan-note").textContent = `Only before the LLM: ${only.map(({ name }) => name).join(", ")}.`;
  }
  radios(element("heats"), "heat", ["None", "Salience", "Coverage by what is kept"], 0);
  // Each schedule has budgets of its own, so each remembers where its slider was.
  const budgets = data.plans.map((plan) => plan.usual);
  const stages = data.plans.map((plan) => plan.layers.length - 1);
  let shownPlan = -1;

  function frame() {
    const plan = data.plans[shownPlan];
    const group = data.categories[category.selectedIndex].group;
    return plan.frames[rule.selectedIndex][group][budgets[shownPlan]][stages[shownPlan]];
  }

  function showPlan(number) {
    shownPlan = number;
    const plan = data.plans[number];
    budget.max = plan.budgets.length - 1;
    budget.value = budgets[number];
    const inside = plan.layers.length > 1 || plan.layers[0] !== null;
    element("stage-field").hidden = !inside;
    element("legend-gone").hidden = !inside;
    element("here").hidden = !inside;
    radios(element("stages"), "stage", plan.layers.map((layer) =>
      layer === null ? "Before the LLM" : `After layer ${layer}`), stages[number]);
  }

  function showCategory(plan) {
    const byGroup = plan.frames[rule.selectedIndex].map((frames) => JSON.stringify(frames));
    const matters = new Set(byGroup).size > 1;
    category.disabled = !matters;
    const alike = data.categories.filter(({ group }) =>
      group === data.categories[category.selectedIndex].group);
    let note = "";
    if (!matters) {
      note = `The category makes no difference to ${data.rules[rule.selectedIndex].name} here.`;
    } else if (alike.length > 1) {
      note = `Same settings: ${alike.map(({ name }) => name).join(", ")}.`;
    }
    element("category-note").textContent = note;
  }

  function show() {
    const number = chosen("plan");
    if (number !== shownPlan) showPlan(number);
    const plan = data.plans[number];
    budgets[number] = Number(budget.value);
    stages[number] = chosen("stage");
    const heat = HEATS[chosen("heat")];
    say(cells.length ? "Point at a token, or go to one with the arrow keys, to read its values." : "");
    data.rules.forEach((_, other) => { rule.options[other].disabled = !works(plan, other); });
    data.plans.forEach((other, at) => {
      element("plans").children[at].firstChild.disabled = !works(other, rule.selectedIndex);
    });
    showCategory(plan);

    const [stateNumber, salience, coverage] = frame();
    const state = states[stateNumber];
    const values = heat === "none" ? null : maps[heat === "salience" ? salience : coverage];
    const area = [];
    for (const one of cells) {
      const name = NAMES[state[one.token]];
      if (name !== one.state) one.cell.dataset.state = one.state = name;
      if (values) {
        one.cell.dataset.value = values[one.token];
        one.heat.setAttribute("fill", colourOf(heat, values[one.token]));
      }
      if (state[one.token] >= 2) {
        const [, left, top, right, bottom] = one.box;
        area.push(`M${left} ${top}H${right}V${bottom}H${left}z`);
      }
    }
    element("kept-area").setAttribute("d", area.join(""));
    picture.dataset.heat = heat;

    const mean = plan.budgets[budgets[number]];
    const inside = !element("stage-field").hidden;
    const share = percent(mean, data.largest);
    const each = data.tokens > data.largest ? " per image" : "";
    // A category may take more or less than the budget; what is kept is said under the picture.
    const factor = data.categories[category.selectedIndex].scale;
    const scaled = factor === 1 ? "" : `, times ${factor} for ${category.value}`;
    element("budget-text").textContent = (inside
      ? `mean ${mean} of ${data.largest} (${share})`
      : `${mean} of ${data.largest} ${each ? "per image" : "tokens"} (${share})`) + scaled;
    budget.setAttribute("aria-valuetext", (inside ? "mean over the LLM's layers: " : "") +
      `${mean} of ${data.largest} tokens${each}, ${share}${scaled}`);
    const uses = data.rules[rule.selectedIndex].salience;
    element("rule-note").textContent = uses ? "" : "This rule does not look at salience.";
    summarise(plan, state);
    explainHeat(heat, plan, uses);
  }

  function summarise(plan, state) {
    const tokens = (wanted) => [...state.keys()].filter((token) => state[token] === wanted);
    const [gone, dropped, completion, pivots] = [0, 1, 2, 3].map(tokens);
    const kept = completion.length + pivots.length;
    const layer = plan.layers[stages[shownPlan]];
    let text = layer === null ? "" : `After layer ${layer}: `;
    const { pools } = data.rules[rule.selectedIndex];
    text += pools
      ? `${data.tokens} tokens averaged into ${kept} (${percent(kept, data.tokens)})`
      : `${kept} of ${data.tokens} tokens kept (${percent(kept, data.tokens)})`;
    text += pools ? ". A frame marks the token whose place the mean of its group takes." : pivots.length
      ? `: ${pivots.length} pivot${pivots.length > 1 ? "s" : ""}, ${completion.length} completion.`
      : "; this rule marks none as pivots.";
    if (gone.length || layer !== null) text += ` Dropped here: ${dropped.length}, before: ${gone.length}.`;
    const placed = new Set(cells.map(({ token }) => token));
    const hidden = [...completion, ...pivots].filter((token) => !placed.has(token)).length;
    if (hidden) text += ` ${hidden} of the kept have no place in the picture.`;
    element("summary").textContent = text;
    element("completion-means").textContent = pools ? "takes the mean of its group" : pivots.length
      ? "completion: kept for what pivots lack" : "kept, without pivots";
    element("dropped-means").textContent = pools ? "averaged into another" : "dropped";
    element("legend-pivot").hidden = !pivots.length;
    element("legend-completion").hidden = !completion.length;
    element("numbers").textContent =
      (pivots.length ? `Pivots: ${pivots.join(", ")}\n` : "") +
      (completion.length ? `${pivots.length ? "Completion" : "Kept"}: ${completion.join(", ")}` : "");
  }

  function explainHeat(heat, plan, uses) {
    element("legend-heat").hidden = heat === "none";
    element("legend-dropped").hidden = heat !== "none";  // then it is what has no frame
    const inside = plan.layers[stages[shownPlan]] !== null;
    if (heat === "salience") {
      element("heat-means").textContent = "salience: 0 to the largest (square root)";
      element("heat-note").textContent =
        (inside ? "The attention that each token gets from the prompt's last token in this layer."
          : "The attention that each token gets in the vision tower.") +
        (uses ? "" : " This rule does not use it.");
    } else if (heat === "coverage") {
      element("heat-means").textContent = "coverage: cosine 0 to 1 (square root of the distance)";
      element("heat-note").textContent = "The cosine similarity of each token to the " +
        (data.rules[rule.selectedIndex].pools ? "mean" : "kept token") + " most like it" +
        (inside ? ", by hidden states after this layer." : ", by the fused vision features.");
    } else {
      element("heat-means").textContent = element("heat-note").textContent = "";
    }
  }

  function say(text) {
    const readout = element("readout");
    // It is spoken whenever it is written.
    if (readout.textContent !== text) readout.textContent = text;
  }

  function read({ token }) {
    const [stateNumber, salience, coverage] = frame();
    const name = NAMES[states[stateNumber][token]];
    const means = { gone: "dropped at an earlier stage" };
    if (data.rules[rule.selectedIndex].pools) {
      Object.assign(means, { dropped: "averaged into another", completion: "takes the mean of its group" });
    }
    let text = `Token ${token}: ${means[name] ?? name}`;
    if (name !== "gone") {
      const share = (maps[salience][token] / 255) ** 2;
      text += `. Salience ${Math.round(100 * share)} % of the largest, coverage ${(maps[coverage][token] / 255).toFixed(2)}`;
    }
    say(`${text}.`);
  }
  const under = ({ target }) => cells.find(({ cell }) => cell === target.closest(".cell"));

  // The token that the arrow keys start from.
  let cursor = 0;
  function goTo(number) {
    cells[cursor].cell.classList.remove("cursor");
    cursor = number;
    cells[cursor].cell.classList.add("cursor");
    read(cells[cursor]);
  }

  // Where the nearest token above (-1) or below (1) is; the cursor itself if there is none.
  function beside(direction) {
    const [, left, top, right, bottom] = cells[cursor].box;
    const [across, down] = [(left + right) / 2, (top + bottom) / 2];
    let [nearest, least] = [cursor, Infinity];
    cells.forEach(({ box }, number) => {
      const distance = direction * ((box[2] + box[4]) / 2 - down);
      if (box[1] <= across && across < box[3] && distance > 0 && distance < least) {
        [nearest, least] = [number, distance];
      }
    });
    return nearest;
  }

  const KEYS = {
    ArrowLeft: () => Math.max(cursor - 1, 0),
    ArrowRight: () => Math.min(cursor + 1, cells.length - 1),
    ArrowUp: () => beside(-1),
    ArrowDown: () => beside(1),
    Home: () => 0,
    End: () => cells.length - 1,
  };
  if (cells.length) {
    element("tokens").addEventListener("focus", () => goTo(cursor));
    element("tokens").addEventListener("keydown", (event) => {
      if (!(event.key in KEYS) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      goTo(KEYS[event.key]());
    });
  } else {
    element("tokens").removeAttribute("tabindex");
  }
  picture.addEventListener("pointermove", (event) => {
    const one = under(event);
    if (one) read(one);
  });
  picture.addEventListener("pointerdown", (event) => {
    const one = under(event);
    if (one) goTo(cells.indexOf(one));
  });
  document.querySelector("form").addEventListener("input", show);
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  showPlan(0);
  show();
})();
